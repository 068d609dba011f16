"""Perturbations of inputs that hurt a model: in units of the data's own spread, drawn by an explicit generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.errors import BadOption
from unbackdoor.network.gradients import slopes
from unbackdoor.task import Batch

__all__ = ["Ball", "ascend", "spread", "universal"]


@torch.no_grad()
def spread(space: InputSpace, clean: CleanSet) -> float:
    """Standard deviation of all values that may be perturbed in the clean samples, at least 1e-6.

    A radius in this unit means the same for values in [0, 1], for normalised values and for coordinates.
    """
    values = torch.cat([space.task.perturbable(b.inputs).double().flatten() for b in clean.once(500)])
    return max(float(values.std(correction=0)), 1e-6)


@dataclass(frozen=True)
class Ball:
    """The perturbations ``||delta||_p <= radius``, one for each leading index of ``delta``.

    Attributes:
        radius: In the unit of the inputs.
        norm: ``"l2"`` or ``"linf"``.
    """

    radius: float
    norm: Literal["l2", "linf"] = "l2"

    def __post_init__(self) -> None:
        """Refuse a ball that is none.

        Raises:
            BadOption: The radius is not positive and finite.
        """
        if not 0 < self.radius < float("inf"):
            raise BadOption(f"the radius of perturbations is {self.radius}; give a positive number.")

    @classmethod
    def of(cls, space: InputSpace, clean: CleanSet, size: float, norm: Literal["l2", "linf"] = "l2") -> Self:
        """``size`` standard deviations of the clean inputs: the largest change of a value, or its root mean square."""
        unit = spread(space, clean)
        return cls(size * unit if norm == "linf" else size * unit * space.zeros().numel() ** 0.5, norm)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of the ball."""
        if self.norm == "linf":
            return delta.clamp(-self.radius, self.radius)
        length: Tensor = delta.flatten(1).norm(dim=1)
        factor: Tensor = (self.radius / length.clamp(min=torch.finfo(delta.dtype).tiny)).clamp(max=1.0)
        projected: Tensor = delta * factor.view(-1, *[1] * (delta.ndim - 1))
        return projected

    def steepest(self, slope: Tensor) -> Tensor:
        """The direction of norm 1 along which a linear function of that slope grows fastest; 0 where it is flat."""
        if self.norm == "linf":
            return slope.sign()
        length = slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
        direction: Tensor = slope / length.view(-1, *[1] * (slope.ndim - 1))
        return direction

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """A random start inside: uniform in the cube for ``linf``, half the radius in a random direction for ``l2``."""
        if self.norm == "linf":
            noise = torch.rand(like.shape, generator=generator, dtype=torch.float32, device=generator.device)
            return (2 * noise.to(like) - 1) * self.radius
        noise = torch.randn(like.shape, generator=generator, dtype=torch.float32, device=generator.device).to(like)
        return 0.5 * self.radius * self.steepest(noise)


def ascend(gain: Callable[[Tensor], Tensor], start: Tensor, ball: Ball, *, steps: int, reach: float = 2.5) -> Tensor:
    """Projected gradient ascent of ``gain(delta)``, a scalar, in ``steps`` steps of ``reach * radius`` together.

    Steps shrink evenly towards 0, so that the end is a maximum and not a swing about it. Weights get no gradients.
    """
    delta = ball.project(start.detach())
    for k in range(steps):
        size = 2 * reach * ball.radius * (steps - k) / (steps * (steps + 1))
        delta.requires_grad_(True)
        (slope,) = slopes(gain(delta), [delta], what="the inputs")
        assert slope is not None
        delta = ball.project(delta.detach() + size * ball.steepest(slope))
    return delta.detach()


def universal(
    model: nn.Module,
    space: InputSpace,
    draw: Callable[[], Batch],
    ball: Ball,
    generator: torch.Generator,
    *,
    steps: int,
    penalty: float = 0.0,
) -> Tensor:
    """One perturbation of all samples that raises the task's loss most; a fresh batch each step.

    Args:
        model: In eval mode; gets no gradients.
        space: Puts perturbations into inputs.
        draw: Gives batches.
        ball: Of the perturbation.
        generator: Of the start.
        steps: Of projected gradient ascent.
        penalty: Of ``||delta||^2`` in the maximised function.

    Returns:
        ``delta`` of batch size 1.
    """

    def gain(delta: Tensor) -> Tensor:
        batch = draw()
        task = space.task
        loss = task.loss(task.forward(model, space.add(batch.inputs, delta)), batch.targets)
        return loss - penalty * delta.square().sum()

    return ascend(gain, ball.draw(space.zeros(), generator), ball, steps=steps)
