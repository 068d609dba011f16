"""Pascal VOC and MS-COCO from their official folders, with image-level labels from their object annotations."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.files.reading import check_bytes, check_classes, path_below, read_json, read_text, reading, shown
from unbackdoor.task import Batch
from unbackdoor_multilabel.data.images import decode
from unbackdoor_multilabel.data.splitting import splits

__all__ = ["VOC_CLASSES", "coco", "voc"]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_PARTS = {
    "2007": ([("2007", "trainval")], ("2007", "test")),
    "2012": ([("2012", "train")], ("2012", "val")),
    "2007+2012": ([("2007", "trainval"), ("2012", "trainval")], ("2007", "test")),
}
"""Training and test parts; the test labels of 2012 are not public, so its validation part stands in."""

_CLEAN = 5000


def voc(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    year: str = "2012",
    size: int = 224,
    fit: str = "stretch",
    difficult: bool = False,
) -> Splits:
    """Pascal VOC: 20 classes; 5,000 clean images where that leaves as many for training, else 10 %.

    Args:
        seed: Of the clean set.
        path: Folder that holds ``VOCdevkit/VOC2007`` or ``VOCdevkit/VOC2012``, as the archives unpack.
        clean_share: Share of the training part that the defender holds.
        clean_count: Their number instead; the papers take 5,000.
        year: ``"2007"`` (trainval and test), ``"2012"`` (train and val) or ``"2007+2012"`` (both trainval, test 2007).
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        difficult: Whether a class counts as shown where all its objects are marked difficult. Off, it counts as not
            shown (the official evaluation leaves such images of the class out).

    Raises:
        FileRefused: The folder is not there.
        BadOption: There is no such year.
    """
    if year not in _PARTS:
        raise BadOption(f"year is {year!r}; it must be one of {', '.join(_PARTS)}.")
    root = _root(path, "VOCdevkit", "the folder that holds VOCdevkit")
    trained, tested = _PARTS[year]
    parts = [_voc_part(root, *part, size, fit, difficult) for part in trained]
    train = _joined(parts)
    test = _voc_part(root, *tested, size, fit, difficult)
    return splits(
        train,
        test,
        VOC_CLASSES,
        seed=seed,
        clean_share=clean_share,
        clean_count=_papers_count(len(train), clean_share, clean_count),
        flip=True,
        attack_hints={"rate": 0.05},
    )


def coco(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    year: str = "2014",
    size: int = 224,
    fit: str = "stretch",
) -> Splits:
    """MS-COCO: 80 classes in the order of category ids; 5,000 clean images where that leaves as many, else 10 %.

    All images are decoded into memory: those of 2017 need 18 GB at 224 pixels, so a higher limit ``memory``.

    Args:
        seed: Of the clean set.
        path: Folder with ``annotations/instances_train2014.json`` and ``..._val2014.json``, ``train2014`` and
            ``val2014``, as the archives unpack; or the same of 2017. The validation part is the test part.
        clean_share: Share of the training part that the defender holds.
        clean_count: Their number instead; the papers take 5,000.
        year: ``"2014"`` or ``"2017"``.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.

    Raises:
        FileRefused: A file is not there.
        BadData: An annotation file is none.
        BadOption: There is no such year.
    """
    if year not in ("2014", "2017"):
        raise BadOption(f"year is {year!r}; it must be 2014 or 2017.")
    root = _root(path, "annotations", "the folder that holds annotations and the images")
    train, test = (_coco_part(root, f"{part}{year}", size, fit) for part in ("train", "val"))
    if train.classes != test.classes:
        raise BadData(f"the annotations of train{year} and val{year} in {root} have different categories.")
    return splits(
        train,
        test,
        train.classes or (),
        seed=seed,
        clean_share=clean_share,
        clean_count=_papers_count(len(train), clean_share, clean_count),
        flip=True,
        attack_hints={"rate": 0.015},
    )


def _root(path: str | Path | None, child: str, words: str) -> Path:
    if path is None:
        raise FileRefused(f"no path; give {words}. Nothing is downloaded.")
    root = Path(path)
    if root.name == child and root.is_dir():
        return root.parent
    if not (root / child).is_dir():
        raise FileRefused(f"there is no {child} in {root}; give {words}.")
    return root


def _papers_count(total: int, share: float | None, count: int | None) -> int | None:
    """5,000 as in NFT and FIP where nothing else is asked and as many are left."""
    return _CLEAN if share is None and count is None and total >= 2 * _CLEAN else count


def _joined(parts: Sequence[Batch]) -> Batch:
    return Batch(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        tuple(name for part in parts for name in part.names or ()),
        parts[0].classes,
        tuple(dict.fromkeys(notice for part in parts for notice in part.notices)),
    )


def _voc_part(root: Path, year: str, part: str, size: int, fit: str, difficult: bool) -> Batch:
    base = root / "VOCdevkit" / f"VOC{year}"
    listing = base / "ImageSets" / "Main" / f"{part}.txt"
    if not listing.is_file():
        raise FileRefused(f"there is no {listing}; VOC {year} {part} needs it, so unpack that archive there.")
    names = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
    rows = torch.zeros(len(names), len(VOC_CLASSES), dtype=torch.int64)
    for place, name in enumerate(names):
        notes = path_below(base / "Annotations", f"{name}.xml", listing)
        for label, is_difficult in _objects(notes):
            if label not in VOC_CLASSES:
                raise BadData(f"{shown(notes)} has an object {shown(label)!r}, which is no class of VOC.")
            if difficult or not is_difficult:
                rows[place, VOC_CLASSES.index(label)] = 1
    files = [path_below(base / "JPEGImages", f"{name}.jpg", listing) for name in names]
    called = tuple(f"VOC{year}/{shown(name)}.jpg" for name in names)
    images = decode(files, names=called, size=size, fit=fit)
    return Batch(images.pixels, rows, called, VOC_CLASSES, images.notices)


def _objects(notes: Path) -> list[tuple[str, bool]]:
    """Name of each object in a file of annotations, and whether it is marked difficult."""
    text = read_text(notes)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # what XML bombs and references to other files are made of
        raise BadData(f"{shown(notes)} declares a document type, which no file of VOC does; fetch it again.")
    with reading(shown(notes), "fetch it again"):
        tree = ET.fromstring(text)  # noqa: S314 - without a document type it refers to nothing
    return [
        ((item.findtext("name") or "").strip(), (item.findtext("difficult") or "0").strip() == "1")
        for item in tree.iter("object")
    ]


def _coco_part(root: Path, part: str, size: int, fit: str) -> Batch:
    file = root / "annotations" / f"instances_{part}.json"
    if not file.is_file():
        raise FileRefused(f"there is no {file}; unpack the annotations of COCO there.")
    notes = read_json(file)
    try:
        categories = sorted(notes["categories"], key=lambda item: int(item["id"]))
        pictures = sorted(notes["images"], key=lambda item: int(item["id"]))
        classes = tuple(str(item["name"]) for item in categories)
        names = tuple(str(item["file_name"]) for item in pictures)
        pairs = _shown_classes(notes["annotations"], pictures, categories)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadData(f"{file} is no COCO instances file: {error!r}.") from error
    check_classes(file, len(classes))
    check_bytes(f"the label rows of {file}", len(names) * len(classes) * 8)
    rows = torch.zeros(len(names), len(classes), dtype=torch.int64)
    for place, column in pairs:
        rows[place, column] = 1
    images = decode([path_below(root / part, name, file) for name in names], names=names, size=size, fit=fit)
    return Batch(images.pixels, rows, tuple(map(shown, names)), tuple(map(shown, classes)), images.notices)


def _shown_classes(notes: Any, pictures: Sequence[Any], categories: Sequence[Any]) -> set[tuple[int, int]]:
    """Places of images with the columns of the classes that they show."""
    column = {int(item["id"]): place for place, item in enumerate(categories)}
    place_of = {int(item["id"]): place for place, item in enumerate(pictures)}
    return {(place_of[int(item["image_id"])], column[int(item["category_id"])]) for item in notes}
