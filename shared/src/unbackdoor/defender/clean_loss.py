"""What clean samples ask of a model: their labels, or the answers that the given model gives on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.disturbance import disturbed_loss
from unbackdoor.defender.purifier import Run
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Disturber, Task

__all__ = ["CleanLoss", "Teacher"]

_OFTEN = 4.0
_SAMPLES = 1000


@dataclass(frozen=True)
class Teacher:
    """The given model, frozen, and the classes on which it is not believed.

    A network that has learned a trigger answers with the trigger's class where an input is only a little like it, and
    mixtures of clean samples often are. So a class that mixtures evoke although none of their labels names it, more
    than four times as often as the median class, is a suspect: nothing about it is learned from the given model.
    Nor is anything that the labels settle (`Task.settled`).

    Attributes:
        model: In eval mode; run without gradients.
        suspects: Bool of shape ``(classes,)``.
    """

    model: nn.Module
    suspects: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, task: Task, clean: CleanSet, run: Run, *, mixup: float) -> Self:
        """Take ``model``, a copy, as teacher and look at what about 1,000 mixtures of clean samples evoke in it.

        Raises:
            NotImplementedError: The task has no classes.
        """
        teacher = model.eval()
        evoked: list[Tensor] = []
        for _ in range(max(1, _SAMPLES // len(clean))):
            for batch in clean.once(100):
                mixed = task.augment(batch, run.generator, mix=mixup)
                evoked.append(task.evoked(task.forward(teacher, mixed.inputs), mixed.targets) * len(batch))
        rates = torch.stack(evoked).sum(0)
        rates = rates / (len(clean) * max(1, _SAMPLES // len(clean)))
        suspects = rates > _OFTEN * rates.median()
        if bool(suspects.any()):
            top = int(rates.argmax())
            run.notice(
                f"the given model sees {clean.samples.class_name(top)} in {100 * float(rates[top]):.1f} % of mixtures "
                f"of clean samples that hold none of it, others in about {100 * float(rates.median()):.1f} %. "
                f"That may be a backdoor's target, so its word on such classes ({int(suspects.sum())} of {len(rates)}) "
                "was not taken."
            )
        return cls(teacher, suspects)

    @torch.no_grad()
    def answer(self, task: Task, batch: Batch) -> Batch:
        """The same inputs; targets are the pair of what this model says of them and of what they were."""
        settled = task.settled(batch.targets)
        suspects = self.suspects if settled is None else self.suspects | settled
        answers = task.imitate(task.forward(self.model, batch.inputs), batch.targets, suspects)
        return Batch(batch.inputs, (answers, batch.targets))


@dataclass(frozen=True)
class CleanLoss:
    r"""``(1 - d) L(f(x), y) + d L(f(x), f_0(x))``: the task's loss and self-distillation from the given model.

    A few hundred labels say little about all that a network has learned; its own answers on clean samples and their
    mixtures say much more. ``d = 0`` is the papers' loss. With fewer than two samples for each class (`Run.sparse`)
    there is too little to ask about, and the labels are believed: ``d`` is 0 then, and nothing is mixed.

    Attributes:
        model: What is tuned.
        task: Gives the loss.
        clean: What is tuned on.
        run: Its generator augments.
        teacher: ``f_0``; None where ``d`` is 0.
        distil: ``d``.
        reuse: How often a mixture and the teacher's answer to it are drawn on average. The teacher then costs a
            ``reuse``-th of a forward pass a step.
        disturber: Makes what the tuned model reads of the inputs; None: it reads them as they are.
    """

    model: nn.Module
    task: Task
    clean: CleanSet
    run: Run
    teacher: Teacher | None = None
    distil: float = 0.0
    reuse: int = 1
    disturber: Disturber | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        task: Task,
        clean: CleanSet,
        run: Run,
        *,
        distil: float,
        mixup: float,
        batch_size: int = 64,
        reuse: int = 1,
        disturb: bool = False,
        weights_move: bool = False,
    ) -> Self:
        """Make a teacher of ``model`` as it is now; where that fails labels alone are used, with a notice.

        Args:
            model: Not yet attached to a handle.
            task: See `CleanLoss`.
            clean: What is tuned on; the suspects are found with it too.
            run: Generator and notices.
            distil: ``d``.
            mixup: How `Task.augment` will mix.
            batch_size: Samples of a step.
            reuse: See `CleanLoss`.
            disturb: Whether the tuned model reads disturbed inputs, of `Task.disturber`.
            weights_move: Whether the model's own parameters will be tuned. A handle leaves them as they are until it
                folds, and then the teacher needs no second set of them.

        Raises:
            BadOption: ``distil`` lies outside [0, 1], or ``reuse`` is below 1.
        """
        if not 0 <= distil <= 1:
            raise BadOption(
                f"distil is {distil}; it is a share of the loss and must lie in [0, 1], 0 for labels alone."
            )
        if reuse < 1:
            raise BadOption(f"reuse is {reuse}; a mixture is used at least once.")
        disturber = run.disturber(task, model, clean, batch_size) if disturb else None
        labels = cls(model, task, clean, run, disturber=disturber)
        if distil > 0 and run.sparse:
            run.notice(
                "there are too few clean samples to learn from the given model's answers: labels alone were used."
            )
        if distil == 0 or run.sparse:
            return labels
        try:
            shared = {} if weights_move else {id(p): p for p in model.parameters()}
            given = copy.deepcopy(model, shared)
        except Exception as error:  # noqa: BLE001 - a user's module may raise anything
            run.notice(f"the model cannot be copied ({error}), so labels alone are used (distil=0).")
            return labels
        try:
            teacher = Teacher.of(given, task, clean, run, mixup=mixup)
        except NotImplementedError:
            run.notice(f"task {task.name!r} cannot imitate answers, so labels alone are used (distil=0).")
            return labels
        return replace(labels, teacher=teacher, distil=distil, reuse=reuse)

    def prepare(self, steps: int, batch_size: int, mix: float) -> tuple[CleanSet, Callable[[Batch], Tensor]]:
        """What the batches of the next ``steps`` steps are drawn from, and the loss on such a batch, a scalar in nats.

        Labels alone: the clean samples, augmented anew in each step. With a teacher: augmented samples made now, with
        its answers to them, a ``reuse``-th of what will be drawn.

        Args:
            steps: Number of steps.
            batch_size: Samples a step.
            mix: Of `Task.augment`.
        """
        if self.teacher is None:
            return self.clean, partial(self._of_labels, mix=mix)
        drawn = self.clean.batches(batch_size, self.run.generator)
        made = [
            self.teacher.answer(self.task, self.task.augment(next(drawn), self.run.generator, mix=mix))
            for _ in range(math.ceil(steps / self.reuse))
        ]
        return CleanSet.join(made).measured(self.task.extents), self._of_answers

    def _of_labels(self, batch: Batch, mix: float) -> Tensor:
        mixed = self.task.augment(batch, self.run.generator, mix=0.0 if self.run.sparse else mix)
        return disturbed_loss(self.model, self.task, mixed.inputs, [(1.0, mixed.targets)], self.disturber)

    def _of_answers(self, batch: Batch) -> Tensor:
        answers, labels = batch.targets
        aims = [(self.distil, answers)] + ([(1 - self.distil, labels)] if self.distil < 1 else [])
        return disturbed_loss(self.model, self.task, batch.inputs, aims, self.disturber)
