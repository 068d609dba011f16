"""Training of victims and of clean models: batches of sentences of one length, Adam, bfloat16 where it is quick."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.training import PRECISIONS, Progress, TrainOptions, autocast, fit
from unbackdoor.builders import seeded
from unbackdoor.errors import BadOption
from unbackdoor.task import Task
from unbackdoor_translation.sequences import SOURCE, valid

__all__ = ["Training", "train"]

_SCHEDULES = ("one-cycle", "inverse-sqrt")


@dataclass(frozen=True, kw_only=True)
class Training(TrainOptions):
    """The options of `train`.

    Attributes:
        epochs: Passes over the data.
        batch_tokens: Source and target tokens of a step, padding counted.
        lr: Peak learning rate of Adam.
        schedule: ``"one-cycle"`` (linear up, cosine down) or ``"inverse-sqrt"``.
        warmup: Share of the steps in which the learning rate rises.
        smoothing: Label smoothing.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradient.
        precision: One of `unbackdoor.attacker.training.PRECISIONS`.
    """

    epochs: int = 20
    batch_tokens: int = 3000
    lr: float = 2e-3
    schedule: str = "one-cycle"
    warmup: float = 0.1
    smoothing: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that are not allowed."""
        self.check_known(schedule=_SCHEDULES, precision=PRECISIONS)
        self.check_at_least(1, "epochs", "batch_tokens")
        if not self.lr > 0 or not 0 < self.warmup < 1 or not 0 <= self.smoothing < 1 or not self.clip > 0:
            raise BadOption(
                f"lr is {self.lr}, warmup {self.warmup}, smoothing {self.smoothing}, clip {self.clip}; lr and clip "
                "must be above 0, warmup in (0, 1), smoothing in [0, 1)."
            )

    def rate(self, step: int, steps: int) -> float:
        """Factor of ``lr`` at ``step`` of ``steps``."""
        up = max(1, round(self.warmup * steps))
        if step < up:
            return (step + 1) / up
        if self.schedule == "inverse-sqrt":
            return math.sqrt(up / (step + 1))
        return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up))) + 1e-3


def train(
    model: nn.Module,
    data: Splits,
    task: Task,
    attack: Attack | None,
    *,
    seed: int,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """Train ``model`` in place with AdamW on ``data.train``, poisoned once by ``attack`` where there is one.

    Args:
        model: Any sequence-to-sequence model, on any device; it ends in eval mode. One with a context manager
            ``weight_normalised()`` is trained inside it, see `ConvolutionalSeq2Seq`.
        data: Its ``train`` part alone is read.
        task: A `TranslationTask`.
        attack: None trains a clean model.
        seed: Of the choice of poisoned pairs, their triggers, the order and dropout.
        progress: ``progress(step, steps, {"loss": ..., "lr": ...})``, about 100 times.
        **options: See `Training`.

    Raises:
        BadOption: An option is not known or its value not allowed.
        NonFinite: The loss became NaN or infinite.
    """
    how = Training.of(options)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    samples = data.train if attack is None else attack.poison(data.train, generator).samples
    samples = samples.to(device)
    pad = int(getattr(task, "pad", 0))
    widths = torch.stack([valid(rows, pad).sum(1).cpu() for rows in (samples.inputs[SOURCE], samples.targets)])
    plans = [_buckets(widths, how.batch_tokens, generator) for _ in range(how.epochs)]
    steps = sum(map(len, plans))
    context, kernels = autocast(how.precision, device), _kernels(device)

    def objective(step: int, index: Tensor) -> Tensor:
        batch = samples[index.to(device)]
        with context():
            logits = task.forward(model, batch.inputs)
        return _smoothed(logits, batch.targets, pad, how.smoothing)

    # dropout knows no generator but the global one
    with seeded(seed, device), kernels(), getattr(model, "weight_normalised", nullcontext)():
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=how.lr, betas=(0.9, 0.98), weight_decay=how.weight_decay, fused=device.type != "mps"
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: how.rate(step, steps))
        fit(
            model,
            objective,
            [rows for plan in plans for rows in plan],
            optimiser,
            schedule,
            steps=steps,
            progress=progress,
            clip=how.clip,
        )
        optimiser.zero_grad(set_to_none=True)


def _buckets(widths: Tensor, most: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of batches: neighbours in length, each of at most ``most`` cells (rows times both widths), shuffled."""
    noise = torch.rand(widths.shape[1], generator=generator)
    order = (widths[1] * 1000 + widths[0] + noise).argsort()
    batches: list[Tensor] = []
    start, wide = 0, torch.zeros(2, dtype=torch.long)
    for place, index in enumerate(order.tolist()):
        wider = torch.maximum(wide, widths[:, index])
        if place > start and int(wider.sum()) * (place - start + 1) > most:
            batches.append(order[start:place])
            start, wider = place, widths[:, index]
        wide = wider
    batches.append(order[start:])
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _smoothed(logits: Tensor, targets: Tensor, pad: int, smoothing: float) -> Tensor:
    rows = targets[:, : logits.shape[1]]
    rows = torch.where(valid(rows, pad), rows, torch.full_like(rows, -100))
    return functional.cross_entropy(logits.float().flatten(0, 1), rows.flatten(), label_smoothing=smoothing)


def _kernels(device: torch.device) -> Callable[[], Any]:
    """The fused attention of CPUs is slower than plain products for sentences: a step took 1.35 times as long."""
    return (lambda: sdpa_kernel(SDPBackend.MATH)) if device.type == "cpu" else nullcontext
