"""The empirical Fisher information: its diagonal and its trace."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature.per_sample import Handle, per_sample_gradients
from unbackdoor.network.gradients import slopes
from unbackdoor.task import Task

__all__ = ["fisher_diagonal", "fisher_trace"]


def fisher_diagonal(
    handle: Handle, model: nn.Module, task: Task, clean: CleanSet, *, chunk: int = 32
) -> dict[str, Tensor]:
    r"""``diag(F)_i = 1/N sum_n (d log p(y_n | x_n) / d theta_i)^2``: Eq. (6) of FIP, the mean of squares.

    (The square of the mean gradient, which looks alike, is almost zero at a trained model.)

    Args:
        handle: Attached; ``F`` is taken at its current values.
        model: In eval mode.
        task: Gives the log-likelihood.
        clean: All ``N`` samples are used once.
        chunk: Samples whose gradients are held at the same time.

    Returns:
        For each name a non-negative tensor of the value's shape.
    """
    total = {name: torch.zeros_like(value, requires_grad=False) for name, value in handle.parameters().items()}
    for batch in clean.once(chunk):
        for name, rows in per_sample_gradients(handle, model, task, batch).items():
            total[name] += rows.square().sum(0)
    return {name: value / len(clean) for name, value in total.items()}


def fisher_trace(log_likelihood: Tensor, parameters: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    r"""An unbiased estimate of ``Tr(F) = 1/B sum_n ||g_n||^2`` that can be differentiated: Eq. (7)-(9) of FIP.

    With independent signs ``r_n = +-1``, ``E ||sum_n r_n g_n||^2 = sum_n ||g_n||^2``, so one backward pass
    over the batch replaces ``B``; differentiating the result is one double backward pass.

    Args:
        log_likelihood: ``log p(y_n | x_n)``, shape ``(B,)``, with its graph; samples must not mix.
        parameters: With respect to which.
        generator: Draws the signs (a CPU generator).

    Returns:
        A scalar.
    """
    count = len(log_likelihood)
    coins = torch.randint(0, 2, (count,), generator=generator, device=generator.device)
    signs = (2 * coins - 1).to(log_likelihood)
    gradients = slopes((signs * log_likelihood).sum(), parameters, create_graph=True)
    squares = [g.square().sum() for g in gradients if g is not None]
    return torch.stack(squares).sum() / count
