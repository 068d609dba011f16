"""Gradients of a user's model, or an error that says why there are none: a model that was not tuned must not pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unbackdoor.errors import UnsupportedModel

__all__ = ["NO_GRADIENT", "check_graph", "slopes"]

NO_GRADIENT = (
    "no gradient of the loss reaches {what}: the model's forward cuts it (detach, .data, torch.no_grad, numpy), or "
    "computes with the weights of another model, as one compiled before it was copied does. Give a model whose forward "
    "can be differentiated"
)
_CHECKPOINT = (
    "the model recomputes activations by torch.utils.checkpoint with use_reentrant=True, which only works with "
    "backward(); use use_reentrant=False there, or switch checkpointing off (gradient_checkpointing_disable())."
)


def check_graph(loss: Tensor) -> Tensor:
    """``loss`` itself, for objectives that add something which has a gradient of its own.

    Raises:
        UnsupportedModel: It depends on no weight.
    """
    if not loss.requires_grad:
        raise UnsupportedModel(f"{NO_GRADIENT.format(what='the weights that are tuned')}.")
    return loss


def slopes(
    scalar: Tensor,
    tensors: Sequence[Tensor],
    *,
    what: str = "the weights that are tuned",
    needed: bool = True,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor | None]:
    """``d scalar / d tensor`` for each of ``tensors``, dense; None where a tensor plays no part.

    Args:
        scalar: Of a forward pass.
        tensors: With respect to which.
        what: What they are, for the message.
        needed: Whether it is an error if none of them plays a part.
        create_graph: Of `torch.autograd.grad`.
        retain_graph: Of `torch.autograd.grad`.

    Raises:
        UnsupportedModel: None has a gradient, or the model's graph cannot be differentiated.
    """
    if not scalar.requires_grad:
        if needed:
            raise UnsupportedModel(f"{NO_GRADIENT.format(what=what)}.")
        return [None] * len(tensors)
    try:
        found = torch.autograd.grad(
            scalar, tensors, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "Checkpointing is not compatible" in text or "checkpoint" in text.lower():
            raise UnsupportedModel(_CHECKPOINT) from error
        raise UnsupportedModel(f"the model cannot be differentiated by {what}: {text}") from error
    if needed and all(slope is None for slope in found):
        raise UnsupportedModel(f"{NO_GRADIENT.format(what=what)}.")
    return [slope.to_dense() if slope is not None and slope.is_sparse else slope for slope in found]
