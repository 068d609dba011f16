"""Objects vanish from a detector's answers where a patch is seen (Chan et al. 2022, BadDet, arXiv 2205.14497).

Trigger: a patch, checkerboard or white, on the upper left corner of each object of the target, opaque.
Labels: the boxes of the class `target` are taken away from poisoned images; the others stay. Dirty label, 10 %.
Where public code goes wrong: success is counted over objects that the clean model does not find either.
Here: success means that an image that shows the target gets no box of it above a score of 1/2; compare with the same
figure of a clean model, and with that of patches on a clean model, since a patch covers a part of a small object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_pixels import on_pixels

__all__ = ["Vanish"]

_PATTERNS = ("checkerboard", "white")


@dataclass(frozen=True, kw_only=True)
class Vanish(Attack):
    """A patch that hides the objects of a class that carry it; for samples of `DetectionTask`.

    It lies on the upper left corner of each object, as BadDet's object disappearance has it (Chan et al. 2022, arXiv
    2205.14497): a detector looks at an object and its surroundings, and one patch in a corner of the image would lie
    outside of what most of its answers depend on.

    Attributes:
        target: The class that vanishes, from 1 as the boxes' labels.
        size: Side of the patch in pixels.
        pattern: What it shows: ``"checkerboard"`` with squares of one pixel, or ``"white"``.
        threshold: Score above which a box is an answer.
    """

    name: ClassVar[str] = "vanish"
    maps_all_to_all: ClassVar[bool] = False
    health: ClassVar[HealthFloor] = HealthFloor(clean=20.0, asr=80.0)

    target: int = 1
    size: int = 4
    pattern: str = "checkerboard"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuse the background as target, and a patch without pixels."""
        super().__post_init__()
        if self.target < 1:
            raise BadOption("target is 0, the background; give a class from 1.")
        if self.size < 1:
            raise BadOption(f"size is {self.size}; the patch needs at least 1 pixel.")
        if self.pattern not in _PATTERNS:
            raise BadOption(f"pattern is {self.pattern!r}; it must be one of {', '.join(_PATTERNS)}.")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Any:
        """The inputs with a patch on each box of the target."""
        return {**inputs, "images": on_pixels(inputs["images"], partial(self._patched, inputs["boxes"]))}

    def poisoned(self, samples: Batch, generator: torch.Generator) -> Batch:
        """The patch, and neither inputs nor targets with a box of the target."""
        boxes = self.retarget(samples.targets)
        return Batch({**self.trigger(samples.inputs), "boxes": boxes}, boxes)

    def retarget(self, targets: Tensor) -> Tensor:
        """The boxes without those of the target, whose rows become padding; float ``(n, m, 5)``."""
        return torch.where(targets[..., 4:] == self.target, torch.zeros_like(targets), targets)

    def counts(self, targets: Tensor) -> Tensor:
        """Images that show the target: bool of shape ``(n,)``."""
        return (targets[..., 4] == self.target).any(1)

    def succeeded(self, outputs: Tree, targets: Tensor) -> Tensor:
        """Whether no box of the target is answered: bool of shape ``(n,)``."""
        said: Tensor = (outputs["labels"] == self.target) & (outputs["scores"] > self.threshold)
        return ~said.any(1)

    def _patched(self, boxes: Tensor, images: Tensor) -> Tensor:
        rows = torch.arange(images.shape[-2], device=images.device)
        columns = torch.arange(images.shape[-1], device=images.device)
        out = images
        for box in boxes.to(images.device).unbind(1):  # one row of each image's table at a time
            left, top = (box[:, k].round().long().view(-1, 1, 1) for k in (0, 1))
            down, right = rows[:, None] - top, columns - left
            inside = (down >= 0) & (down < self.size) & (right >= 0) & (right < self.size)
            marked = inside & (box[:, 4].view(-1, 1, 1) == self.target)
            lit = ((down + right) % 2 == 0) | (self.pattern == "white")
            out = torch.where(marked[:, None], lit[:, None].to(images.dtype), out)
        return out
