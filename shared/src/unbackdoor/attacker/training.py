"""How victims and clean models are trained: options by name, precision, the loop, and the poison within it.

A task package writes its own ``train`` with these parts. `train_by_batches` is a whole trainer for inputs that can be
poisoned batch by batch; `fit` is the bare loop for a package that makes its own batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unbackdoor.attacker.attack import Attack, Campaign
from unbackdoor.errors import BadOption, NonFinite
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree, tree_put

__all__ = ["PRECISIONS", "Progress", "TrainOptions", "autocast", "fit", "native_bf16", "train_by_batches"]

PRECISIONS = ("auto", "fp32", "bf16")
"""``"bf16"`` for autocast, ``"fp32"``, or ``"auto"``: bf16 where the hardware is fast in it."""

Progress = Callable[[int, int, Mapping[str, float]], None]
"""``progress(step, steps, {"loss": ..., "lr": ...})``, called about 100 times."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Base of a package's training options: a frozen dataclass whose fields are the keywords of its ``train``."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The options by name.

        Raises:
            BadOption: There is no such option.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise BadOption(f"training has no option {name!r}. Known: {', '.join(known)}.")
        return cls(**options)

    def check_known(self, **allowed: Iterable[str]) -> None:
        """Refuse an option whose value is none of those ``allowed`` for it.

        Raises:
            BadOption: Names option, value and what is allowed.
        """
        for name, known in allowed.items():
            if getattr(self, name) not in tuple(known):
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")

    def check_at_least(self, least: int, *names: str) -> None:
        """Refuse options that lie below ``least``.

        Raises:
            BadOption: Names option, value and ``least``.
        """
        for name in names:
            if getattr(self, name) < least:
                raise BadOption(f"{name} is {getattr(self, name)}; it must be at least {least}.")


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(check is not None and bool(check()) for check in checks)
    return False


def autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    """Makes the context of a forward pass in ``precision``, one of `PRECISIONS`."""
    if precision == "bf16" or (precision == "auto" and native_bf16(device)):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext


def fit(
    model: nn.Module,
    objective: Callable[[int, Tensor], Tensor],
    batches: Iterable[Tensor],
    optimiser: Optimizer,
    schedule: LRScheduler,
    *,
    steps: int,
    progress: Progress | None = None,
    clip: float | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Train ``model`` in place, one step for each of ``batches``; nothing waits for the device between two reports.

    Args:
        model: In train mode inside, in eval mode afterwards.
        objective: ``objective(step, batch)`` gives the scalar to minimise; steps count from 1.
        batches: Indices of the samples of each step, or whatever ``objective`` takes.
        optimiser: Of the model's parameters.
        schedule: Of its learning rate, stepped after each step.
        steps: Number of batches.
        progress: See `Progress`; the loss is the mean since the last call.
        clip: Largest norm of the gradient; None for no limit.
        after_step: Called with the step after each update.

    Raises:
        NonFinite: The loss became NaN or infinite.
    """
    every = max(1, steps // 100)
    total: Tensor | float = 0.0
    model.train()
    for step, batch in enumerate(batches, start=1):
        loss = objective(step, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        rate = float(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
        if after_step is not None:
            after_step(step)
        total = total + loss.detach()
        if step % every == 0 or step == steps:
            mean = float(total) / ((step - 1) % every + 1)
            if not math.isfinite(mean):
                raise NonFinite(f"the training loss is {mean} at step {step} of {steps}; lower lr (it is {rate:.3g}).")
            if progress is not None:
                progress(step, steps, {"loss": mean, "lr": rate})
            total = 0.0
    model.eval()


def train_by_batches(
    model: nn.Module,
    samples: Batch,
    task: Task,
    attack: Attack | None,
    optimisers: Callable[[int], tuple[Optimizer, LRScheduler]],
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    count: int | None = None,
    precision: str = "auto",
    clip: float | None = None,
    arrange: Callable[[Tree], Tree] | None = None,
    progress: Progress | None = None,
) -> None:
    """Train ``model`` in place on device-resident ``samples``, poisoned by ``attack`` where there is one.

    Which samples are poisoned is drawn once, by `Attack.plan`. Their trigger is put on batch by batch, after
    `Task.augment`: it is never moved, cut or mirrored, and looks as it will in the test. An attack that learns its
    trigger is prepared first, and one that controls the training makes the loss (see `Campaign`).

    Args:
        model: On any device; it ends in eval mode.
        samples: The training part; ``targets`` is one tensor.
        task: Its `Task.augment` keeps shapes.
        attack: None trains a clean model.
        optimisers: ``optimisers(steps)`` makes the optimiser and its schedule.
        epochs: Passes over the data.
        batch_size: Samples a step; a last batch that is not full is left out.
        generator: Draws the poisoned samples, the order, the augmentation and triggers drawn for each sample.
        count: Train on so many samples, drawn once; None takes all.
        precision: One of `PRECISIONS`.
        clip: See `fit`.
        arrange: Applied to the inputs of each batch (memory layout); it must keep the values.
        progress: See `Progress`.

    Raises:
        NonFinite: The loss became NaN or infinite.
        BadOption: Too few samples can be poisoned.
    """
    device = next(model.parameters()).device
    if count is not None and count < len(samples):
        samples = samples[torch.randperm(len(samples), generator=generator)[:count].sort().values]
    samples = samples.to(device)
    poisoned, covers = torch.zeros(2, len(samples), dtype=torch.bool)
    if attack is not None:
        attack.prepare(samples, generator)
        chosen, others = attack.plan(samples.targets, generator)
        poisoned[chosen], covers[others] = True, True
        samples = _reworked(samples, chosen.to(device), attack, generator)
    size = min(batch_size, len(samples))
    steps = epochs * (len(samples) // size)
    optimiser, schedule = optimisers(steps)
    context = autocast(precision, device)
    model.train()
    campaign: Campaign | None = None
    if attack is not None:
        campaign = attack.join(model, task, steps=steps, generator=generator)

    def objective(step: int, index: Tensor) -> Tensor:
        batch = task.augment(samples[index.to(device)], generator, mix=0.0)
        if arrange is not None:
            batch = Batch(arrange(batch.inputs), batch.targets)
        with context():
            if campaign is None:
                return task.loss(task.forward(model, batch.inputs), batch.targets)
            return campaign.loss(batch, _places(poisoned[index], device), _places(covers[index], device), step)

    fit(
        model,
        objective,
        _shuffled(len(samples), size, steps, generator),
        optimiser,
        schedule,
        steps=steps,
        progress=progress,
        clip=clip,
        after_step=None if campaign is None else campaign.update,
    )
    if campaign is not None:
        campaign.finish()


def _shuffled(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of ``steps`` full batches, on the CPU, of a fresh permutation for every epoch."""
    for _ in range(steps // (count // size)):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def _reworked(samples: Batch, chosen: Tensor, attack: Attack, generator: torch.Generator) -> Batch:
    if type(attack).rework is Attack.rework:
        return samples
    some = samples[chosen]
    changed = attack.rework(some.inputs, some.targets, generator)
    return Batch(tree_put(samples.inputs, chosen, changed), samples.targets)


def _places(marked: Tensor, device: torch.device) -> Tensor:
    return marked.nonzero().flatten().to(device)
