"""Between a file and whatever parses it: what it declares is looked at before memory is taken, and one kind of error.

Nobody vouches for the files that this library reads. Every reader goes through this module, so that a broken, huge or
hostile file ends in a `BadData`, `TooLarge` or `FileRefused` that names it and says what to do.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from unbackdoor.errors import BadData, BadOption, FileRefused, TooLarge, UnbackdoorError
from unbackdoor.spelling import did_you_mean

__all__ = [
    "Limits",
    "check_bytes",
    "check_classes",
    "check_file",
    "check_zip",
    "limited",
    "limits",
    "path_below",
    "read_json",
    "read_npy",
    "read_npz",
    "read_text",
    "reading",
    "shown",
]

_REPLACE = "remove or replace it"
_HARMLESS = 2**26
"""Bytes that may be unpacked from however little: an honest array of zeros packs as well as a bomb."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may ask for before it is refused as `TooLarge`; change them with `limited`.

    Attributes:
        memory: Bytes that what is read of one file may take, once unpacked.
        ratio: How many times larger than the file that may be; honest files of numbers stay far below it.
        pixels: Of one picture or frame.
        frames: Of one clip.
        classes: Number of classes that labels may name.
        text: Bytes of one file of text, such as a card or a list of labels.
    """

    memory: int = 16 * 2**30
    ratio: int = 1000
    pixels: int = 100_000_000
    frames: int = 1_000_000
    classes: int = 100_000
    text: int = 2**30

    def __post_init__(self) -> None:
        """Refuse what is no positive whole number."""
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadOption(f"the limit {name} is {value!r}; it must be a whole number of at least 1.")


_LIMITS: ContextVar[Limits] = ContextVar("limits", default=Limits())  # noqa: B039 - frozen


def limits() -> Limits:
    """The limits that hold here; ask before threads are started, which do not inherit them."""
    return _LIMITS.get()


@contextmanager
def limited(**changes: int) -> Iterator[Limits]:
    """Other limits inside, such as ``limited(pixels=500_000_000)``.

    Raises:
        BadOption: There is no such limit, or its value is no positive whole number.
    """
    known = [field.name for field in fields(Limits)]
    for name in changes:
        if name not in known:
            raise BadOption(f"there is no limit {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}")
    before = _LIMITS.set(replace(_LIMITS.get(), **changes))
    try:
        yield _LIMITS.get()
    finally:
        _LIMITS.reset(before)


@contextmanager
def reading(what: str | Path, advice: str = _REPLACE) -> Iterator[None]:
    """Whatever a parser raises inside becomes one error that names ``what`` and ends with ``advice``.

    Errors of this library pass as they are. Interruptions pass too, but for the panic of a parser in Rust.

    Args:
        what: The file, or the file and the entry in it.
        advice: What the user can do, as half a line without a full stop.

    Raises:
        FileRefused: The operating system refused.
        TooLarge: There is not the memory for it.
        BadData: Anything else.
    """
    what = shown(what)
    try:
        yield
    except (UnbackdoorError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise TooLarge(f"there is not the memory to read {what}; give a smaller file.") from error
    except OSError as error:
        if error.errno is not None:
            raise FileRefused(f"cannot read {what}: {error.strerror or error}.") from error
        raise _unreadable(what, error, advice) from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unreadable(what, error, advice) from error


def _unreadable(what: str | Path, error: BaseException, advice: str) -> BadData:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return BadData(f"{what} cannot be read ({reason}); {advice}.")


def shown(name: str | Path) -> str:
    """A name out of a file or folder as it may stand in a message: on one line, without control characters."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(name))


def check_file(path: str | Path, *, what: str = "file", at_most: int | None = None) -> Path:
    """``path`` itself, if a regular file lies there; devices, pipes and folders are refused before they are opened.

    Args:
        path: Links are followed.
        what: How to call it in a message.
        at_most: Largest size in bytes; None leaves it to the reader.

    Raises:
        FileRefused: There is none, or it is no regular file.
        TooLarge: It is larger.
    """
    path = Path(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise FileRefused(f"no {what} at {shown(path)} ({reason}); check the path.") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
        raise FileRefused(f"{shown(path)} is {kind}; give a regular file.")
    if at_most is not None and found.st_size > at_most:
        raise TooLarge(
            f"{shown(path)} has {found.st_size:,} bytes, but a {what} may have {at_most:,}; give a smaller one."
        )
    return path


def path_below(folder: str | Path, name: str, where: str | Path) -> Path:
    """The file that a list of files in ``folder`` means by ``name``; links are followed later, as those of a user.

    Args:
        folder: What names count from.
        name: As the list has it.
        where: How to call the list in a message.

    Raises:
        FileRefused: It leads out of ``folder``.
    """
    root = os.path.abspath(folder)  # noqa: PTH100 - resolve() would follow links
    path = Path(os.path.abspath(os.path.join(root, name)))  # noqa: PTH100, PTH118
    if not path.is_relative_to(root):
        raise FileRefused(
            f"{shown(where)} names {shown(name)}, outside {shown(folder)}; give a folder that holds both."
        )
    return path


def check_bytes(what: str | Path, needed: int, stored: int | None = None) -> None:
    """Refuse what would take more memory than `Limits` allow, or far more than a file of ``stored`` bytes can mean.

    Args:
        what: The file, or the file and the entry in it.
        needed: Bytes that it declares.
        stored: Bytes that they are packed in; None where packing is not in question.

    Raises:
        TooLarge: Names the limit.
    """
    allowed = limits()
    if needed > allowed.memory:
        raise TooLarge(
            f"{shown(what)} declares {needed:,} bytes, but {allowed.memory:,} are allowed (the limit 'memory'); "
            "give fewer or smaller samples, or raise the limit if you trust the file."
        )
    if stored is not None and needed > _HARMLESS and needed > allowed.ratio * max(stored, 1):
        raise TooLarge(
            f"{shown(what)} unpacks to {needed:,} bytes from {stored:,}, more than {allowed.ratio:,} times its size "
            "(the limit 'ratio'); fetch it again, or raise the limit if you trust the file."
        )


def check_classes(what: str | Path, count: int) -> int:
    """``count`` itself, the number of classes that labels name, if it is not beyond `Limits.classes`.

    Raises:
        TooLarge: It is, as one wrong label in a file makes it.
    """
    allowed = limits().classes
    if count > allowed:
        raise TooLarge(
            f"the largest label in {shown(what)} is {count - 1:,}, but {allowed:,} classes are allowed (the limit "
            "'classes'); check that labels are class numbers from 0."
        )
    return count


def check_zip(path: str | Path, file: zipfile.ZipFile) -> None:
    """Refuse an archive whose entries declare more than the limits allow; nothing is unpacked.

    Raises:
        TooLarge: See `check_bytes`.
    """
    entries = file.infolist()
    check_bytes(path, sum(entry.file_size for entry in entries))
    for entry in entries:
        check_bytes(f"{path} ({entry.filename})", entry.file_size, entry.compress_size)


def read_npz(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays by name of an ``.npz`` file; nothing is unpickled.

    Raises:
        BadData: It cannot be read.
        TooLarge: It declares more than the limits allow.
        FileRefused: There is no such file.
    """
    path = check_file(path)
    with reading(path, "save plain arrays with np.savez"), zipfile.ZipFile(path) as archive:
        check_zip(path, archive)
        found = {}
        for entry in archive.namelist():
            with archive.open(entry) as file:
                found[entry.removesuffix(".npy")] = _array(f"{path} ({entry})", file)
        return found


def read_npy(path: str | Path) -> np.ndarray[Any, Any]:
    """The array of an ``.npy`` file; nothing is unpickled.

    Raises:
        BadData: It cannot be read.
        TooLarge: It declares more than the limits allow.
        FileRefused: There is no such file.
    """
    path = check_file(path)
    with reading(path, "save a plain array with np.save"), path.open("rb") as file:
        return _array(path, file)


def _array(what: str | Path, file: Any) -> np.ndarray[Any, Any]:
    what = shown(what)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise BadData(f"{what} is an array of format {version}, which is not known; save it again with np.save.")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read(file)
    if dtype.hasobject:
        raise BadData(f"{what} holds Python objects and cannot be read without unpickling; save plain numbers.")
    if min(shape, default=0) < 0:
        raise BadData(f"{what} declares the shape {shape}; save it again with np.save.")
    count = 1
    for side in shape:
        count *= int(side)
    check_bytes(what, count * dtype.itemsize)
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise BadData(f"{what} ends too early: {len(content):,} of {count * dtype.itemsize:,} bytes; fetch it again.")
    array = np.frombuffer(content, dtype=dtype, count=count)
    return (array.reshape(shape[::-1]).T if by_column else array.reshape(shape)).copy()


def read_text(path: str | Path, *, what: str = "file") -> str:
    """The text of a file in UTF-8, unpacked where its name ends in ``.gz``.

    Raises:
        BadData: It is no text.
        TooLarge: It is longer than `Limits.text`.
        FileRefused: There is no such file.
    """
    allowed = limits().text
    path = check_file(path, what=what, at_most=allowed)
    with reading(path, "save it as UTF-8 text"):
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(allowed + 1)
        if len(content) > allowed:
            raise TooLarge(
                f"{shown(path)} unpacks to more than {allowed:,} bytes (the limit 'text'); give a smaller file."
            )
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=None).read().removeprefix("\ufeff")


def read_json(path: str | Path, *, what: str = "file") -> Mapping[str, Any]:
    """The object in a file of JSON.

    Raises:
        BadData: It is no JSON, or no object.
        TooLarge: See `read_text`.
        FileRefused: There is no such file.
    """
    text = read_text(path, what=what)
    with reading(path, "write it anew"):
        content = json.loads(text)
    if not isinstance(content, dict):
        raise BadData(f"{shown(path)} holds a {type(content).__name__}; a {what} must be a JSON object.")
    return content
