"""What attacks that learn share: where their tensors are kept, and the surrogate network that they learn against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from unbackdoor.attacker.attack import Attack
from unbackdoor.builders import seeded
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor_pointcloud.models.pointnet import PointNet

__all__ = ["Learned", "batches", "train_surrogate"]


@dataclass(frozen=True, kw_only=True)
class Learned(Attack):
    """An attack with tensors that are learned from training data.

    Attributes:
        learned: Its tensors by name, on the CPU; None until they are learned.
    """

    learned: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def options(self) -> dict[str, Any]:
        """The hyper-parameters without what is learned."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "learned"}

    def state(self) -> dict[str, Tensor]:
        """What is learned; empty before."""
        return dict(self.learned or {})

    @classmethod
    def restore(cls, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The attack that `options` and `state` describe."""
        return cls(**options, learned=dict(state) or None)

    @property
    def ready(self) -> bool:
        """Whether it has learned."""
        return self.learned is not None

    def tensor(self, name: str) -> Tensor:
        """What is learned under ``name``.

        Raises:
            BadOption: Nothing is learned yet.
        """
        if self.learned is None:
            raise BadOption(
                f"the {self.name} attack has learned nothing yet, it learns while a victim is trained; train one "
                f"(unbackdoor attack --attack {self.name}), call prepare(data, generator) or restore a saved state."
            )
        return self.learned[name]

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Make copies of ``tensors``, on the CPU, the learned ones."""
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        object.__setattr__(self, "learned", copies)


def batches(data: Batch, size: int, steps: int, generator: torch.Generator) -> Iterator[Batch]:
    """``steps`` batches of random samples, one permutation after another."""
    size = min(size, len(data))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(data), generator=generator)
        batch, order = data[order[:size].to(data.targets.device)], order[size:]
        yield batch


def train_surrogate(
    data: Batch, num_classes: int, generator: torch.Generator, *, steps: int, width: float = 0.5, batch_size: int = 32
) -> PointNet:
    """A PointNet without T-Nets trained on clean clouds, in eval mode and without gradients.

    Args:
        data: Clouds and class indices.
        num_classes: Number of logits.
        generator: Of weights and order.
        steps: Of Adam with a one-cycle schedule.
        width: Factor of its widths.
        batch_size: Clouds a step.
    """
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with seeded(seed):
        net = PointNet(num_classes, width=width, transforms=False, dropout=0.0)
    net.to(data.inputs.device).train()
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    schedule = OneCycleLR(optimiser, 5e-3, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False)
    for batch in batches(data, batch_size, steps, generator):
        loss = functional.cross_entropy(net(batch.inputs.float()), batch.targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval().requires_grad_(False)
