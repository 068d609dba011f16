"""Checkpoints of torch-points3d, read by their format alone: the library itself need not be installed.

Such a file holds ``models`` (name to state dict, ``"latest"`` and the best of each metric) beside the optimiser, the
schedules and configurations made of omegaconf's classes. Reading it plainly would unpickle these. Here every class that
is not a tensor's is replaced by an empty stand-in that does nothing, so only tensors come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import CheckpointMismatch, FileRefused, UnsafeCheckpoint

__all__ = ["load_points3d", "read_points3d"]


class _Nothing:
    """Stands in for a class that a file names; takes whatever it is given and does nothing with it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_points3d(path: str | Path, name: str = "latest") -> dict[str, Tensor]:
    """The weights under ``name`` of a checkpoint of torch-points3d; nothing in the file is executed.

    Args:
        path: Of the ``.pt`` file.
        name: Which state: ``"latest"``, ``"best_acc"``, ...

    Raises:
        FileRefused: There is no such file.
        UnsafeCheckpoint: It cannot be read without running code.
        CheckpointMismatch: It is no such checkpoint, or has no state of this name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileRefused(f"no checkpoint at {path}; give a .pt file that torch-points3d wrote.")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(type("Nothing", (_Nothing,), {}), full) for full in named]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file leads torch's unpickler into errors of any kind
        raise UnsafeCheckpoint(
            f"{path} is refused: it cannot be read as plain tensors beside configurations ({error})."
        ) from error
    models = content.get("models") if isinstance(content, Mapping) else None
    if not isinstance(models, Mapping):
        raise CheckpointMismatch(f"{path} has no entry 'models'; expected a checkpoint of torch-points3d.")
    if name not in models:
        raise CheckpointMismatch(f"{path} has no state {name!r}; it has {', '.join(map(str, models))}.")
    tensors = {str(key): value for key, value in models[name].items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointMismatch(f"the state {name!r} of {path} holds no tensors.")
    return tensors


def load_points3d(model: nn.Module, path: str | Path, name: str = "latest") -> list[str]:
    """Load such a checkpoint into ``model``: by name or, where names differ, by order and shape.

    By order, the tensors of both must have the same kinds and shapes one after the other, dimensions of 1 left out: a
    shared MLP may be a convolution in one and a linear layer in the other.

    Args:
        model: Of the same architecture, yours or one of this package.
        path: Of the ``.pt`` file.
        name: See `read_points3d`.

    Returns:
        Notices.

    Raises:
        CheckpointMismatch: The tensors do not fit.
    """
    given, expected = read_points3d(path, name), model.state_dict()
    if set(given) == set(expected):
        fits = {key: given[key] for key in expected}
        notices = []
    else:
        if len(given) != len(expected):
            raise CheckpointMismatch(
                f"{path} has {len(given)} tensors, the model {len(expected)}, and their names differ; build the "
                "architecture that the checkpoint was made with."
            )
        fits = dict(zip(expected, given.values(), strict=True))
        notices = ["names differ, so tensors were taken in their order; check the model's accuracy before you go on."]
    wrong = [
        f"{key} is {tuple(fits[key].shape)}, the model has {tuple(value.shape)}"
        for key, value in expected.items()
        if fits[key].squeeze().shape != value.squeeze().shape
        or fits[key].is_floating_point() != value.is_floating_point()
    ]
    if wrong:
        raise CheckpointMismatch(f"{path} does not fit the model: {'; '.join(wrong[:8])}.")
    model.load_state_dict({key: fits[key].reshape(value.shape) for key, value in expected.items()})
    return notices
