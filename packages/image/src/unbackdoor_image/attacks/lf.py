"""LF: a smooth trigger without high frequencies (Zeng et al. 2021, arXiv 2104.03413, ICCV, section 5).

Trigger: ``x + delta``, one ``delta`` for all images, made of the ``frequencies`` x ``frequencies`` lowest cosines of
each channel, with no pixel beyond ``eps``.
Labels: all to one by default, ``all_to_all``; dirty label. 10 % of the training set. Poison-only.
Original: ``delta`` solves a bilevel problem, universal for a clean network under a low-pass filter.
Where public code goes wrong: BackdoorBench reads a stored array for CIFAR-10 alone, so other data have no trigger.
Here: gradient steps on the cosines' weights against a small clean network trained on the same data, so that the filter
holds by construction; ``delta`` is in the victim's folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.learned import Learned, batches, train_helper
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["LF", "cosines"]


def cosines(frequencies: int, length: int) -> Tensor:
    """The lowest cosines of the DCT-II: ``(frequencies, length)``, row ``k`` is ``cos(pi k (j + 1/2) / length)``."""
    places = torch.arange(length, dtype=torch.float32) + 0.5
    return torch.cos(math.pi * torch.arange(frequencies)[:, None] * places / length)


@dataclass(frozen=True, kw_only=True)
class LF(Learned):
    """A universal perturbation of low frequencies.

    Attributes:
        eps: Largest change of a pixel, of [0, 1].
        frequencies: Cosines along each axis; half the image's side would be no filter any more.
        helper_steps: Training steps of the clean network.
        steps: Gradient steps on the perturbation.
    """

    name: ClassVar[str] = "lf"
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    eps: float = 0.1
    frequencies: int = 4
    helper_steps: int = 300
    steps: int = 100

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not 0 < self.eps <= 1 or self.frequencies < 1 or self.steps < 1 or self.helper_steps < 1:
            raise BadOption(
                f"eps is {self.eps}, frequencies {self.frequencies}, steps {self.steps}, helper_steps "
                f"{self.helper_steps}; eps must lie in (0, 1], the others be at least 1."
            )

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train the clean network and find the perturbation that brings all classes to the target."""
        if self.ready:
            return
        helper = train_helper(data, self.num_classes, generator, steps=self.helper_steps)
        _, channels, height, width = data.inputs.shape
        device = data.inputs.device
        down, right = (cosines(self.frequencies, side).to(device) for side in (height, width))
        weights = (0.1 * torch.randn(channels, *(2 * [self.frequencies]), generator=generator)).to(device)
        weights.requires_grad_()
        optimiser = torch.optim.Adam([weights], 0.05)
        for batch in batches(data, 128, self.steps, generator):
            changed = (batch.inputs + self._bounded(weights, down, right)).clamp(0, 1)
            loss = functional.cross_entropy(helper(changed), self.retarget(batch.targets))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.keep({"delta": self._bounded(weights, down, right)})

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the perturbation added."""
        delta = self.tensors()["delta"]

        def add(images: Tensor) -> Tensor:
            if images.shape[1:] != delta.shape:
                raise BadData(
                    f"the perturbation is {tuple(delta.shape)}, the images are {tuple(images.shape[1:])}; "
                    "prepare the attack on images of the same size."
                )
            return images + delta.to(images)

        return on_pixels(inputs, add)

    def _bounded(self, weights: Tensor, down: Tensor, right: Tensor) -> Tensor:
        """Scaled as a whole, not clipped pixel by pixel: clipping would bring high frequencies back."""
        delta = torch.einsum("cuv,uh,vw->chw", weights, down, right)
        return delta * (self.eps / delta.abs().max().clamp(min=self.eps))
