"""From a path to what lies there: one file of weights, or a folder or an index with several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors

from unbackdoor.checkpoint.archives import damaged, read_legacy, read_zip
from unbackdoor.checkpoint.kinds import kind_of, shown
from unbackdoor.errors import CheckpointMismatch, FileRefused, TooLarge
from unbackdoor.files.reading import check_bytes, check_file, limits, read_json

__all__ = ["Content", "files_of", "read_content", "read_metadata"]

_HEADER = 16 * 2**20  # tensors of a file may be a hundred thousand
_FOLDER = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True)
class Content:
    """What a file of weights holds.

    Attributes:
        tree: Tensors by name, within whatever other containers.
        metadata: Texts by name, which safetensors files carry beside their tensors.
        path: Where it lay; in a folder, the file that was taken.
        notices: What the user should know.
    """

    tree: Any
    path: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def read_content(path: str | Path, stands_in: Callable[[str], bool] = lambda _: False) -> Content:
    """Read a checkpoint of any layout; what it is is told by its content, never by its name.

    Args:
        path: A file, an index of shards (``*.index.json``) or a folder of ``save_pretrained``.
        stands_in: Classes, by name, in whose place empty stand-ins may come.

    Raises:
        FileRefused: There is no such file, or no weights in the folder.
        UnsafeCheckpoint: It is no file of weights, is damaged, or would run code when unpickled.
        TooLarge: It declares more than the limits allow.
        CheckpointMismatch: An index and its shards do not fit each other.
    """
    path, kind = _found(path)
    if kind == "index":
        return _shards(path, stands_in)
    if kind == "safetensors":
        return _safetensors(path)
    return Content((read_zip if kind == "zip" else read_legacy)(path, stands_in), path)


def files_of(path: str | Path) -> tuple[Path, ...]:
    """The files that a checkpoint consists of, without reading the weights: itself, or an index and its shards.

    Args:
        path: See `read_content`.

    Raises:
        FileRefused: There is no such file, or no weights in the folder.
        UnsafeCheckpoint: It is no file of weights; says what it is.
        CheckpointMismatch: An index names no shards.
    """
    path, kind = _found(path)
    return (path, *_named(path)[1]) if kind == "index" else (path,)


def _found(path: str | Path) -> tuple[Path, str]:
    """The file that is meant, and of which kind it is."""
    path = Path(path)
    if path.is_dir():
        path = _within(path)
    if not path.exists() and not path.is_symlink():
        raise FileRefused(f"no checkpoint at {path}; give a .safetensors file or one written by torch.save.")
    check_file(path, what="checkpoint")
    return path, kind_of(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Texts that safetensors files carry beside their tensors, without reading these; none of other files.

    Raises:
        UnbackdoorError: See `read_content`.
    """
    texts: dict[str, str] = {}
    for file in files_of(path):
        if kind_of(file) == "safetensors":
            with _opened(file) as opened:
                texts |= dict(opened.metadata() or {})
    return texts


def _within(folder: Path) -> Path:
    """The file of weights, or the index of several, in a folder."""
    for name in _FOLDER:
        if (folder / name).is_file():
            return folder / name
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise FileRefused(f"cannot read {folder}: {error.strerror or error}.") from error
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        raise FileRefused(
            f"{folder} is a checkpoint of torch.distributed; make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
    if any(name.startswith("adapter_model.") for name in names):
        raise FileRefused(
            f"{folder} holds an adapter (LoRA) and no model; merge both (merge_and_unload), save the result, give that."
        )
    found = [name for name in names if name.endswith(_SUFFIXES) or name.endswith(".index.json")]
    if len(found) == 1:
        return folder / found[0]
    if not found:
        raise FileRefused(
            f"no checkpoint in the folder {folder}, and no card.json of a victim; give a file of weights or a folder "
            "that holds one."
        )
    listed = ", ".join(shown(name, 60) for name in found[:6]) + (", ..." if len(found) > 6 else "")
    raise FileRefused(f"{folder} holds {len(found)} files of weights ({listed}); give one of them.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file whose header has been looked at; its tensors are read when they are asked for."""
    with damaged(path, "fetch it again"):
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _HEADER:
            raise TooLarge(f"{path} has a header of {header:,} bytes, but {_HEADER:,} are allowed; fetch it again.")
        with safetensors.safe_open(path, framework="pt", device="cpu") as opened:
            yield opened


def _safetensors(path: Path) -> Content:
    check_bytes(path, path.stat().st_size)
    with _opened(path) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        return Content(tensors, path, dict(opened.metadata() or {}))


def _shards(path: Path, stands_in: Callable[[str], bool]) -> Content:
    """The tensors of all files that an index names, each from the file that it names for it."""
    names, files = _named(path)
    check_bytes(path, sum(file.stat().st_size for file in files))
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for file in files:
        shard = read_content(file, stands_in)
        held = shard.tree if isinstance(shard.tree, dict) else {}
        wanted = [name for name, place in names.items() if place == file.name]
        absent = [name for name in wanted if name not in held]
        if absent:
            raise CheckpointMismatch(
                f"{shard.path} lacks {shown(absent[0])!r}, which {path.name} says it holds; fetch both again."
            )
        tensors |= {name: held[name] for name in wanted}
        metadata |= shard.metadata
    notice = f"{path.name}: {len(tensors)} tensors were read from {len(files)} files."
    return Content(tensors, path, metadata, (notice,))


def _named(path: Path) -> tuple[dict[str, str], list[Path]]:
    """Which tensor an index says to lie in which file, and the files."""
    check_file(path, what="index of shards", at_most=min(_HEADER, limits().text))
    index = read_json(path, what="index of shards")
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointMismatch(
            f"{path} is no index of shards: it has no 'weight_map' from tensors to files; give a file of weights."
        )
    files = []
    for file in sorted(set(names.values())):
        if not file or file in (".", "..") or file.endswith(".json") or "/" in file or "\\" in file or "\0" in file:
            raise FileRefused(f"{path} names the shard {shown(file)!r}; shards must lie beside it, under plain names.")
        files.append(check_file(path.parent / file, what="shard"))
    return names, files
