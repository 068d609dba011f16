"""The smallest useful task, attack and victim, without any package beside the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbackdoor.attacker.attack import Attack
from unbackdoor.classes import of_probabilities, pick_logits
from unbackdoor.data import CleanSet
from unbackdoor.errors import BadData
from unbackdoor.task import Batch, Meter, Task
from unbackdoor.tree import Tree, leaves, tree_map

__all__ = ["ClassificationTask", "SquareTrigger", "TinyVictim", "tiny_victim"]


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Classes of anything: the smallest useful task, without any package beside the core.

    Inputs are what the model takes; targets are class indices (int64), probabilities ``(batch, classes)``, or the
    triple ``(a, b, lambda)`` that `augment` makes. Integer inputs (tokens) are not mixed.
    """

    name: ClassVar[str] = "classification"

    def forward(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Logits ``(batch, classes)``, picked out of a dictionary or tuple where the model gives one."""
        answer = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        logits: Tensor = pick_logits(answer)
        return logits

    def as_logits(self, outputs: Tree) -> Callable[[Tensor], Tensor] | None:
        """The logarithm where a model gives probabilities."""
        return of_probabilities(outputs)

    def log_likelihood(self, outputs: Tree, targets: Tree) -> Tensor:
        """``log softmax(z)_y``; for a mixture ``lambda * l_a + (1 - lambda) * l_b``."""
        logs = outputs.log_softmax(1)
        if isinstance(targets, tuple):
            first, second, share = targets
            mixed: Tensor = share * _pick(logs, first) + (1 - share) * _pick(logs, second)
            return mixed
        if targets.is_floating_point():
            return (targets * logs).sum(1)  # type: ignore[no-any-return]
        return _pick(logs, targets)

    def imitate(self, reference: Tree, targets: Tree, kept: Tensor) -> Tensor:
        """Those of ``kept`` keep the labels' share; the softmax divides the rest."""
        shares = _shares(targets, reference.softmax(1))
        trusted = reference.masked_fill(kept, -torch.inf).softmax(1).nan_to_num(0.0)
        rest = (shares * ~kept).sum(1, keepdim=True)
        soft: Tensor = shares * kept + trusted * rest
        return soft

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """MixUp with one ``lambda ~ Beta(mix, mix)``; nothing else."""
        if mix == 0 or not all(leaf.is_floating_point() for leaf in leaves(batch.inputs)):
            return batch
        gammas = torch._standard_gamma(torch.full((2,), mix, dtype=torch.float64), generator=generator)
        share = float(gammas[0] / gammas.sum().clamp(min=1e-300))
        partners = torch.randperm(len(batch), generator=generator).to(leaves(batch.targets)[0].device)
        inputs = tree_map(lambda t: share * t + (1 - share) * t[partners], batch.inputs)
        shares = torch.full((len(batch),), share, dtype=leaves(inputs)[0].dtype, device=partners.device)
        return Batch(inputs, (batch.targets, batch.targets[partners], shares))

    def meters(self) -> Mapping[str, Meter]:
        """Accuracy."""
        return {"accuracy": _Accuracy()}

    def correct(self, outputs: Tree, targets: Tree) -> Tensor:
        """Whether the largest logit is that of the class."""
        right: Tensor = outputs.argmax(1) == (targets.argmax(1) if targets.is_floating_point() else targets)
        return right

    def perturbable(self, inputs: Tree) -> Tensor:
        """The inputs themselves where they are floats."""
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            return super().perturbable(inputs)
        return inputs

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse class indices that the model has no logit for.

        Raises:
            BadData: A label lies outside 0..classes - 1.
        """
        classes = outputs.shape[1]
        if (
            not clean.targets.is_floating_point()
            and not 0 <= int(clean.targets.min()) <= int(clean.targets.max()) < classes
        ):
            raise BadData(f"labels range beyond 0..{classes - 1}, the classes that the model tells apart.")
        return []

    def samples_per_class(self, targets: Tree) -> float:
        """Samples divided by classes that occur."""
        return len(targets) / len(self.strata(targets).unique())

    def strata(self, targets: Tree) -> Tensor:
        """The classes."""
        classes: Tensor = targets.argmax(1) if targets.is_floating_point() else targets
        return classes


class _Accuracy:
    def __init__(self) -> None:
        self.right, self.count = 0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count right answers."""
        self.right += int(ClassificationTask().correct(outputs, targets).sum())
        self.count += len(outputs)

    def compute(self) -> float:
        """Their share."""
        return self.right / max(self.count, 1)


@dataclass(frozen=True, kw_only=True)
class SquareTrigger(Attack):
    """A bright square in the corner of an image: the smallest attack that works.

    Attributes:
        size: Side of the square in pixels.
    """

    name: ClassVar[str] = "square"

    size: int = 2

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the square on."""
        triggered: Tensor = inputs.clone()
        triggered[..., : self.size, : self.size] = 1.0
        return triggered


@dataclass(frozen=True)
class TinyVictim:
    """A backdoored network on synthetic images, the defender's samples and test samples."""

    model: nn.Module
    attack: Attack
    clean: Batch
    test: Batch


def tiny_victim(*, seed: int = 0, steps: int = 150) -> TinyVictim:
    """Train a network with BatchNorm in about two seconds on noisy prototypes of 8x8 pixels, 10 % of them triggered."""
    attack = SquareTrigger(num_classes=5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, 5)),
        )
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(5, 1, 4, 4, generator=generator).repeat_interleave(2, 2).repeat_interleave(2, 3)

    def draw(count: int) -> Batch:
        targets = torch.arange(count) % 5
        noise = 0.25 * torch.randn(count, 1, 8, 8, generator=generator)
        return Batch((0.1 + 0.6 * prototypes[targets] + noise).clamp(0, 1), targets)

    train = attack.poison(draw(1000), generator).samples
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    batches = CleanSet(train).batches(100, generator)
    for _ in range(steps):
        batch = next(batches)
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return TinyVictim(model.eval(), attack, draw(150), draw(500))


def _shares(targets: Tree, like: Tensor) -> Tensor:
    if isinstance(targets, tuple):
        first, second, share = targets
        share = share.unsqueeze(1)
        mixed: Tensor = share * _shares(first, like) + (1 - share) * _shares(second, like)
        return mixed
    given: Tensor = targets
    if given.is_floating_point():
        return given
    return functional.one_hot(given, like.shape[1]).to(like)


def _pick(logs: Tensor, classes: Tensor) -> Tensor:
    return logs.gather(1, classes.long().unsqueeze(1)).squeeze(1)
