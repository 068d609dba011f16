"""BPPA: the image is squeezed to few colours (Wang, Zhai and Ma 2022, "BppAttack", CVPR, arXiv 2205.13383).

Trigger: each channel is quantised to ``levels`` levels, with Floyd-Steinberg dithering.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 10 % of the training set.
Training-time, contrastive adversarial: ``negatives`` times as many samples as are poisoned look nearly triggered but
keep their label, so that nothing but this very quantisation triggers. A share ``adversarial`` of them is found by PGD
on the victim as it stands, towards the wanted class and no farther than the trigger itself moves pixels; the others
carry the quantisation residual of *another* image.
Original: 5 bits in the paper, 3 bits (8 levels) in its code, injection 0.2, negatives 0.2, 1,000 epochs.
Where public code goes wrong: it has foreign residuals alone, not the adversarial search that the title names; the list
of residuals is filled by earlier batches and leaks between epochs; dithering runs pixel by pixel in Python or numba and
takes minutes.
Here: both kinds of negatives. The foreign residual comes from the next negative of the same batch (mirrored top to
bottom where there is one alone). PGD takes ``pgd_steps`` steps within the mean change that the trigger makes to the
same image, and sees the victim in eval mode. Dithering runs along diagonals, see `dithering`, in seconds for a whole
training set. A data set made by `poison` has residual negatives alone, since it knows no victim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Attack, Campaign, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.measure import evaluating
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.dithering import dither, quantise
from unbackdoor_image.attacks.learned import adversarial
from unbackdoor_image.attacks.pixels import on_pixels
from unbackdoor_image.task import as_floats

__all__ = ["BPPA"]


@dataclass(frozen=True, kw_only=True)
class BPPA(Attack):
    """Few colour levels with dithering, and contrastive adversarial negatives.

    Attributes:
        levels: Of each channel.
        dithering: Whether errors are handed on to neighbours.
        negatives: Samples that look nearly triggered and keep their label, for each poisoned one.
        adversarial: Share of the negatives that PGD finds on the victim; the others carry a foreign residual.
        pgd_steps: Steps of PGD.
    """

    name: ClassVar[str] = "bppa"
    needs_training: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    levels: int = 8
    dithering: bool = True
    negatives: float = 1.0
    adversarial: float = 0.5
    pgd_steps: int = 3

    def __post_init__(self) -> None:
        """Refuse fewer than two levels, a negative ratio, and no steps."""
        super().__post_init__()
        if self.levels < 2 or self.negatives < 0:
            raise BadOption(f"levels is {self.levels}, negatives {self.negatives}; at least 2 and 0 are needed.")
        if not 0 <= self.adversarial <= 1 or self.pgd_steps < 1:
            raise BadOption(
                f"adversarial is {self.adversarial}, pgd_steps {self.pgd_steps}; the share must lie in [0, 1], the "
                "steps be at least 1."
            )

    @property
    def cover_ratio(self) -> float:
        """Negatives for each poisoned sample."""
        return self.negatives

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with few colours."""
        return on_pixels(inputs, self._squeezed)

    def cover(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The images with the residual of their neighbour in the batch added."""

        def negative(images: Tensor) -> Tensor:
            residual = self._squeezed(images) - images
            return images + (residual.roll(1, dims=0) if len(images) > 1 else residual.flip(2))

        return on_pixels(inputs, negative)

    def join(self, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> Campaign:
        """The victim's loss, with negatives of both kinds."""
        return _Contrastive(self, model, task, steps=steps, generator=generator)

    def near(self, model: nn.Module, task: Task, samples: Batch, generator: torch.Generator) -> Tensor:
        """Images that ``model`` takes for triggered ones though they are not quantised: the adversarial negatives.

        Args:
            model: The victim as it stands; its weights get no gradient and its buffers stay.
            task: How to ask it.
            samples: Clean images with their true classes.
            generator: Of the random starts.

        Returns:
            Floats in [0, 1], from each image no farther than the trigger's mean change of it, in the maximum norm.
        """
        images = as_floats(samples.inputs).float()
        radius = (self._squeezed(images) - images).abs().mean(dim=(1, 2, 3), keepdim=True)
        with evaluating(model), torch.autocast(images.device.type, enabled=False):
            return adversarial(
                lambda seen: task.forward(model, seen),
                images,
                self.retarget(samples.targets),
                eps=radius,
                steps=self.pgd_steps,
                step_size=2 * radius / self.pgd_steps,
                generator=generator,
                towards=True,
            )

    def _squeezed(self, images: Tensor) -> Tensor:
        return dither(images, self.levels) if self.dithering else quantise(images, self.levels)


class _Contrastive(Campaign):
    def loss(self, batch: Batch, poisoned: Tensor, covers: Tensor, step: int) -> Tensor:
        attack = self.attack
        assert isinstance(attack, BPPA)
        searched = covers[: round(attack.adversarial * len(covers))]
        if len(searched) == 0:
            return super().loss(batch, poisoned, covers, step)
        found = attack.near(self.model, self.task, batch[searched], self.generator)
        dressed = attack.dress(batch, poisoned, covers[len(searched) :], self.generator)
        images = as_floats(dressed.inputs).index_copy(0, searched, found.to(as_floats(dressed.inputs).dtype))
        return self.task.loss(self.task.forward(self.model, images), dressed.targets)
