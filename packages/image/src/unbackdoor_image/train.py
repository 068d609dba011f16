"""Training of victims and of clean models: device-resident data, poison put on after the augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from unbackdoor.attack import Attack
from unbackdoor.errors import BadOption, NonFinite
from unbackdoor.kit import Splits
from unbackdoor.task import Batch, Task

__all__ = ["RECIPES", "Training", "native_bf16", "train"]

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "fast": {"epochs": 20, "lr": 0.1, "weight_decay": 5e-4, "nesterov": True, "drop": 0},
    "paper": {"epochs": 250, "lr": 0.01, "weight_decay": 5e-4, "nesterov": False, "drop": 100},
    "paper-gtsrb": {"epochs": 200, "lr": 0.01, "weight_decay": 5e-4, "nesterov": False, "drop": 100},
    "paper-tiny": {"epochs": 150, "lr": 0.005, "weight_decay": 1e-4, "nesterov": False, "drop": 60},
    "paper-imagenet": {"epochs": 200, "lr": 0.02, "weight_decay": 1e-4, "nesterov": False, "drop": 75},
}
"""``fast``: one-cycle. ``paper``: CIFAR-10 in NFT and FIP (A.3.1), a tenth of the rate every ``drop`` epochs; the
others are FIP's for its other data sets (for GTSRB it names no drop, so CIFAR-10's is taken)."""

_PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Training:
    """The options of `train`.

    Attributes:
        epochs: Passes over the data; None takes the recipe's.
        batch_size: Samples a step.
        lr: Peak learning rate; None takes the recipe's.
        momentum: Of SGD.
        weight_decay: Of SGD; None takes the recipe's.
        recipe: ``"fast"``, ``"paper"`` or one of the others of `RECIPES`.
        precision: ``"bf16"`` for autocast, ``"fp32"``, or ``"auto"``: bf16 where the hardware is fast in it.
        samples: Train on so many, drawn once from the training part; None takes all.
    """

    epochs: int | None = None
    batch_size: int = 128
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    recipe: str = "fast"
    precision: str = "auto"
    samples: int | None = None

    def __post_init__(self) -> None:
        """Fill in what the recipe says and refuse values that are not allowed."""
        for name, known in (("recipe", tuple(RECIPES)), ("precision", _PRECISIONS)):
            if getattr(self, name) not in known:
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")
        for name in ("epochs", "lr", "weight_decay"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, RECIPES[self.recipe][name])
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise BadOption(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.samples is not None and self.samples < 2:
            raise BadOption(f"samples is {self.samples}; give at least 2, or leave it out to train on all.")
        if not self.lr or not self.lr > 0:
            raise BadOption(f"lr is {self.lr}; it must be above 0.")

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


def train(
    model: nn.Module,
    data: Splits,
    task: Task,
    attack: Attack | None,
    *,
    seed: int,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    **options: Any,
) -> None:
    """Train ``model`` in place with SGD on ``data.train``, poisoned by ``attack`` where there is one.

    Which samples are poisoned is drawn once, by `Attack.choose`. Their trigger is put on batch by batch, after the
    random crop and flip: it is never moved, cut or mirrored, and looks as it will in the test. An attack that learns
    its trigger is prepared first, and one that controls the training makes the loss (see `unbackdoor.attack.Campaign`).

    Args:
        model: Any classifier, on any device; it ends in eval mode.
        data: Its ``train`` part alone is read.
        task: `ImageTask`, or any other whose ``augment`` keeps shapes.
        attack: None trains a clean model.
        seed: Of the choice of poisoned samples, the order, the augmentation and triggers drawn for each sample.
        progress: ``progress(step, steps, {"loss": ..., "lr": ...})``, about 100 times.
        **options: See `Training`.

    Raises:
        BadOption: An option is not known or its value not allowed.
        NonFinite: The loss became NaN or infinite.
    """
    how = Training.of(options)
    device = next(model.parameters()).device
    autocast = _autocast(how.precision, device)
    generator = torch.Generator().manual_seed(seed)
    samples = data.train
    if how.samples is not None and how.samples < len(samples):
        samples = samples[torch.randperm(len(samples), generator=generator)[: how.samples].sort().values]
    samples = samples.to(device)
    poisoned = torch.zeros(len(samples), dtype=torch.bool)
    covers = torch.zeros(len(samples), dtype=torch.bool)
    if attack is not None:
        attack.prepare(samples, generator)
        chosen, others = attack.plan(samples.targets, generator)
        poisoned[chosen], covers[others] = True, True
        samples = _reworked(samples, chosen.to(device), attack, generator)
    size = min(how.batch_size, len(samples))
    steps = (how.epochs or 0) * (len(samples) // size)
    optimiser, schedule = _optimiser(model, how, steps)
    report_every = max(1, steps // 100)
    total = torch.zeros((), device=device)
    _as_channels_last(model)
    model.train()
    campaign = None if attack is None else attack.join(model, task, steps=steps, generator=generator)
    for step, index in enumerate(_batches(len(samples), size, steps, generator), start=1):
        batch = task.augment(samples[index.to(device)], generator, mix=0.0)
        batch = Batch(batch.inputs.contiguous(memory_format=torch.channels_last), batch.targets)
        with autocast():
            if campaign is None:
                loss = task.loss(task.forward(model, batch.inputs), batch.targets)
            else:
                loss = campaign.loss(batch, _places(poisoned[index], device), _places(covers[index], device), step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        rate = float(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
        if campaign is not None:
            campaign.update(step)
        total += loss.detach()
        if step % report_every == 0 or step == steps:
            _tell(progress, step, steps, float(total) / ((step - 1) % report_every + 1), rate)
            total.zero_()
    if campaign is not None:
        campaign.finish()
    model.to(memory_format=torch.contiguous_format)
    model.eval()


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(check is not None and bool(check()) for check in checks)
    return False


def _autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    if precision == "bf16" or (precision == "auto" and native_bf16(device)):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext


def _batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of ``steps`` full batches, on the CPU, of a fresh permutation for every epoch."""
    for _ in range(steps // (count // size)):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def _reworked(samples: Batch, chosen: Tensor, attack: Attack, generator: torch.Generator) -> Batch:
    if type(attack).rework is Attack.rework:
        return samples
    inputs = samples.inputs.clone()
    inputs[chosen] = attack.rework(inputs[chosen], samples.targets[chosen], generator)
    return Batch(inputs, samples.targets)


def _places(marked: Tensor, device: torch.device) -> Tensor:
    return marked.nonzero().flatten().to(device)


def _optimiser(model: nn.Module, how: Training, steps: int) -> tuple[torch.optim.SGD, LRScheduler]:
    lr, epochs = how.lr or 0.0, how.epochs or 0
    recipe = RECIPES[how.recipe]
    nesterov, decay = recipe["nesterov"] and how.momentum > 0, how.weight_decay or 0.0
    optimiser = torch.optim.SGD(model.parameters(), lr, how.momentum, weight_decay=decay, nesterov=nesterov)
    if recipe["drop"] == 0:
        return optimiser, OneCycleLR(optimiser, lr, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False)
    marks = [steps * epoch // epochs for epoch in range(recipe["drop"], epochs, recipe["drop"])]
    return optimiser, MultiStepLR(optimiser, marks, gamma=0.1)


def _as_channels_last(model: nn.Module) -> None:
    """Convolutions on a CPU are 2.4 times faster in this layout; the values are the same."""
    if any(parameter.ndim == 4 for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)


def _tell(
    progress: Callable[[int, int, Mapping[str, float]], None] | None, step: int, steps: int, loss: float, rate: float
) -> None:
    if not loss < float("inf"):
        raise NonFinite(f"the training loss is {loss} at step {step} of {steps}; lower lr (it is {rate:.3g}).")
    if progress is not None:
        progress(step, steps, {"loss": loss, "lr": rate})
