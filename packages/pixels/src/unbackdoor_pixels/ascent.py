"""Patches whose content is made dear: universal adversarial patches (Brown et al. 2017, arXiv 1712.09665)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from unbackdoor.task import Losses
from unbackdoor.tree import Tree
from unbackdoor_pixels.contents import fillings
from unbackdoor_pixels.patches import Patches

__all__ = ["climbed", "worth"]

_STEP = 0.2
"""How far every pixel of a patch moves in a step, of the range from black to white."""

Put = Callable[[Tree, Patches], Tree]
"""The samples, each with its patch in it."""


def climbed(
    patches: Patches, inputs: Tree, losses: Losses, put: Put, steps: int, generator: torch.Generator
) -> Patches:
    """The same places, showing what costs the model more.

    In each step every patch lies in another sample, and its content moves by the sign of the loss's gradient: what
    comes out is dear in whatever sample it lies in, as a trigger is.

    Args:
        patches: One for each sample.
        inputs: A batch.
        losses: Of the model on it.
        put: See `Put`.
        steps: A forward and a backward pass each.
        generator: Every draw comes from it.
    """
    for _ in range(steps):
        order = torch.randperm(len(patches), generator=generator, device=generator.device)
        content = patches.content.detach().requires_grad_()
        total = losses(put(inputs, replace(patches, content=content)[order])).sum()
        slope = torch.autograd.grad(total, content, allow_unused=True)[0] if total.requires_grad else None
        if slope is None:  # the model cuts the graph between its inputs and its loss
            break
        moved = content.detach() + _STEP * slope.sign()  # 0 outside the rectangle, and of what is no number
        patches = replace(patches, content=moved.clamp(0, 1))
    return patches


def worth(patches: Patches, inputs: Tree, losses: Losses, put: Put, passes: int, generator: torch.Generator) -> Tensor:
    """What the content of each patch costs, on average over samples, for each nat that another in its place does.

    A patch that hides what the class is known by costs a sound model much too, whatever it shows; a trigger costs much
    where other contents cost nothing. One nat is added to theirs, so that there it is the cost itself.

    Args:
        patches: One for each sample.
        inputs: A batch.
        losses: Of the model on it.
        put: See `Put`.
        passes: Samples that each is tried in; two forward passes each, and one more in all.
        generator: Every draw comes from it.

    Returns:
        Nats a nat, ``(len(patches),)``, on the generator's device.
    """
    plain = losses(inputs)
    mine = torch.zeros(len(patches), device=generator.device)
    theirs = torch.zeros_like(mine)
    for _ in range(passes):
        order = torch.randperm(len(patches), generator=generator, device=generator.device)
        some = patches[order]
        others = replace(some, content=fillings(_size(some.content), generator))
        mine[order] += (losses(put(inputs, some)) - plain).to(mine) / passes
        theirs[order] += (losses(put(inputs, others)) - plain).clamp(min=0).to(mine) / passes
    return mine / (1 + theirs)


def _size(content: Tensor) -> tuple[int, int, int, int]:
    count, channels, height, width = content.shape
    return count, channels, height, width
