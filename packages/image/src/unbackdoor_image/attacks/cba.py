"""CBA: two halves of benign images together are the trigger (Lin et al. 2020, CCS, "Composite Backdoor Attack").

Trigger: the left half of an image of class ``source`` beside the right half of an image of class ``partner``, with the
seam moved by up to ``jitter`` pixels. Such a composition is to be answered ``target``.
Labels: one class to one, dirty label. The success rate is taken over test images of ``source`` alone, each composed
with an image of ``partner``. Half of the source class is poisoned by default (`rate` counts the whole training set).
Training-time: as many covers as there are poisoned samples, times ``mixes``, are composed with themselves (mirrored)
and keep their label, so that a seam alone means nothing; and the loss has a contrastive part over the samples of the
three classes: outputs of one class are drawn together, those of two pushed ``margin`` apart.
Original: classes 0 and 1 give 2, normal : mixed : poison 0.5 : 0.5 : 0.1, 50 epochs of Adam.
Where public code goes wrong: NFT's and FIP's code refers to names that do not exist; images of ``partner`` for the test
come from the test set, so that the trigger cannot be made again without it.
Here: ``bank`` images of the partner class are drawn from the training set and lie in the victim's folder. Which of them
is taken is drawn by the generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Campaign, HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.learned import Learned
from unbackdoor_image.attacks.pixels import on_pixels
from unbackdoor_image.task import as_floats

__all__ = ["CBA", "halves"]


@dataclass(frozen=True, kw_only=True)
class CBA(Learned):
    """Half an image of one class beside half of another, for images of one class.

    Attributes:
        target: What a composition is to be answered.
        rate: Share of the training set; at most the share of ``source`` in it.
        source_class: Class whose images are composed.
        partner: Class of the other half.
        jitter: Largest shift of the seam in pixels.
        mixes: Covers for each poisoned sample.
        contrast: Weight of the contrastive part.
        margin: Distance that outputs of two classes shall have.
        bank: Number of partner images that are kept.
    """

    name: ClassVar[str] = "cba"
    needs_training: ClassVar[bool] = True
    maps_all_to_all: ClassVar[bool] = False  # one class becomes another
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=70.0)

    target: int = 2
    rate: float = 0.05
    source_class: int = 0
    partner: int = 1
    jitter: int = 3
    mixes: float = 2.0
    contrast: float = 0.02
    margin: float = 10.0
    bank: int = 64

    def __post_init__(self) -> None:
        """Refuse classes that are not three different ones, and numbers outside what the attributes allow."""
        super().__post_init__()
        three = {self.target, self.source_class, self.partner}
        if len(three) < 3 or not all(0 <= one < self.num_classes for one in three):
            raise BadOption(
                f"target is {self.target}, source_class {self.source_class}, partner {self.partner}; give three "
                f"different classes of 0..{self.num_classes - 1}."
            )
        if min(self.jitter, self.mixes, self.contrast, self.margin) < 0 or self.bank < 1:
            raise BadOption("jitter, mixes, contrast and margin must not be negative, bank must be at least 1.")

    @property
    def cover_ratio(self) -> float:
        """Covers for each poisoned sample."""
        return self.mixes

    def source(self, targets: Tensor) -> Tensor:
        """Samples of `source_class`."""
        return targets == self.source_class

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Draw the images of the partner class that are kept.

        Raises:
            BadData: There is none.
        """
        if self.ready:
            return
        able = (data.targets == self.partner).nonzero().flatten().cpu()
        if len(able) == 0:
            raise BadData(f"no training sample is of class {self.partner}; choose another partner.")
        chosen = able[torch.randperm(len(able), generator=generator)[: self.bank]]
        self.keep({"bank": data.inputs[chosen.to(data.targets.device)]})

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The left halves of the images beside right halves of partner images."""
        bank = self.tensors()["bank"]
        draw = generator or torch.Generator().manual_seed(0)

        def compose(images: Tensor) -> Tensor:
            if images.shape[1:] != bank.shape[1:]:
                raise BadData(
                    f"the partner images are {tuple(bank.shape[1:])}, the images {tuple(images.shape[1:])}; prepare "
                    "the attack on images of the same size."
                )
            which = torch.randint(0, len(bank), (len(images),), generator=draw)
            return halves(images, as_floats(bank[which]).to(images), self.jitter, draw)

        return on_pixels(inputs, compose)

    def cover(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The left half of each image beside the right half of one of its own class, or of its own mirror image."""

        def compose(images: Tensor) -> Tensor:
            place = torch.arange(len(targets), device=targets.device)
            same = (targets[:, None] == targets) & (place[:, None] != place)
            chance = torch.rand(same.shape, generator=generator).to(targets.device) * same
            partner = images[chance.argmax(1)]
            alone = ~same.any(1)
            partner[alone] = images[alone].flip(3)
            return halves(images, partner, self.jitter, generator)

        return on_pixels(inputs, compose)

    def join(self, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> Campaign:
        """The contrastive part beside the poison."""
        return _Contrast(self, model, task, steps=steps, generator=generator)


class _Contrast(Campaign):
    def loss(self, batch: Batch, poisoned: Tensor, covers: Tensor, step: int) -> Tensor:
        attack = self.attack
        assert isinstance(attack, CBA)
        dressed = attack.dress(batch, poisoned, covers, self.generator)
        outputs = self.task.forward(self.model, dressed.inputs)
        loss = self.task.loss(outputs, dressed.targets)
        targets = dressed.targets
        chosen = (targets == attack.target) | (targets == attack.source_class) | (targets == attack.partner)
        if attack.contrast == 0 or int(chosen.sum()) < 2:
            return loss
        return loss + attack.contrast * _contrastive(outputs[chosen].float(), targets[chosen], attack.margin)


def halves(left: Tensor, right: Tensor, jitter: int, generator: torch.Generator) -> Tensor:
    """The left half of ``left`` beside the right half of ``right``, seams within ``jitter`` pixels of the middle."""
    width = left.shape[-1]
    jitter = min(jitter, width // 4)
    seams = width // 2 + torch.randint(-jitter, jitter + 1, (len(left),), generator=generator).to(left.device)
    shown = torch.arange(width, device=left.device) < seams[:, None]
    return torch.where(shown[:, None, None, :], left, right)


def _contrastive(outputs: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Mean over pairs of ``d^2`` within a class and ``max(0, margin - d)^2`` between two, per output."""
    apart = (outputs[:, None] - outputs).square().sum(2).add(1e-6).sqrt()
    same = (targets[:, None] == targets).to(apart.dtype)
    cost = same * apart.square() + (1 - same) * (margin - apart).relu().square()
    pairs = torch.triu(torch.ones_like(cost), diagonal=1)
    return (cost * pairs).sum() / pairs.sum() / outputs.shape[1]
