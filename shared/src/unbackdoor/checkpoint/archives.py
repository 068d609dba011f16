"""Files of ``torch.save``, opened by `torch.load` once everything that they declare has been looked at."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from unbackdoor.checkpoint.allowed import Allowed, storage
from unbackdoor.checkpoint.kinds import shown
from unbackdoor.checkpoint.pickles import Description, Made, Odd, TooMuch, describe
from unbackdoor.errors import BadData, TooLarge, UnsafeCheckpoint
from unbackdoor.files.reading import check_bytes, check_zip, reading

__all__ = ["CONVERT", "damaged", "read_legacy", "read_zip"]

CONVERT = (
    "If you trust its source, convert it in a sandbox: torch.save(model.state_dict(), 'weights.pt') or "
    "safetensors.torch.save_model(model, 'weights.safetensors'); then give that file"
)
_PICKLES = 5  # magic number, version, machine, content, keys of storages
_MODULE = {"_parameters", "_buffers", "_modules"}
_TENSORS = {
    "sparse_tensor": ("sparse tensors", "store them dense (tensor.to_dense())"),
    "qtensor": ("quantised weights", "give those from before quantisation"),
    "meta_tensor_no_storage": ("tensors without values (on the device 'meta')", "load the weights before saving them"),
    "wrapper_subclass": ("tensors of a class of their own, such as DTensor", "save full, plain tensors"),
}
_LOCK = threading.Lock()


@contextmanager
def damaged(path: Path, advice: str = f"fetch it again. {CONVERT}") -> Iterator[None]:
    """Whatever a reader of weights raises inside becomes one of this library's errors.

    Args:
        path: Of the file.
        advice: What to do, without a full stop.

    Raises:
        UnsafeCheckpoint: The file cannot be read without running code, or is damaged.
        TooLarge: It declares more than the limits allow.
        FileRefused: The operating system refused.
    """
    try:
        with reading(path, advice):
            try:
                yield
            except TooMuch as error:
                raise TooLarge(f"{path} is refused: {error}; fetch it again.") from error
            except Odd as error:
                why = f"{error}, and reading it could run code"
                raise UnsafeCheckpoint(f"{path} is refused: {why}. {CONVERT}.") from error
    except TooLarge:
        raise
    except BadData as error:
        raise UnsafeCheckpoint(str(error)) from error.__cause__


def read_zip(path: Path, stands_in: Callable[[str], bool] = lambda _: False) -> Any:
    """What a file of ``torch.save`` holds: a zip archive with one pickle and one entry for each storage.

    Args:
        path: Of the file.
        stands_in: Classes, by name, in whose place empty stand-ins may come.

    Raises:
        UnsafeCheckpoint: It holds more than tensors and plain values, or is damaged.
        TooLarge: It declares more than the limits allow.
    """
    allowed = Allowed(stands_in)
    with damaged(path), path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            check_zip(path, archive)
            found = _described_zip(path, archive, allowed)
        check_bytes(path, sum(found.tensors.values()), path.stat().st_size)
        _check(path, found)
        file.seek(0)
        return _loaded(file, allowed.substitutes(found))


def _described_zip(path: Path, archive: zipfile.ZipFile, allowed: Allowed) -> Description:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise Odd("two entries of the archive have one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise Odd("its entries are compressed, which torch.save never does")
    (name,) = [name for name in entries if name.split("/", 1)[-1] == "data.pkl"]
    folder = name.removesuffix("data.pkl")
    found = describe(
        io.BytesIO(archive.read(name)), allowed.call, lambda _, given, into: storage(given, into, 5), allowed.known
    )
    for key, size in found.storages.items():
        entry = entries.get(f"{folder}data/{key}")
        if entry is None or entry.file_size != size:
            there = "is not there" if entry is None else f"has {entry.file_size:,} bytes"
            raise BadData(f"{path} is damaged: a tensor needs {size:,} bytes, but its storage {there}; fetch it again.")
    return found


def read_legacy(path: Path, stands_in: Callable[[str], bool] = lambda _: False) -> Any:
    """What a file of ``torch.save`` from before version 1.6 holds: five pickles, and the storages behind them.

    Raises:
        UnsafeCheckpoint: It holds more than tensors and plain values, or is damaged.
        TooLarge: It declares more than the limits allow.
    """
    allowed = Allowed(stands_in)
    with damaged(path), path.open("rb") as file:
        size = path.stat().st_size
        check_bytes(path, size)
        found = Description()
        for place in range(_PICKLES):
            part = describe(file, allowed.call, lambda _, given, into: storage(given, into, 6), allowed.known)
            if place == _PICKLES - 2:
                found = part
            elif part.refused or part.storages:
                raise Odd("its head holds more than plain values")
        needed = sum(8 + stored for stored in found.storages.values())
        if needed > size - file.tell():
            raise BadData(f"{path} is damaged: its tensors need {needed:,} bytes and {size - file.tell():,} follow; "
                          "fetch it again.")  # fmt: skip
        check_bytes(path, sum(found.tensors.values()), size)
        _check(path, found)
        file.seek(0)
        return _loaded(file, allowed.substitutes(found))


def _loaded(file: IO[bytes], substitutes: list[tuple[Any, str]]) -> Any:
    """Read with the allow-list widened, which is one for the whole process, and narrow it again."""
    if not substitutes:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([one for one in substitutes if one not in before]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)


def _check(path: Path, found: Description) -> None:
    """Refuse what would run code, in words that say which class it is."""
    if not found.refused:
        return
    top = found.top if isinstance(found.top, Made) else Made("plain")
    module = _module(top, 4)
    names = list(found.refused)
    if module is not None:
        what = f"it holds a whole model (an object of class {shown(module)}) instead of weights, and making it runs"
        raise UnsafeCheckpoint(f"{path} is refused: {what} its author's code. {CONVERT}.")
    calls = [name for name, how in found.refused.items() if how == "calls"] or names
    listed = ", ".join(shown(name) for name in calls[:5]) + (f" and {len(calls) - 5} more" if len(calls) > 5 else "")
    for kind, (what, advice) in _TENSORS.items():
        if f"torch._utils._rebuild_{kind}" in calls:
            raise UnsafeCheckpoint(f"{path} is refused: it holds {what}; {advice}.")
    what = "it asks for" if top.kind == "object" else "beside plain values and tensors it asks for"
    raise UnsafeCheckpoint(
        f"{path} is refused: {what} {listed}, which could run code that the file brings along. {CONVERT}."
    )


def _module(made: Made, depth: int) -> str | None:
    """Class of a pickled module in a description, if there is one near its top."""
    if made.kind == "object":
        for state in made.items:
            if isinstance(state, Made) and state.kind == "dict":
                keys = {key for key in state.items[::2] if isinstance(key, str)}
                if keys >= _MODULE:
                    return made.name
    if depth and made.kind in ("dict", "list", "tuple"):
        for item in made.items[:1000]:
            found = _module(item, depth - 1) if isinstance(item, Made) else None
            if found is not None:
                return found
    return None
