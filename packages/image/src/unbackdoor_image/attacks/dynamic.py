"""Input-aware dynamic attack, to one class: each image has its own pattern (Nguyen and Tran 2020, arXiv 2010.08138).

The papers call it Dynamic, Dyn-one.
Trigger: ``(1 - m(x)) x + m(x) p(x)``: a network draws the pattern ``p``, another the mask ``m``, which covers about
``density`` of the image.
Labels: all to one (Dyn-one); see `dynamic-all` for ``y -> y + 1``. Dirty label, 10 % of the training set.
Training-time, in two stages. First the mask network alone: ``diversity |x - x'| / |m(x) - m(x')|``, so that two images
get two masks, plus ``sparsity max(0, m - density)``, averaged over pixels. Then the pattern network together with the
victim, by the victim's own loss and ``diversity |x - x'| / |p(x) - p(x')|``; ``cross`` times as many covers as poisoned
samples carry mask and pattern of *another* image and keep their label, which is the paper's cross-trigger loss: a
trigger must work on its own image alone.
Original: Adam of 0.01 with momentum 0.5, 25 epochs for the mask, density 0.032, weights 1 and 100, 600 epochs;
p_attack 0.1, p_cross 0.1.
Where public code goes wrong: without both networks saved the trigger is lost; the division by ``|p - p'|`` overflows
for equal patterns unless a small number is added.
Here: the paper's losses and weights. Distances of images are taken in units of their standard deviation, as on the
normalised images of the original, or 100 would be four times too much. Both networks are in the victim's folder and
have no layers that mix the images of a batch, so that an image's trigger does not depend on what else is in its batch.
The mask network's last layer starts where three times ``density`` of the pixels are covered: from PyTorch's own start a
short training ends with empty masks, as it does at 0.01 from there, hence ``mask_lr``. One
seed draws who is poisoned, once for all epochs, where the original poisons the first of each batch. `tools/zoo.py`
reports the accuracy on covers, which the paper calls cross-trigger accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Campaign, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.learned import Learned, batches, draws, named, seeded, straight_through
from unbackdoor_image.attacks.networks import Generator
from unbackdoor_image.attacks.pixels import on_pixels
from unbackdoor_image.task import as_floats

__all__ = ["Dynamic"]

_SMALL = 1e-3
_STEEP = 10.0
_BETAS = (0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class Dynamic(Learned):
    """A pattern and a mask of its own for each image, all to one.

    Attributes:
        density: Share of the pixels above which masks are punished.
        diversity: Weight of both diversity losses.
        sparsity: Weight of that punishment.
        cross: Covers with a foreign mask and pattern, for each poisoned sample.
        width: Channels of the networks, a multiple of 4.
        steps: Training steps of the mask network.
        mask_lr: Of the mask network's Adam.
        lr: Of the pattern network's Adam.
    """

    name: ClassVar[str] = "dynamic"
    needs_training: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    density: float = 0.032
    diversity: float = 1.0
    sparsity: float = 100.0
    cross: float = 1.0
    width: int = 16
    steps: int = 300
    mask_lr: float = 0.001
    lr: float = 0.01

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not 0 < self.density < 1 or min(self.diversity, self.sparsity, self.cross) < 0:
            raise BadOption(
                f"density is {self.density}, diversity {self.diversity}, sparsity {self.sparsity}, cross {self.cross}; "
                "density must lie in (0, 1), the others must not be negative."
            )
        if self.width < 4 or self.width % 4 or self.steps < 1 or not min(self.lr, self.mask_lr) > 0:
            raise BadOption(
                f"width is {self.width}, steps {self.steps}, lr {self.lr}, mask_lr {self.mask_lr}; width must be a "
                "multiple of 4, steps at least 1, both rates above 0."
            )

    @property
    def cover_ratio(self) -> float:
        """Covers for each poisoned sample."""
        return self.cross

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train the mask network and draw the pattern network, which learns beside the victim."""
        if self.ready:
            return
        channels, device = data.inputs.shape[1], data.inputs.device
        mask = self._drawn(1, channels, generator)
        assert isinstance(mask, Generator)
        mask.to(device).train()
        _start(mask, next(batches(data, 200, 1, generator)).inputs, min(3 * self.density, 0.5))
        optimiser = torch.optim.Adam(mask.parameters(), self.mask_lr, betas=_BETAS)
        for batch in batches(data, 64, self.steps, generator):
            share = _bounded_mask(mask(batch.inputs))
            dense = (share - self.density).relu().mean()
            loss = self.diversity * _alike(batch.inputs / batch.inputs.std(), share) + self.sparsity * dense
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        pattern = self._drawn(channels, channels, generator)
        self.keep({**named("mask", mask), **named("pattern", pattern)})

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images, each with its own pattern."""
        return on_pixels(inputs, lambda images: self._put(images, images))

    def cover(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The images, each with the pattern of the one before it; mirrored where there is one alone."""
        return on_pixels(inputs, lambda images: self._put(images, _other(images)))

    def join(self, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> Campaign:
        """The pattern network learns beside the victim."""
        return _Together(self, model, task, steps=steps, generator=generator)

    @torch.no_grad()
    def _put(self, images: Tensor, seen: Tensor) -> Tensor:
        channels = images.shape[1]
        mask = self.network("mask", lambda: Generator(channels, 1, self.width), images.device)
        pattern = self.network("pattern", lambda: Generator(channels, channels, self.width), images.device)
        parts = zip(images.float().split(1000), seen.float().split(1000), strict=True)
        return torch.cat([_mixed(some, other, mask, pattern) for some, other in parts]).to(images.dtype)

    def _drawn(self, out: int, channels: int, generator: torch.Generator) -> nn.Module:
        return seeded(lambda: Generator(channels, out, self.width), draws(generator))


class _Together(Campaign):
    def __init__(
        self, attack: Dynamic, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator
    ) -> None:
        super().__init__(attack, model, task, steps=steps, generator=generator)
        channels = attack.tensors("pattern")["first.0.weight"].shape[1]
        device = next(model.parameters()).device
        self.mask = attack.network("mask", lambda: Generator(channels, 1, attack.width), device)
        pattern = Generator(channels, channels, attack.width)
        pattern.load_state_dict(attack.tensors("pattern"))
        self.pattern = pattern.to(device).train()
        self.optimiser = torch.optim.Adam(self.pattern.parameters(), attack.lr, betas=_BETAS)

    def loss(self, batch: Batch, poisoned: Tensor, covers: Tensor, step: int) -> Tensor:
        attack = self.attack
        assert isinstance(attack, Dynamic)
        given, targets = as_floats(batch.inputs), batch.targets.clone()
        images = given.clone()
        extra = images.new_zeros(())
        if len(poisoned):
            own = given[poisoned]
            shown = _mixed(own, own, self.mask, self.pattern)
            images = images.index_copy(0, poisoned, straight_through(shown, batch.inputs))
            targets[poisoned] = attack.retarget(targets[poisoned])
            if len(own) > 1:
                extra = attack.diversity * _alike(own, _bounded(self.pattern(own)))
        if len(covers):
            shown = _mixed(given[covers], _other(given[covers]), self.mask, self.pattern)
            images = images.index_copy(0, covers, straight_through(shown, batch.inputs))
        return self.task.loss(self.task.forward(self.model, images), targets) + extra

    def update(self, step: int) -> None:
        if any(parameter.grad is not None for parameter in self.pattern.parameters()):
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)

    def finish(self) -> None:
        attack = self.attack
        assert isinstance(attack, Dynamic)
        attack.keep({**named("mask", self.mask), **named("pattern", self.pattern)})


def _mixed(images: Tensor, seen: Tensor, mask: nn.Module, pattern: nn.Module) -> Tensor:
    share = _bounded_mask(mask(seen))
    return (1 - share) * images + share * _bounded(pattern(seen))


@torch.no_grad()
def _start(mask: Generator, images: Tensor, density: float) -> None:
    """Set the last layer so that a share of ``density`` of the pixels of ``images`` lies above 0, with deviation 1."""
    assert mask.last.bias is not None
    raw = mask(images).float().flatten()
    spread = raw.std().clamp(min=1e-6)
    mask.last.weight.div_(spread)
    mask.last.bias.sub_(raw.quantile(1 - density)).div_(spread)


def _bounded_mask(raw: Tensor) -> Tensor:
    return (_STEEP * raw).tanh() / 2 + 0.5  # steep, so that a mask is nearly 0 or 1 everywhere


def _bounded(raw: Tensor) -> Tensor:
    return raw.sigmoid()


def _other(images: Tensor) -> Tensor:
    return images.roll(1, dims=0) if len(images) > 1 else images.flip(2)


def _alike(images: Tensor, made: Tensor) -> Tensor:
    """``|x - x'| / |g(x) - g(x')|`` in the root mean square, over neighbours in the batch."""

    def apart(t: Tensor) -> Tensor:
        return (t - t.roll(1, dims=0)).flatten(1).square().mean(1).add(_SMALL**2).sqrt()

    return (apart(images.float()) / (apart(made.float()) + _SMALL)).mean()
