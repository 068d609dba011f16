"""Checkpoints of torch-points3d, read by their format alone: the library itself need not be installed.

Such a file holds ``models`` (name to state dict, ``"latest"`` and the best of each metric) beside the optimiser, the
schedules and configurations made of omegaconf's classes. Reading it plainly would unpickle these. Here every class of
such a library is replaced by an empty stand-in that does nothing, so only tensors come out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor, nn

from unbackdoor.checkpoint import read_content
from unbackdoor.checkpoint.fitting import check_finite, check_kinds
from unbackdoor.checkpoint.kinds import shown
from unbackdoor.errors import CheckpointMismatch

__all__ = ["load_points3d", "read_points3d"]


def read_points3d(path: str | Path, name: str = "latest") -> dict[str, Tensor]:
    """The weights under ``name`` of a checkpoint of torch-points3d; nothing in the file is executed.

    Args:
        path: Of the ``.pt`` file.
        name: Which state: ``"latest"``, ``"best_acc"``, ...

    Raises:
        FileRefused: There is no such file.
        UnsafeCheckpoint: It cannot be read without running code, or is damaged.
        TooLarge: It declares more than the limits allow.
        CheckpointMismatch: It is no such checkpoint, or has no state of this name.
    """
    content = read_content(path, _is_configuration).tree
    models = dict.get(content, "models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise CheckpointMismatch(f"{path} has no entry 'models'; expected a checkpoint of torch-points3d.")
    state = dict.get(models, name)
    if not isinstance(state, dict):
        held = ", ".join(shown(key, 40) for key in list(dict.keys(models))[:20])
        raise CheckpointMismatch(f"{path} has no state {name!r}; it has {held or 'none'}.")
    tensors = {str(key): value.detach() for key, value in dict.items(state) if isinstance(value, Tensor)}
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
        CheckpointMismatch: The tensors do not fit, or hold another kind of number.
        NonFinite: Weights are NaN or infinite.
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
        f"{shown(key)} is {tuple(fits[key].shape)}, the model has {tuple(value.shape)}"
        for key, value in expected.items()
        if fits[key].squeeze().shape != value.squeeze().shape
    ]
    if wrong:
        raise CheckpointMismatch(f"{path} does not fit the model: {'; '.join(wrong[:8])}.")
    state = {key: fits[key].reshape(value.shape) for key, value in expected.items()}
    notices += check_kinds(Path(path), state, expected)
    check_finite(Path(path), state, model)
    model.load_state_dict(state)
    return notices


def _is_configuration(name: str) -> bool:
    """Whether a class may be one of a configuration: of any library but those whose functions attacks are made of."""
    if name.startswith(("collections.", "enum.", "typing.")):
        return True
    return name.split(".", 1)[0] not in sys.stdlib_module_names | {"numpy", "torch"}
