"""The template of defences that train: from data that may be poisoned to a model that, with luck, is not.

Such a defence sees samples and labels alone. Which of them are poisoned, how, and how well an attack works on the model
that comes out, it never learns: like a `Purifier`, it imports nothing of the attacker's side.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Run, Watch
from unbackdoor.defender.schedule import Schedule
from unbackdoor.errors import BadOption, ForwardFailed, NonFinite, UnbackdoorError
from unbackdoor.measure import clean_metrics, evaluating
from unbackdoor.network.backend import exclusive
from unbackdoor.network.calling import failure
from unbackdoor.network.readiness import check_usable, fast_layout, inner_model
from unbackdoor.options import Configured
from unbackdoor.report import Report, versions, weight_hash
from unbackdoor.task import Batch, Task

__all__ = ["Build", "TrainingDefence", "losses", "train_plainly"]

Build = Callable[[int], nn.Module]
"""``build(seed)`` gives a fresh model on its device; the same seed gives the same weights."""


@dataclass(frozen=True, kw_only=True)
class TrainingDefence(Configured, ABC):
    """A defence. Subclasses are frozen dataclasses: their fields are the hyper-parameters."""

    @abstractmethod
    def _train(self, build: Build, data: CleanSet, task: Task, run: Run) -> nn.Module:
        """Train a model on ``data``, none of whose samples is trusted, and return it."""

    @final
    def train(
        self, build: Build, data: Any, task: Task, *, seed: int = 0, watch: Watch | None = None
    ) -> tuple[nn.Module, Report]:
        """Train a model on data that may be poisoned.

        Args:
            build: See `Build`; a defence may ask for several models.
            data: What `CleanSet.of` reads; none of its samples is trusted.
            task: The kind of problem.
            seed: Of every random draw; the same seed gives the same bits on a CPU.
            watch: Called now and then.

        Returns:
            The model, in eval mode, and a `Report` whose ``after`` is measured on the training data as they are: a
            model that obeys a trigger scores the better on them, so it proves nothing about safety.

        Raises:
            UnbackdoorError: The samples, the model or an option cannot be used.
        """
        self._check_common()
        samples = CleanSet.of(data)
        with exclusive(), torch.random.fork_rng():  # dropout draws from torch's global generator
            torch.default_generator.manual_seed(seed)
            first = inner_model(build(seed))
            check_usable(first)
            device = next(first.parameters()).device
            resident = samples.to(device)
            run = Run(torch.Generator().manual_seed(seed), device, first, watch)
            for text in self._look(first, resident, task):
                run.notice(text)
            start = time.perf_counter()
            try:
                model = self._train(build, resident, task, run).eval()
            except UnbackdoorError:
                raise
            except Exception as error:
                said = failure(error, run.model)
                if said is None:
                    raise
                raise ForwardFailed(f"the model cannot be trained on these samples ({said}).") from error
            seconds = time.perf_counter() - start
        broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
        if broken:
            raise NonFinite(f"the training ended with NaN in {', '.join(broken[:5])}; lower lr.")
        report = Report(
            method=self.name,
            options=self.options(),
            task=task.name,
            seed=seed,
            after=clean_metrics(model, resident.samples, task),
            measured_on="training data, poisoned samples among them",
            seconds=seconds,
            trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
            total=sum(p.numel() for p in model.parameters()),
            log=tuple(run.log),
            notices=tuple(run.notices),
            hash_after=weight_hash(model),
            versions=versions(device),
        )
        return model, report

    def _look(self, model: nn.Module, data: CleanSet, task: Task) -> list[str]:
        """Refuse labels and inputs that do not fit the model before it is trained."""
        first = data.samples[slice(0, min(len(data), 32))]
        with torch.no_grad(), evaluating(model):
            return task.inspect(data.samples, task.predict(model, first.inputs))

    def _steps(self, epochs: int, count: int, batch_size: int) -> int:
        """Steps of ``epochs`` passes over ``count`` samples; at least one."""
        if epochs < 0:
            raise BadOption(f"a number of epochs is {epochs}; it must be at least 0.")
        return max(1, round(epochs * count / batch_size))


def train_plainly(
    model: nn.Module,
    data: CleanSet,
    task: Task,
    run: Run,
    loss: Callable[[Tensor], Tensor],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    schedule: Schedule,
    message: str,
    milestones: Sequence[int] = (),
) -> None:
    """Minimise ``loss(per-sample losses)`` over all weights on augmented samples, BatchNorm in train mode.

    Args:
        model: Ends in train mode.
        data: Where batches are drawn from.
        task: Augmentation and likelihood.
        run: Generator, log and watcher.
        loss: From ``-log p(y_n | x_n)``, float of shape ``(batch,)``, to a scalar.
        steps: Of the optimiser.
        batch_size: Samples a step.
        lr: Peak learning rate of SGD.
        momentum: Of SGD.
        weight_decay: Of SGD.
        schedule: See `unbackdoor.defender.schedule`.
        message: What a progress bar says.
        milestones: See `unbackdoor.defender.schedule`, in epochs.
    """
    run.model = model
    model.train()

    def objective(step: int, batch: Batch) -> Tensor:
        fresh = task.augment(batch, run.generator, mix=0.0)
        return loss(-task.log_likelihood(task.forward(model, fresh.inputs), fresh.targets))

    with fast_layout(model):
        finetune(
            [p for p in model.parameters() if p.requires_grad],
            objective,
            data,
            run,
            steps=steps,
            batch_size=min(batch_size, len(data)),
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedule,
            milestones=milestones,
            message=message,
        )


@torch.no_grad()
def losses(model: nn.Module, data: CleanSet, task: Task) -> Tensor:
    """``-log p(y_n | x_n)`` of every sample as it is, in eval mode: float64 of shape ``(n,)``."""
    with evaluating(model):
        parts = [-task.log_likelihood(task.forward(model, b.inputs), b.targets).double() for b in data.once(500)]
    return torch.cat(parts)
