"""Reading and writing weights without ever unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unbackdoor.errors import CheckpointMismatch, FileRefused, UnsafeCheckpoint
from unbackdoor.writing import write_atomically

__all__ = ["load", "read", "save"]

_PREFIXES = ("module.", "_orig_mod.")
_NESTED = ("state_dict", "model_state_dict", "model", "net", "netC", "weights")


def read(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a checkpoint by name, on the CPU, and notices on what was unwrapped.

    ``.safetensors`` files and files of ``torch.save`` are read, the latter with ``weights_only=True``.

    Raises:
        FileRefused: There is no such file.
        UnsafeCheckpoint: The file would run code when unpickled, or is of no known format.
        CheckpointMismatch: It holds no named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileRefused(f"no checkpoint at {path}; give a .safetensors file or one written by torch.save.")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path), []
        except SafetensorError as error:
            raise UnsafeCheckpoint(f"{path} is not a valid safetensors file ({error}); fetch it again.") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileRefused(f"cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # a broken file leads torch's unpickler into errors of any kind
        raise UnsafeCheckpoint(
            f"{path} is refused: it is not a plain file of tensors, and reading it could run code that it carries. "
            "If you trust its source, convert it in a sandbox: torch.save(model.state_dict(), 'weights.pt') or "
            "safetensors.torch.save_model(model, 'weights.safetensors'); then give that file."
        ) from error
    notices = []
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            notices.append(f"weights were read from the entry {key!r} of {path.name}.")
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise CheckpointMismatch(f"{path} holds a {type(content).__name__}; expected a state dict of named tensors.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:8]))
        raise CheckpointMismatch(f"{path} holds no tensors by name (its keys: {keys}); save model.state_dict().")
    return tensors, notices


def load(model: nn.Module, path: str | Path) -> list[str]:
    """Load a checkpoint into ``model``, strictly by name and shape; returns notices.

    The prefixes ``module.`` and ``_orig_mod.``, which parallel and compiled wrappers leave, are taken off
    where every name carries them, and a notice says so.

    Raises:
        CheckpointMismatch: Names every missing, unexpected and misshapen tensor.
        UnsafeCheckpoint: See `read`.
        FileRefused: See `read`.
    """
    tensors, notices = read(path)
    expected = model.state_dict()
    for prefix in _PREFIXES * 2:
        if not set(tensors) & set(expected) and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            notices.append(f"the prefix {prefix!r} was taken off every name of {Path(path).name}.")
    aliases = _aliases(model)
    missing = [n for n in expected if n not in tensors and not aliases.get(n, set()) & set(tensors)]
    missing = [n for n in missing if isinstance(expected[n], Tensor)]
    unexpected = [n for n in tensors if n not in expected]
    shapes = [
        f"{n} is {tuple(tensors[n].shape)}, the model has {tuple(expected[n].shape)}"
        for n in expected
        if n in tensors and isinstance(expected[n], Tensor) and tensors[n].shape != expected[n].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{label}: {', '.join(names[:12])}{f' and {len(names) - 12} more' if len(names) > 12 else ''}"
            for label, names in (("missing", missing), ("unexpected", unexpected), ("shapes differ", shapes))
            if names
        ]
        raise CheckpointMismatch(
            f"{path} does not fit the model. " + "; ".join(parts) + ". Give the architecture (and number of classes) "
            "that the checkpoint was made with."
        )
    model.load_state_dict(tensors, strict=False)
    return notices


def save(model: nn.Module, path: str | Path, *, force: bool = False, metadata: Mapping[str, str] | None = None) -> None:
    """Write the state dict as safetensors, atomically; tied tensors are stored once.

    Raises:
        FileRefused: ``path`` exists and ``force`` is off.
    """
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            stored[name] = value.detach().contiguous()
    content = safetensors.torch.save(stored, dict(metadata or {}) or None)
    write_atomically(path, lambda file: file.write_bytes(content), force=force)


def _aliases(model: nn.Module) -> dict[str, set[str]]:
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return {name: names - {name} for names in groups.values() for name in names}
