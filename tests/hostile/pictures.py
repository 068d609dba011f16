"""Honest pictures and tables of them, made at run time, to be damaged."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

__all__ = ["PICTURE", "encoded", "honest_files", "table", "written"]

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray[Any, Any] | Image.Image = PICTURE, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **options)
    return out.getvalue()


def honest_files() -> dict[str, bytes]:
    """A small file of each kind that is read, some with EXIF data, a palette, several frames or sixteen bits."""
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = (PICTURE[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    frames = [Image.fromarray(PICTURE[..., place]) for place in range(3)]
    return {
        "a.jpg": encoded(kind="JPEG", exif=turned, quality=80),
        "cmyk.jpeg": encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"),
        "a.png": encoded(),
        "palette.png": encoded(Image.fromarray(PICTURE).quantize(7), transparency=b"\x10\x00"),
        "deep.png": encoded(grey),
        "a.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "a.bmp": encoded(kind="BMP"),
        "a.tif": encoded(kind="TIFF", compression="tiff_lzw"),
        "deep.tiff": encoded(grey, "TIFF"),
        "a.webp": encoded(kind="WEBP", lossless=True),
        "a.ppm": encoded(kind="PPM"),
        "a.pgm": encoded(PICTURE[..., 0], "PPM"),
    }


def table(
    labels: Sequence[Any],
    pictures: Sequence[Any] | None = None,
    *,
    metadata: dict[str, Any] | None = None,
    **columns: Any,
) -> pa.Table:
    """A table of pictures with labels, as the Hub has them."""
    cells = [encoded(PICTURE + np.uint8(place)) for place in range(len(labels))] if pictures is None else pictures
    rows = [{"bytes": cell, "path": f"{place}.png"} for place, cell in enumerate(cells)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    made = pa.table({"image": pa.array(rows, kind), "label": labels, **columns})
    return made.replace_schema_metadata({name: json.dumps(value) for name, value in (metadata or {}).items()})


def written(made: pa.Table, **options: Any) -> bytes:
    """The bytes of a Parquet file."""
    out = io.BytesIO()
    pq.write_table(made, out, **options)
    return out.getvalue()
