"""Pascal VOC and MS-COCO from their official folders, with image-level labels from their object annotations."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.kit import Splits
from unbackdoor_multilabel.data.images import decode, fitted, stack
from unbackdoor_multilabel.data.splitting import Labelled, splits

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
    train: Labelled = (torch.cat([images for images, _ in parts]), torch.cat([rows for _, rows in parts]))
    test = _voc_part(root, *tested, size, fit, difficult)
    return splits(
        train,
        test,
        VOC_CLASSES,
        seed=seed,
        clean_share=clean_share,
        clean_count=_papers_count(len(train[1]), clean_share, clean_count),
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
    train_images, train_rows, classes = _coco_part(root, f"train{year}", size, fit)
    test_images, test_rows, test_classes = _coco_part(root, f"val{year}", size, fit)
    if test_classes != classes:
        raise BadData(f"the annotations of train{year} and val{year} in {root} have different categories.")
    return splits(
        (train_images, train_rows),
        (test_images, test_rows),
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=_papers_count(len(train_rows), clean_share, clean_count),
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


def _voc_part(root: Path, year: str, part: str, size: int, fit: str, difficult: bool) -> Labelled:
    reader = importlib.import_module("torchvision.datasets").VOCDetection
    try:
        found = reader(str(root), year=year, image_set=part, download=False)
        rows = torch.zeros(len(found), len(VOC_CLASSES), dtype=torch.int64)

        def read(place: int) -> Any:
            image, notes = found[place]
            rows[place] = _voc_row(notes["annotation"].get("object", []), difficult, str(found.images[place]))
            return fitted(image, size, fit)

        return stack(read, len(found), size, fit), rows
    except (RuntimeError, OSError) as error:
        raise FileRefused(f"VOC {year} {part} cannot be read in {root / 'VOCdevkit'}: {error}.") from error


def _voc_row(objects: Iterable[Any], difficult: bool, name: str) -> torch.Tensor:
    row = torch.zeros(len(VOC_CLASSES), dtype=torch.int64)
    for item in objects:
        if item["name"] not in VOC_CLASSES:
            raise BadData(f"{name} has an object {item['name']!r}, which is no class of VOC.")
        if difficult or item.get("difficult", "0") != "1":
            row[VOC_CLASSES.index(item["name"])] = 1
    return row


def _coco_part(root: Path, part: str, size: int, fit: str) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    file = root / "annotations" / f"instances_{part}.json"
    if not file.is_file():
        raise FileRefused(f"there is no {file}; unpack the annotations of COCO there.")
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
        categories = sorted(notes["categories"], key=lambda item: int(item["id"]))
        column = {int(item["id"]): place for place, item in enumerate(categories)}
        pictures = sorted(notes["images"], key=lambda item: int(item["id"]))
        place_of = {int(item["id"]): place for place, item in enumerate(pictures)}
        rows = torch.zeros(len(pictures), len(categories), dtype=torch.int64)
        for item in notes["annotations"]:
            rows[place_of[int(item["image_id"])], column[int(item["category_id"])]] = 1
        names = tuple(str(item["name"]) for item in categories)
        files = [root / part / str(item["file_name"]) for item in pictures]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{file} is no COCO instances file: {error!r}.") from error
    return decode(files, size=size, fit=fit), rows, names
