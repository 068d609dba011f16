"""The one opener of image files: a closed list of kinds, bounded sizes, upright pictures, eight bits a channel."""

from __future__ import annotations

import importlib
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbackdoor.errors import BadData, TooLarge
from unbackdoor.files.reading import check_file, limits, reading, shown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ENDINGS", "open_image"]

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Of the files that are taken for images."""

_KINDS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "WEBP": (b"RIFF",),
    "PPM": tuple(b"P%d" % number for number in range(1, 7)),
}
"""First bytes of the kinds that are read. PostScript, PDF and metafiles are none: Pillow runs programs for some."""

_CLASSES = {
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "WEBP": ("WebPImagePlugin", "WebPImageFile"),
    "PPM": ("PpmImagePlugin", "PpmImageFile"),
}

_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def open_image(
    source: bytes | Path, *, name: str | None = None, channels: int = 3, pixels: int | None = None, shrink: int = 0
) -> Image:
    """One image as RGB or grey, upright as its EXIF orientation says.

    The first picture of an animation is read. Sixteen bits become eight (divided by 257). A transparent pixel keeps
    the colour that is stored under it, as ``convert`` of Pillow and so torchvision's loaders leave it.

    Args:
        source: The contents of an image file, or its path.
        name: How to call it in a message; None takes the path.
        channels: 3 for RGB, 1 for grey.
        pixels: Most pixels that it may have; None takes the limit that holds here. Threads do not inherit limits, so
            ask for it before they are started.
        shrink: A side in pixels; a JPEG may be decoded at the smallest fraction of its size that is not below it.

    Returns:
        The image; its ``info`` says whether it is one of several (``"animated"``) and whether it was ``"turned"``.

    Raises:
        BadData: It is no image of a kind that is read, or damaged, or has no clear range of values.
        TooLarge: It has more pixels.
        FileRefused: There is no such file, or it is no regular file.
    """
    called = shown(name if name is not None else "an image" if isinstance(source, bytes) else source)
    allowed = limits().pixels if pixels is None else pixels
    with ExitStack() as held:
        held.enter_context(reading(called))
        held.enter_context(_no_warnings_of_pillow())
        file = io.BytesIO(source) if isinstance(source, bytes) else held.enter_context(check_file(source).open("rb"))
        return _read(file, called, "RGB" if channels == 3 else "L", allowed, shrink)


def _read(file: Any, name: str, mode: str, allowed: int, shrink: int) -> Image:
    from PIL import Image

    kind = _kind(file.read(16))
    if kind is None:
        raise BadData(f"{name} is no image of a kind that is read ({', '.join(_KINDS)}); remove or replace it.")
    file.seek(0)
    plugin, cls = _CLASSES[kind]
    try:
        image = getattr(importlib.import_module(f"PIL.{plugin}"), cls)(file)
        if image.width * image.height > allowed:
            raise _too_large(name, f"{image.width} x {image.height} pixels", allowed)
        animated = bool(getattr(image, "is_animated", False))
        if shrink:
            image.draft("RGB", (shrink, shrink))
        image.load()
        turn = _TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(Image.Transpose[turn])
        plain: Image.Image = _eight_bits(upright, name, kind).convert(mode)
    except Image.DecompressionBombError as error:  # of a frame or tile beyond the picture
        raise _too_large(name, "parts far larger than itself", allowed) from error
    if not plain.width or not plain.height:
        raise BadData(f"{name} is an image without pixels; remove or replace it.")
    plain.info = {"animated": animated, "turned": turn is not None}
    return plain


def _kind(start: bytes) -> str | None:
    found = next((kind for kind, signs in _KINDS.items() if start.startswith(signs)), None)
    return None if found == "WEBP" and start[8:12] != b"WEBP" else found


def _too_large(name: str, has: str, allowed: int) -> TooLarge:
    return TooLarge(
        f"{name} has {has}, but {allowed:,} pixels are allowed (the limit 'pixels'); give smaller images, or raise the "
        "limit if you trust the file."
    )


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF says nothing, and the pixels are whole all the same
        return 1


def _eight_bits(image: Image, name: str, kind: str) -> Image:
    """Modes of Pillow that ``convert`` would clip to white, scaled to 0..255."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(((levels.clip(0, 65535) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind_of_number = "whole numbers of 32 bits" if image.mode == "I" else "floating-point numbers"
        raise BadData(
            f"{name} holds {kind_of_number}, whose black and white are not known; save it with 8 or 16 bits a channel."
        )
    return image


_LOCK = threading.Lock()
_QUIET = ExitStack()
_INSIDE: list[int] = []


@contextmanager
def _no_warnings_of_pillow() -> Iterator[None]:
    """Pillow warns of oddities that change no pixel, such as damaged EXIF; nobody can do anything about those.

    Filters of warnings are global: the first thread that enters sets them, the last one that leaves restores them.
    """
    with _LOCK:
        if not _INSIDE:
            _QUIET.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _INSIDE.append(threading.get_ident())
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE.remove(threading.get_ident())
            if not _INSIDE:
                _QUIET.close()
