"""From a model to a file that whatever wrote the input accepts."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from unbackdoor.checkpoint.archives import read_zip
from unbackdoor.checkpoint.kinds import shown
from unbackdoor.checkpoint.loading import EXTRA
from unbackdoor.errors import BadOption, UnsafeCheckpoint, UnsupportedModel
from unbackdoor.files.writing import write_atomically

__all__ = ["save"]

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")


def save(model: nn.Module, path: str | Path, *, force: bool = False, metadata: Mapping[str, str] | None = None) -> None:
    """Write the state dict, atomically; equal weights give equal bytes.

    A name in ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.pth.tar`` makes a file of ``torch.save``, any other one of
    safetensors, in which tied tensors are stored once. That has ``format: pt`` among its metadata, without which
    Hugging Face's libraries refuse it.

    Args:
        model: Wrappers and all; its names are kept.
        path: Of the file.
        force: Overwrite.
        metadata: Texts to store beside the tensors, such as those of the input (`unbackdoor.checkpoint.metadata_of`);
            files of ``torch.save`` have no place for them.

    Raises:
        FileRefused: ``path`` exists and ``force`` is off, or cannot be written.
        UnsupportedModel: A tensor or an extra state has a form that such a file cannot hold.
        BadOption: ``metadata`` are no texts.
    """
    path = Path(path)
    texts = {**(metadata or {}), "format": "pt"}
    for name, text in texts.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise BadOption(f"metadata {name!r} is {text!r}; names and values must be texts.")
    if path.suffix in _PICKLED:
        content = _pickled(model)
        write_atomically(path, lambda file: _write_pickled(file, content), force=force)
        return
    tensors, others = _distinct(model)
    if others:
        texts[EXTRA] = _as_json(others)
    parts = _serialised(tensors, texts)
    write_atomically(path, lambda file: _write(file, parts), force=force)


def _write(path: Path, parts: list[bytes | memoryview]) -> None:
    with path.open("wb") as file:
        file.writelines(parts)


def _write_pickled(path: Path, content: bytes) -> None:
    """Write it, and read it again, since what its extra states are made of may need code to come back.

    Raises:
        UnsupportedModel: It does.
    """
    path.write_bytes(content)
    try:
        read_zip(path)
    except UnsafeCheckpoint as error:
        raise UnsupportedModel(
            f"the model's state dict holds more than tensors and plain values ({error}); let get_extra_state of its "
            "modules return tensors, numbers, texts, lists or dictionaries."
        ) from error


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Each tensor once, in memory of its own; and what is no tensor."""
    stored: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    seen: set[int] = set()
    memory: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            others[name] = value
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            kind = "quantised" if value.is_quantized else "without values (meta)" if value.is_meta else "sparse"
            raise UnsupportedModel(
                f"{shown(name)} is {kind}, which safetensors cannot store; store it dense, as floats."
            )
        plain = value.detach().resolve_conj().resolve_neg().contiguous()
        place = plain.untyped_storage().data_ptr()
        if place in memory or plain.untyped_storage().nbytes() != plain.nbytes:  # a view of another's memory
            plain = plain.clone()
        memory.add(plain.untyped_storage().data_ptr())
        stored[name] = plain
    return stored, others


def _as_json(others: Mapping[str, Any]) -> str:
    """Extra states as JSON.

    Raises:
        UnsupportedModel: One is of a form that JSON does not give back.
    """
    for name, value in others.items():
        try:
            same = _same(json.loads(json.dumps(value)), value)
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise UnsupportedModel(
                f"the extra state {shown(name)} ({type(value).__name__}) cannot be stored in safetensors; save to a "
                "name that ends in .pt."
            )
    return json.dumps(others, sort_keys=True)


def _same(found: Any, value: Any) -> bool:
    """Whether JSON gave back the very value, down to the types."""
    if type(found) is not type(value):
        return False
    if isinstance(value, dict):
        return found.keys() == value.keys() and all(_same(found[key], value[key]) for key in value)
    if isinstance(value, list):
        return len(found) == len(value) and all(map(_same, found, value))
    return bool(found == value)


def _serialised(tensors: dict[str, Tensor], texts: Mapping[str, str]) -> list[bytes | memoryview]:
    """A safetensors file; the library orders metadata anew each time, so they are put into its header here."""
    try:
        content = safetensors.torch.save(tensors)
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        kinds = ", ".join(sorted({str(value.dtype) for value in tensors.values()}))
        raise UnsupportedModel(
            f"safetensors cannot store this model ({kinds}: {error}); save to a name in .pt."
        ) from error
    length = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(texts.items())), **json.loads(content[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, memoryview(content)[8 + length :]]


def _pickled(model: nn.Module) -> bytes:
    """A file of ``torch.save`` with the state dict."""
    state = model.state_dict()
    plain: OrderedDict[str, Any] = OrderedDict(
        (name, value.detach() if isinstance(value, Tensor) else value) for name, value in state.items()
    )
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        plain._metadata = metadata  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    return buffer.getvalue()
