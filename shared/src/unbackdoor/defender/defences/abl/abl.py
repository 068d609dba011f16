"""Anti-backdoor learning: isolate what is learned too easily, then unlearn it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.defence import Build, TrainingDefence, losses, train_plainly
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.schedule import Schedule, marks
from unbackdoor.defender.tolerance import right_answers
from unbackdoor.errors import BadOption
from unbackdoor.measure import clean_metrics
from unbackdoor.network.norms import check_norm_mode, train_norms
from unbackdoor.network.readiness import fast_layout
from unbackdoor.options import option
from unbackdoor.task import Batch, Task
from unbackdoor.tree import tree_map

__all__ = ["ABL", "flooded", "isolated", "locally_ascended", "unlikelihood"]

Trap = Literal["lga", "flooding"]
Loss = Callable[[Tensor], Tensor]
_JUDGED = 2000
_HALVINGS = 6
_LEAST = 10


def locally_ascended(values: Tensor, gamma: float, *, per_sample: bool) -> Tensor:
    r"""``mean_n sign(l_n - gamma) l_n``, or ``sign(mean l - gamma) mean l``: a scalar.

    Local gradient ascent, Eq. (3) of the paper: below ``gamma`` the gradient points upwards. Easy samples fall below it
    again and again, hard ones never reach it.

    Args:
        values: Losses, float of shape ``(batch,)``.
        gamma: The level.
        per_sample: As in the paper's expectation; else on the mean of the batch, as in the authors' code.
    """
    value = values if per_sample else values.mean()
    return (torch.sign(value.detach() - gamma) * value).mean()


def flooded(values: Tensor, level: float, *, per_sample: bool) -> Tensor:
    """``mean_n |l_n - b| + b``, or of the batch's mean: a scalar that is never below ``level``."""
    value = values if per_sample else values.mean()
    return ((value - level).abs() + level).mean()


_PUBLISHED = {
    "batch_size": 64,
    "lr": 0.1,
    "weight_decay": 1e-4,
    "schedule": "milestones",
    "milestones": "40",
    "ascent": "loss",
    "unlearn_lr": 5e-4,
    "unlearn_bn": "update",
    "max_clean_drop": None,
}


@dataclass(frozen=True, kw_only=True)
class ABL(TrainingDefence):
    """Keep the loss above a level, isolate the samples with the lowest, train on the rest, unlearn the isolated."""

    name: ClassVar[str] = "abl"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PUBLISHED | {"per_sample": True, "unlearn_epochs": 20},
        "authors": _PUBLISHED | {"trap": "flooding", "trap_epochs": 10, "retain": False, "unlearn_epochs": 5},
    }

    trap: Trap = option("lga", "what keeps the loss up: lga (local gradient ascent) or flooding")
    gamma: float = option(0.5, "level of the loss that it is kept at, in nats")
    per_sample: bool = option(False, "level for each sample, or for the mean of a batch")
    trap_epochs: int = option(20, "passes over all data before samples are isolated")
    isolate: float = option(0.01, "share of the samples that is isolated")
    epochs: int = option(60, "passes over the rest")
    unlearn_epochs: int = option(
        100, "passes over the isolated samples; with max_clean_drop at most, of 10 steps or more"
    )
    unlearn_lr: float = option(5e-3, "learning rate of unlearning")
    ascent: Literal["unlikelihood", "loss"] = option(
        "unlikelihood", "unlearn by -log(1 - p), or by ascending the loss, as the paper"
    )
    retain: bool = option(True, "train on hard samples while unlearning the isolated ones")
    unlearn_bn: Literal["frozen", "update"] = option(
        "frozen", "BatchNorm while unlearning: stored statistics, or train"
    )
    max_clean_drop: float | None = option(
        3.0, "points of accuracy on hard samples that unlearning may cost; None for all epochs whatever they cost"
    )
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.1, "peak learning rate of SGD")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(5e-4, "L2 penalty of SGD")
    schedule: Schedule = option(
        "one-cycle", "learning rate on the rest: one-cycle, cosine, step, milestones or constant"
    )
    milestones: str = option("", "epochs on the rest after which lr falls to a tenth, for schedule milestones")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if self.trap not in ("lga", "flooding"):
            raise BadOption(f"no trap {self.trap!r}. Known: lga, flooding.")
        if self.ascent not in ("unlikelihood", "loss"):
            raise BadOption(f"no ascent {self.ascent!r}. Known: unlikelihood, loss.")
        if not 0 < self.isolate < 1:
            raise BadOption(f"isolate is {self.isolate}; the share of isolated samples must lie in (0, 1).")
        check_norm_mode(self.unlearn_bn)
        marks(self.milestones)
        if self.gamma < 0 or (self.max_clean_drop or 0) < 0 or not self.unlearn_lr > 0:
            raise BadOption("gamma and max_clean_drop must be at least 0 and unlearn_lr above 0.")

    def _train(self, build: Build, data: CleanSet, task: Task, run: Run) -> nn.Module:
        model = run.model
        how = {"batch_size": self.batch_size, "lr": self.lr, "momentum": self.momentum}

        def stage(samples: CleanSet, epochs: int, loss: Loss, message: str, schedule: Schedule) -> None:
            steps = self._steps(epochs, len(samples), self.batch_size)
            more: dict[str, Any] = {**how, "weight_decay": self.weight_decay, "schedule": schedule, "message": message}
            more["milestones"] = marks(self.milestones)
            train_plainly(model, samples, task, run, loss, steps=steps, **more)

        stage(data, self.trap_epochs, self._trapped(), "isolating", "constant")
        values = losses(model, data, task)
        easy, hard = isolated(values, self.isolate), (values > values.median()).nonzero().flatten()
        rest = torch.ones(len(data), dtype=torch.bool, device=easy.device)
        rest[easy] = False
        suspects, others = CleanSet(data.samples[easy]), CleanSet(data.samples[rest.nonzero().flatten()])
        run.log.append({"isolated": float(len(suspects))})
        if self.epochs:
            stage(others, self.epochs, Tensor.mean, "training on the rest", self.schedule)
        self._unlearn(model.eval(), suspects, CleanSet(data.samples[hard]), task, run)
        return model

    def _trapped(self) -> Loss:
        trap = locally_ascended if self.trap == "lga" else flooded
        return lambda values: trap(values, self.gamma, per_sample=self.per_sample)

    def _unlearn(self, model: nn.Module, suspects: CleanSet, hard: CleanSet, task: Task, run: Run) -> None:
        """Epoch by epoch, until no isolated sample keeps its label or the tolerance is spent; without one, to the end.

        What shall be kept is asked of samples that were hard: among easy ones there is poison, and that shall be lost.
        """
        judged = hard.samples[slice(0, _JUDGED)]
        before = _headline(model, judged, task)
        size = min(self.batch_size, len(suspects))
        kept = hard.batches(self.batch_size, run.generator)

        def objective(step: int, batch: Batch) -> Tensor:
            outputs = task.forward(model, batch.inputs)
            if self.ascent == "unlikelihood":
                wide = tree_map(lambda t: t.double() if t.is_floating_point() else t, outputs)
                loss = unlikelihood(task.log_likelihood(wide, batch.targets)).float()
            else:
                loss = -task.loss(outputs, batch.targets)
            if self.retain:
                fresh = task.augment(next(kept), run.generator, mix=0.0)
                loss = loss + task.loss(task.forward(model, fresh.inputs), fresh.targets)
            return loss

        steps = self._steps(1, len(suspects), size)
        lr, halvings = self.unlearn_lr, 0
        for epoch in range(1, self.unlearn_epochs + 1):
            state = {name: value.detach().clone() for name, value in model.named_parameters()}
            train_norms(model, self.unlearn_bn == "update")
            with fast_layout(model):
                finetune(
                    [p for p in model.parameters() if p.requires_grad],
                    objective,
                    suspects,
                    run,
                    steps=steps if self.max_clean_drop is None else max(_LEAST, steps),
                    batch_size=size,
                    lr=lr,
                    momentum=self.momentum,
                    weight_decay=self.weight_decay,
                    schedule="constant",
                    message=f"unlearning {epoch} of {self.unlearn_epochs}",
                )
            train_norms(model, False)
            drop = before - _headline(model, judged, task)
            left = float(right_answers(model, suspects, task).double().mean())
            run.log.append({"unlearning": float(epoch), "drop": drop, "left": 100 * left})
            if self.max_clean_drop is None:
                continue
            run.log[-1]["within"] = float(drop <= self.max_clean_drop)
            if drop > self.max_clean_drop:
                with torch.no_grad():
                    for name, value in model.named_parameters():
                        value.copy_(state[name])
                lr, halvings = lr / 2, halvings + 1
            elif left == 0:
                return
            if halvings > _HALVINGS:
                return


def unlikelihood(log_likelihoods: Tensor) -> Tensor:
    """``mean_n -log(1 - p_n)``: a scalar that falls to 0 as the labels become unlikely.

    Unlike the ascent of ``-log p`` it has a gradient where the model is sure (``p`` near 1), and an end.

    Args:
        log_likelihoods: ``log p_n``, float64 of shape ``(batch,)``: in float32 a sure model has no ``1 - p``.
    """
    sure = log_likelihoods.clamp(max=-torch.finfo(log_likelihoods.dtype).eps)
    return -torch.log(-torch.expm1(sure)).mean()


def isolated(values: Tensor, share: float) -> Tensor:
    """Indices (int64) of the ``max(1, round(share * n))`` samples with the lowest losses."""
    return values.argsort(stable=True)[: max(1, round(share * len(values)))]


def _headline(model: nn.Module, samples: Batch, task: Task) -> float:
    return next(iter(clean_metrics(model, samples, task).values()))
