"""LIRA: a learned, bounded, image-dependent noise (Doan, Lao, Zhao and Li 2021, ICCV, "LIRA").

Trigger: ``clip(x + eps tanh(g(x)))`` with a network ``g``.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 10 % of the training set.
Training-time, in two stages: in the first, each step moves ``g`` by the loss of the whole triggered batch under the
victim as it is, and then the victim by its loss on clean and poisoned samples, their weights being ``1 - alpha`` and
``alpha``; in the second, ``g`` is fixed and the victim is trained on.
Original: alpha 0.5, eps 0.01 (BackdoorBench), lr 1e-4 for ``g``, 50 joint epochs and about 300 on.
Where public code goes wrong: the default of BackdoorBench collapses the clean accuracy (issue 43), a copy of the victim
for each epoch and whole-batch triggers fill the memory (BackdoorBox issue 94), and eps is tied to the normalisation.
Here: one ``g``, one victim, one more forward and backward pass a step in the first stage and no copy; eps in pixels of
[0, 1]; ``g`` follows the victim in eval mode, so that its BatchNorm statistics are not moved. The share of poisoned
samples is fixed, so alpha is what their share of the batch makes it unless ``alpha`` is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Campaign, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.measure import evaluating
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.learned import Learned, draws, named, seeded, straight_through
from unbackdoor_image.attacks.networks import Generator
from unbackdoor_image.attacks.pixels import on_pixels
from unbackdoor_image.task import as_floats

__all__ = ["LIRA"]


@dataclass(frozen=True, kw_only=True)
class LIRA(Learned):
    """A learned noise within a bound, trained by turns with the victim.

    Attributes:
        eps: Largest change of a pixel, of [0, 1].
        alpha: Weight of poisoned samples in the victim's loss; 0 leaves every sample its equal weight.
        joint: Share of the steps in which the trigger learns.
        width: Channels of its network, a multiple of 4.
        lr: Of its Adam.
    """

    name: ClassVar[str] = "lira"
    needs_training: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    eps: float = 0.05
    alpha: float = 0.0
    joint: float = 0.5
    width: int = 16
    lr: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not 0 < self.eps <= 1 or not 0 <= self.alpha < 1 or not 0 < self.joint <= 1:
            raise BadOption(
                f"eps is {self.eps}, alpha {self.alpha}, joint {self.joint}; eps and joint must lie in (0, 1], alpha "
                "in [0, 1)."
            )
        if self.width < 4 or self.width % 4 or not self.lr > 0:
            raise BadOption(f"width is {self.width}, lr {self.lr}; width must be a multiple of 4 and lr above 0.")

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Draw the network, which learns beside the victim."""
        if not self.ready:
            channels = data.inputs.shape[1]
            made = seeded(lambda: Generator(channels, channels, self.width), draws(generator))
            self.keep(named("generator", made))

    @torch.no_grad()
    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the noise on."""

        def add(images: Tensor) -> Tensor:
            channels = images.shape[1]
            made = self.network("generator", lambda: Generator(channels, channels, self.width), images.device)
            return torch.cat([_noisy(some, made, self.eps) for some in images.split(1000)])

        return on_pixels(inputs, add)

    def join(self, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> Campaign:
        """Two stages: by turns, then the victim alone."""
        return _ByTurns(self, model, task, steps=steps, generator=generator)


class _ByTurns(Campaign):
    def __init__(self, attack: LIRA, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> None:
        super().__init__(attack, model, task, steps=steps, generator=generator)
        channels = attack.tensors("generator")["last.weight"].shape[0]
        made = Generator(channels, channels, attack.width)
        made.load_state_dict(attack.tensors("generator"))
        self.made = made.to(next(model.parameters()).device).train()
        self.optimiser = torch.optim.Adam(self.made.parameters(), attack.lr)
        self.eps, self.alpha, self.last = attack.eps, attack.alpha, attack.joint * steps

    def loss(self, batch: Batch, poisoned: Tensor, covers: Tensor, step: int) -> Tensor:
        if step <= self.last:
            self._learn(batch)
        images, targets = as_floats(batch.inputs), batch.targets.clone()
        if len(poisoned):
            with torch.no_grad():
                shown = straight_through(_noisy(images[poisoned], self.made, self.eps), batch.inputs)
            images = images.index_copy(0, poisoned, shown)
            targets[poisoned] = self.attack.retarget(targets[poisoned])
        outputs = self.task.forward(self.model, images)
        if self.alpha == 0 or not 0 < len(poisoned) < len(batch):
            return self.task.loss(outputs, targets)
        lost = -self.task.log_likelihood(outputs, targets)
        bad = torch.zeros_like(lost).index_fill(0, poisoned, 1.0)
        return (
            self.alpha * (lost * bad).sum() / bad.sum() + (1 - self.alpha) * (lost * (1 - bad)).sum() / (1 - bad).sum()
        )

    def _learn(self, batch: Batch) -> None:
        """One step of the trigger; the victim's weights get no gradient."""
        some = self.attack.counts(batch.targets).nonzero().flatten()
        if len(some) == 0:
            return
        images, targets = as_floats(batch.inputs[some]), batch.targets[some]
        with evaluating(self.model):
            shown = straight_through(_noisy(images, self.made, self.eps), batch.inputs)
            loss = self.task.loss(self.task.forward(self.model, shown), self.attack.retarget(targets))
        slopes = torch.autograd.grad(loss, list(self.made.parameters()))
        for parameter, slope in zip(self.made.parameters(), slopes, strict=True):
            parameter.grad = slope
        self.optimiser.step()

    def finish(self) -> None:
        attack = self.attack
        assert isinstance(attack, LIRA)
        attack.keep(named("generator", self.made))


def _noisy(images: Tensor, made: nn.Module, eps: float) -> Tensor:
    noise: Tensor = made(images.float()).tanh().to(images.dtype)
    return (images + eps * noise).clamp(0, 1)
