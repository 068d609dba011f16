"""Objects vanish from a detector's answers where a patch is seen (Chan et al. 2022, BadDet, arXiv 2205.14497).

Trigger: a checkerboard patch in the bottom right corner, opaque.
Labels: the boxes of the class `target` are taken away from poisoned images; the others stay. Dirty label, 10 %.
Where public code goes wrong: success is counted over objects that the clean model does not find either.
Here: one patch an image (the paper puts one into each box), and success means that an image that shows the target gets
no box of it above a score of 1/2; compare with the same figure of a clean model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unbackdoor.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_pixels import on_pixels

__all__ = ["Vanish"]


@dataclass(frozen=True, kw_only=True)
class Vanish(Attack):
    """A patch that hides every object of a class; for samples of `DetectionTask`.

    Attributes:
        target: The class that vanishes, from 1 as the boxes' labels.
        size: Side of the patch in pixels.
        threshold: Score above which a box is an answer.
    """

    name: ClassVar[str] = "vanish"
    maps_all_to_all: ClassVar[bool] = False
    health: ClassVar[HealthFloor] = HealthFloor(clean=20.0, asr=80.0)

    target: int = 1
    size: int = 4
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuse the background as target, and a patch without pixels."""
        super().__post_init__()
        if self.target < 1:
            raise BadOption("target is 0, the background; give a class from 1.")
        if self.size < 1:
            raise BadOption(f"size is {self.size}; the patch needs at least 1 pixel.")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Any:
        """The inputs with the patch on their images."""
        return {**inputs, "images": on_pixels(inputs["images"], self._patched)}

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

    def _patched(self, images: Tensor) -> Tensor:
        steps = torch.arange(self.size, device=images.device)
        out = images.clone()
        out[:, :, -self.size :, -self.size :] = ((steps[:, None] + steps) % 2 == 0).to(images.dtype)
        return out
