"""The opener of image files: which kinds it takes, what a pixel is worth, which way is up, and what is too large."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile.pictures import PICTURE, encoded, honest_files
from PIL import Image, ImageOps

from unbackdoor.errors import BadData, BadOption, FileRefused, TooLarge
from unbackdoor.files.reading import limited
from unbackdoor.testing import check_reader
from unbackdoor_pixels.decoding import ENDINGS, decode, open_image

WHOLE = {name: content for name, content in honest_files().items() if name.split(".")[0] == "a"}
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(a) show\nshowpage\n"
OTHERS = {
    "eps": POSTSCRIPT,
    "eps behind a preview": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<6I", 30, len(POSTSCRIPT), 0, 0, 0, 0)
    + b"\0\0"
    + POSTSCRIPT,
    "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "wmf": b"\xd7\xcd\xc6\x9a" + b"\0" * 40,
    "emf": b"\x01\0\0\0" + b"\0" * 36 + b" EMF" + b"\0" * 60,
    "fits": b"SIMPLE  =                    T" + b" " * 2850,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "html": b"<!DOCTYPE html><html>",
    "xpm": b'/* XPM */\nstatic char *a[] = {"1 1 1 1","a c red","a"};',
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "riff without webp": b"RIFF\x10\0\0\0WAVEfmt ",
    "nothing": b"",
}


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", WHOLE)
def test_every_kind_gives_the_pixels_that_pillow_gives(name: str) -> None:
    found = open_image(WHOLE[name])
    with Image.open(io.BytesIO(WHOLE[name])) as image:
        wanted = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.asarray(found), np.asarray(wanted))
    assert Path(name).suffix in ENDINGS


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_refused_whatever_their_name_says(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "innocent.png"
    path.write_bytes(OTHERS[kind])
    for source in (path, OTHERS[kind]):
        with pytest.raises(BadData, match=r"no image of a kind that is read \(JPEG, PNG"):
            open_image(source)


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*given: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(os, "system", started)
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    with pytest.raises(BadData):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(kind=kind, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        wanted = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.asarray(open_image(content)), np.asarray(wanted))


def test_damaged_exif_is_passed_over_without_a_warning() -> None:
    content = encoded(kind="PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(open_image(content)), PICTURE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str, channels: int) -> None:
    levels = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    found = np.asarray(open_image(encoded(levels, kind), channels=channels)).astype(float)
    assert np.abs(found.reshape(6, 8, -1) - levels[..., None] / 257).max() <= 0.5
    assert found.min() == 0
    assert found.max() == 255


@pytest.mark.parametrize("levels", [np.zeros((4, 4), np.float32), np.full((4, 4), 70000, np.int32)])
def test_numbers_without_a_range_are_refused(levels: np.ndarray) -> None:
    with pytest.raises(BadData, match=r"x\.tif .*8 or 16 bits"):
        open_image(encoded(levels, "TIFF"), name="x.tif")


def test_transparent_pixels_keep_their_colour_as_torchvision_reads_them() -> None:
    alpha = np.dstack([PICTURE, np.zeros((6, 8), np.uint8)])
    assert np.array_equal(np.asarray(open_image(encoded(alpha))), PICTURE)
    palette = Image.fromarray(PICTURE).quantize(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_image(encoded(palette, transparency=bytes(range(16))))
    assert np.array_equal(np.asarray(found), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGB", "RGBA", "YCbCr"])
def test_every_colour_space_becomes_rgb_or_grey(mode: str) -> None:
    content = encoded(Image.fromarray(PICTURE).convert(mode), "TIFF")
    assert open_image(content).mode == "RGB"
    assert open_image(content, channels=1).mode == "L"


def test_an_image_beyond_the_limit_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(TooLarge, match=r"bomb\.png has 20000 x 10000 pixels, but 100,000,000 .*the limit 'pixels'"):
        open_image(png_header(20_000, 10_000), name="bomb.png")
    with limited(pixels=47), pytest.raises(TooLarge):
        open_image(encoded())
    with limited(pixels=48):
        assert open_image(encoded()).size == (8, 6)
    with limited(pixels=1_000_000_000), pytest.raises(BadData, match="cannot be read") as caught:
        open_image(png_header(20_000, 10_000))  # Pillow's own limit, which is global, is out of the way
    assert not isinstance(caught.value, TooLarge)


def test_threads_keep_the_limit_of_who_starts_them() -> None:
    with limited(pixels=47), pytest.raises(TooLarge):
        decode([encoded()] * 3)


@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WHOLE[name][: len(WHOLE[name]) // 2])
    with pytest.raises(BadData, match=name):
        open_image(tmp_path / name)


def test_odd_paths_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "device.png", "loop.png", "folder.png", "missing.png"):
        with pytest.raises(FileRefused, match=name):
            open_image(tmp_path / name)


def test_names_in_messages_cannot_move_the_cursor() -> None:
    with pytest.raises(BadData) as caught:
        open_image(b"x", name="\x1b[2J\n.png")
    assert str(caught.value).isprintable()


def test_decoding_tells_what_was_turned_and_what_was_left_out() -> None:
    files = honest_files()
    found = decode([files["a.jpg"], files["a.gif"]], names=["a.jpg", "a.gif"], size=4)
    assert found.pixels.shape == (2, 3, 4, 4)
    assert found.pixels.dtype is torch.uint8
    told = " ".join(found.notices)
    assert "several pictures the first was read: a.gif." in told
    assert "Turned upright, as the orientation in their EXIF data says: a.jpg." in told


def test_a_jpeg_may_be_shrunk_while_it_is_decoded() -> None:
    content = encoded(np.full((64, 64, 3), 77, np.uint8), "JPEG")
    assert open_image(content, shrink=8).size == (8, 8)
    whole, shrunk = (decode([content], size=8, shrink=shrink).pixels for shrink in (False, True))
    assert int((whole.int() - shrunk.int()).abs().max()) <= 1


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 10**9}, {"size": True}, {"fit": "pad"}, {"channels": 2}])
def test_options_that_are_not_allowed_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        decode([encoded()], **options)  # type: ignore[arg-type]


def test_images_of_several_sizes_need_one() -> None:
    with pytest.raises(BadData, match=r"8 x 6 in a\.png, 3 x 2 in b\.png.*give size="):
        decode([encoded(), encoded(PICTURE[:2, :3])], names=["a.png", "b.png"])
    with limited(memory=100), pytest.raises(TooLarge, match="all 9 images"):
        decode([encoded()] * 9)


def test_filters_of_warnings_are_as_they_were_after_many_threads() -> None:
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: decode([encoded()] * 200, size=3)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize("name", honest_files())
@pytest.mark.parametrize("count", [200, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_images_end_in_one_error(name: str, count: int, tmp_path: Path) -> None:
    with limited(pixels=1_000_000):
        check_reader(open_image, {name: honest_files()[name]}, tmp_path, count=count)
