"""The one opener of image files: a closed list of kinds, bounded sizes, upright pictures, eight bits a channel."""

from __future__ import annotations

import importlib
import io
import os
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption, TooLarge
from unbackdoor.reading import check_bytes, check_file, limits, reading, shown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ENDINGS", "FITS", "Decoded", "check_size", "decode", "fitted", "open_image"]

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Of the files that are taken for images."""

FITS = ("stretch", "crop")

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
_SHOWN = 3


@dataclass(frozen=True)
class Decoded:
    """Images of one size.

    Attributes:
        pixels: ``uint8`` of shape ``(n, channels, height, width)``.
        notices: What the user should know of them, a sentence each.
    """

    pixels: Tensor
    notices: tuple[str, ...] = ()


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


def decode(
    sources: Sequence[bytes | Path],
    *,
    names: Sequence[str] | None = None,
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    shrink: bool = False,
) -> Decoded:
    """Decode all images by a pool of threads.

    Args:
        sources: Contents of image files, or their paths.
        names: How to call each in a message.
        size: Side in pixels of the square result; None asks that all images have one size already.
        fit: ``"stretch"`` resizes the whole image; ``"crop"`` resizes the shorter side and cuts out the centre.
        channels: 3 for RGB, 1 for grey.
        shrink: Whether a JPEG may be decoded at a fraction of its size, which is faster and a little less sharp.

    Raises:
        BadData: There is no image, one cannot be read, or sizes differ and ``size`` is None.
        BadOption: ``size``, ``fit`` or ``channels`` is not allowed.
        TooLarge: An image, or all of them together, exceed the limits.
    """
    _check_look(size, fit, channels)
    if not sources:
        raise BadData("there are no images; check the path.")
    allowed = limits().pixels
    animated: set[str] = set()
    turned: set[str] = set()

    def called(place: int) -> str:
        source = sources[place]
        return names[place] if names is not None else f"image {place}" if isinstance(source, bytes) else str(source)

    def read(place: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        name = called(place)
        side = size if shrink and size is not None else 0
        image = open_image(sources[place], name=name, channels=channels, pixels=allowed, shrink=side)
        for told, group in (("animated", animated), ("turned", turned)):
            if image.info[told]:
                group.add(name)
        return fitted(image, size, fit)

    first = read(0)
    check_bytes(f"the pixels of all {len(sources):,} images", len(sources) * first.nbytes)
    with reading("the images", "give fewer or smaller images"):
        out = np.empty((len(sources), *first.shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for place in range(start, min(start + 64, len(sources))):
            pixels = read(place)
            if pixels.shape != first.shape:
                one, other = (f"{side.shape[1]} x {side.shape[0]}" for side in (first, pixels))
                raise BadData(
                    f"images differ in size ({one} in {shown(called(0))}, {other} in {shown(called(place))}); give "
                    "size=... to bring them to one."
                )
            out[place] = pixels

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(fill, range(0, len(sources), 64)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a hundred thousand more need not be decoded to say so
            raise
    pixels = torch.from_numpy(out).reshape(*out.shape[:3], channels).permute(0, 3, 1, 2).contiguous()
    return Decoded(pixels, _notices(animated, turned))


def _check_look(size: int | None, fit: str, channels: int) -> None:
    if fit not in FITS:
        raise BadOption(f"fit is {fit!r}; it must be one of {', '.join(FITS)}.")
    if channels not in (1, 3):
        raise BadOption(f"channels is {channels}; images are read as RGB (3) or grey (1).")
    check_size(size)


def check_size(size: int | None) -> None:
    """Refuse a side in pixels that is no whole number, not positive, or beyond the limit of pixels.

    Raises:
        BadOption: It is.
    """
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size * size > limits().pixels:
        raise BadOption(
            f"size is {size!r}; the side in pixels must be a whole number of at least 1, and its square within the "
            f"limit 'pixels' ({limits().pixels:,})."
        )


def fitted(image: Image, size: int | None, fit: str = "stretch") -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of an image of `open_image`, ``(height, width)`` or ``(height, width, 3)``.

    Args:
        image: RGB or grey.
        size: Side in pixels of a square; None keeps the image's own.
        fit: See `decode`.
    """
    from PIL import Image, ImageOps

    if size is not None and image.size != (size, size):
        if fit == "crop":
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        else:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _notices(animated: Collection[str], turned: Collection[str]) -> tuple[str, ...]:
    found = []
    if animated:
        found.append(f"{_counted(animated)} hold several pictures; the first of each was read.")
    if turned:
        found.append(f"{_counted(turned)} were turned upright, as the orientation in their EXIF data says.")
    return tuple(found)


def _counted(names: Collection[str]) -> str:
    listed = ", ".join(shown(name) for name in sorted(names)[:_SHOWN])
    return f"{len(names)} image file(s) ({listed}{', ...' if len(names) > _SHOWN else ''})"
