"""The worst loss near the weights: the ascent step of sharpness-aware minimisation, and descent from where it leads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.defender.purifier import Run
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.errors import BadOption
from unbackdoor.network.gradients import slopes
from unbackdoor.network.norms import untracked
from unbackdoor.task import Batch, Task

__all__ = ["SharpnessAware", "ascent"]


@torch.no_grad()
def ascent(
    values: Sequence[Tensor], slopes: Sequence[Tensor | None], radius: float, *, adaptive: bool
) -> list[Tensor | None]:
    r"""``e = rho T^2 g / ||T g||_2``: where the loss, seen as linear, is largest within ``||T^{-1} e||_2 <= rho``.

    ``T`` is the identity (Eq. (2) of Foret et al., ICLR 2021), or ``diag(|w|)`` (Eq. (8) of Kwon et al., ICML 2021,
    which FT-SAM uses). The norm runs over all tensors together.

    Args:
        values: The weights ``w``.
        slopes: ``g``, of the same shapes; None where a tensor plays no part.
        radius: ``rho``.
        adaptive: Which ``T``.

    Returns:
        ``e``, of the same shapes; None where there is no gradient, zero where the whole gradient is.
    """
    scaled = [g if g is None or not adaptive else w.abs() * g for w, g in zip(values, slopes, strict=True)]
    present = [g for g in scaled if g is not None]
    if not present:
        return [None] * len(scaled)
    norm = torch.nn.utils.get_total_norm(present)
    factor = radius / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return [
        None if g is None else factor * (w.abs() * g if adaptive else g) for w, g in zip(values, scaled, strict=True)
    ]


@dataclass(frozen=True)
class SharpnessAware:
    r"""``L(w + e(w))`` as an objective for `finetune`; its gradient leaves out how ``e`` depends on ``w``, as SAM does.

    Both passes see the same augmented samples, and running statistics move in the first pass alone.

    Attributes:
        model: What is tuned.
        weights: Its parameters.
        task: Gives the loss.
        run: Draws the augmentation.
        radius: ``rho``; 0 is plain fine-tuning, with one pass.
        adaptive: See `ascent`.
        mixup: Of `Task.augment`.
        share: Of the gradient at ``w + e``; the rest is that at ``w``: ``(1 - a) g(w) + a g(w + e)``. Below 1 it is a
            penalty on the gradient's norm (Zhao et al., ICML 2022).
    """

    model: nn.Module
    weights: FullWeights
    task: Task
    run: Run
    radius: float
    adaptive: bool = False
    mixup: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            BadOption: ``radius`` is negative or not finite, or ``share`` lies outside [0, 1].
        """
        if not 0 <= self.radius < float("inf"):
            raise BadOption(f"the radius of the ascent is {self.radius}; give a number of at least 0.")
        if not 0 <= self.share <= 1:
            raise BadOption(f"the share of the gradient after the ascent is {self.share}; it must lie in [0, 1].")

    def __call__(self, step: int, batch: Batch) -> Tensor:
        """The loss on a batch as drawn from the clean set: a scalar in nats."""
        fresh = self.task.augment(batch, self.run.generator, mix=self.mixup)
        values = self.weights.parameters()
        here = self.task.loss(self.task.forward(self.model, fresh.inputs), fresh.targets)
        if self.radius == 0 or self.share == 0:
            return here
        found = slopes(here, list(values.values()), retain_graph=self.share < 1)
        moves = ascent(list(values.values()), found, self.radius, adaptive=self.adaptive)
        moved = {
            name: value + move for (name, value), move in zip(values.items(), moves, strict=True) if move is not None
        }
        with self.weights.substituted(moved), untracked(self.model):
            there = self.task.loss(self.task.forward(self.model, fresh.inputs), fresh.targets)
        return there if self.share == 1 else (1 - self.share) * here + self.share * there
