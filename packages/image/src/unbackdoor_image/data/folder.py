"""Image files in one folder for each class."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.kit import Splits
from unbackdoor_image.data.decoding import decode
from unbackdoor_image.data.splitting import Labelled, splits

__all__ = ["folder", "read_folder"]

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_PARTS = ("test", "val", "valid", "validation")
_ORDERS = ("text", "number")


def folder(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    flip: bool = False,
    test_share: float = 0.2,
    order: str | None = None,
) -> Splits:
    """Class sub-folders as torchvision's ``ImageFolder`` reads them, with or without ``train`` and ``test`` above.

    Args:
        seed: Of the split.
        path: The folder that holds one folder for each class, or ``train`` and ``test`` (or ``val``).
        clean_share: Share of the training part that the defender holds; None means 1 %.
        clean_count: Their number instead.
        size: Side in pixels; None asks that all images have one size.
        fit: ``"stretch"`` or ``"crop"``.
        channels: 3 for RGB, 1 for grey.
        flip: Whether mirrored images keep their class; becomes a hint.
        test_share: Share of the test part where there is no folder for it.
        order: See `read_folder`.

    Raises:
        FileRefused: There is no such folder.
        BadData: It holds no class folders, or images cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the folder that holds one folder of images for each class.")
    root = Path(path)
    tests = [root / part for part in _PARTS if (root / part).is_dir()]
    nested = bool(tests) and (root / "train").is_dir()
    look = (size, fit, channels)
    images, labels, classes = read_folder(root / "train" if nested else root, *look, order=order)
    test: Labelled | None = None
    if nested:
        test_images, test_labels, _ = read_folder(tests[0], *look, classes=classes)
        test = (test_images, test_labels)
    return splits(
        (images, labels),
        test,
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        flip=flip,
    )


def read_folder(
    root: Path,
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    *,
    classes: tuple[str, ...] | None = None,
    order: str | None = None,
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """All images below the class folders of ``root``, their labels and the class names.

    Args:
        root: Holds one folder for each class.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        channels: 3 or 1.
        classes: All class names in the order of the model's outputs; folders may then be missing.
        order: How folders whose names are numbers become labels: ``"text"`` sorts them as torchvision does (0, 1, 10,
            2), ``"number"`` takes the number itself. None is refused where the two differ.

    Raises:
        FileRefused: There is no such folder.
        BadData: There are no class folders, one is not among ``classes``, or the order is in doubt.
        BadOption: ``order`` is not known.
    """
    if order not in (None, *_ORDERS):
        raise BadOption(f"order is {order!r}; it must be one of {', '.join(_ORDERS)}.")
    if not root.is_dir():
        raise FileRefused(f"no folder at {root}; give one that holds a folder of images for each class.")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = {name: _images_below(root / name) for name in names}
    empty = [name for name, found in files.items() if not found]
    if not names or len(empty) == len(names):
        raise BadData(f"{root} holds no class folders with images ({', '.join(_ENDINGS)}).")
    labels = _labels(names, classes, order, root)
    if classes is None:
        by_number = list(labels.values()) != list(range(len(names)))
        classes = tuple(str(label) for label in range(max(labels.values()) + 1)) if by_number else tuple(names)
    paths = [path for name in names for path in files[name]]
    targets = torch.tensor([labels[name] for name in names for _ in files[name]])
    return decode(paths, size=size, fit=fit, channels=channels), targets, classes


def _images_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())


def _labels(names: list[str], classes: tuple[str, ...] | None, order: str | None, root: Path) -> dict[str, int]:
    if classes is not None:
        strangers = [name for name in names if name not in classes]
        if strangers:
            raise BadData(
                f"folders {', '.join(strangers[:8])} in {root} are not among the classes {', '.join(classes)}."
            )
        return {name: classes.index(name) for name in names}
    as_text = {name: place for place, name in enumerate(names)}
    if not all(name.isdecimal() for name in names):
        return as_text
    as_number = {name: int(name) for name in names}
    if order is None and as_text != as_number:
        raise BadData(
            f"the class folders of {root} are numbers ({', '.join(names[:4])}, ...) whose labels are in doubt: sorted "
            f"as text, as torchvision does, folder {names[-1]} is class {as_text[names[-1]]}; as a number it is class "
            f"{int(names[-1])}. Say which the model was trained with: order='text' or order='number'."
        )
    return as_number if order == "number" else as_text
