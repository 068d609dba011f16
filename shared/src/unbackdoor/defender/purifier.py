"""The template every method fills in: checks before, one ``_purify``, checks after."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import nn

from unbackdoor.data import CleanSet, floats_like
from unbackdoor.defender.figures import Figures, Found, fault_of, found_of, remarks
from unbackdoor.defender.outcome import MAX_LOSS
from unbackdoor.defender.parts import parts_of
from unbackdoor.defender.preflight.check import doubt, doubtful, misfit
from unbackdoor.defender.preflight.standing import Standing, one_class, standing
from unbackdoor.defender.run import Progress, Run, Watch
from unbackdoor.defender.tolerance import AccuracyTolerance
from unbackdoor.errors import (
    BadData,
    BadOption,
    BeyondTolerance,
    Diverged,
    NonFinite,
    PreflightFailed,
    ResultRefused,
    SingleClass,
    UnbackdoorError,
    UnsupportedTask,
)
from unbackdoor.measure import evaluating
from unbackdoor.network.answers import answered
from unbackdoor.network.backend import alone, seeded
from unbackdoor.network.calling import failure, guarded, plain
from unbackdoor.network.copying import eager
from unbackdoor.network.estimate import COPIES, PASSES, estimate, shortage, too_large
from unbackdoor.network.readiness import (
    check_usable,
    dense_gradients,
    differentiable_recurrence,
    fast_layout,
    inner_model,
    master_precision,
    materialise,
)
from unbackdoor.network.signature import Kept, Signature
from unbackdoor.options import Configured, option
from unbackdoor.report import HELD_OUT, NOT_MEASURED, Report, versions, weight_hash
from unbackdoor.task import Task
from unbackdoor.tree import first_dim, leaves

__all__ = ["Progress", "Purifier", "Run", "Watch", "option"]


@dataclass(frozen=True, kw_only=True)
class Purifier(Configured, ABC):
    """A method. Subclasses are frozen dataclasses: their fields are the hyper-parameters.

    The fields are at the same time the options of `unbackdoor.purify`, the flags of the command line
    and the method's identity in a benchmark.
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    needs: ClassVar[tuple[str, ...]] = ("classes",)
    """Capabilities: ``"classes"`` where it tunes on labels, of which there must be several; ``"perturbable"`` where it
    searches in input space, so that `Task.perturbable` must give floats; ``"one-class"`` where it compares the classes
    that models answer with, which must then be given by logits, one class a sample; ``"classifier"`` where it makes the
    last layer anew, which must then be trainable and tied to no other."""
    step_passes: ClassVar[float] = PASSES
    """What a step costs, in forward passes over its batch: for an estimate of the time."""
    discrete: ClassVar[bool] = False
    """Whether the result is one of few (which neurons are pruned), so that two seeds may give the same weights."""
    tunes: ClassVar[bool] = True
    """Whether it tunes on clean samples; one that does not chooses by all of them that are not reported on."""

    holdout: float = option(
        0.2,
        "share of the clean samples that are not tuned on: to report on and, where something is chosen, to choose by",
    )
    drop_doubtful: bool = option(
        False, "leave out clean samples whose target the given model finds unlikely (below 1 %)"
    )

    @property
    def updates_buffers(self) -> bool:
        """Whether the method re-estimates BatchNorm's running statistics, the only buffers it may change."""
        return False

    @abstractmethod
    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        """Change ``model``'s weights in place. It comes in eval mode and in at least float32."""

    @final
    @alone
    def purify(
        self,
        model: nn.Module,
        clean: Any,
        task: Task,
        *,
        seed: int = 0,
        watch: Watch | None = None,
        anyway: bool = False,
        max_loss: float = MAX_LOSS,
        allow_drop: bool = False,
    ) -> Report:
        """Purify ``model`` in place; it keeps class, keys, order, shapes, dtypes, ties, modes and device.

        Args:
            model: Any module with floating-point weights; parallel and compiled wrappers are looked through.
            clean: What `CleanSet.of` reads.
            task: The kind of problem.
            seed: Of every random draw; the same seed gives the same bits on a CPU.
            watch: Called now and then.
            anyway: Whether to go on where `defender.preflight` or `defender.outcome` would stop; the report then
                says what spoke against it.
            max_loss: Points of the headline metric that the result may have lost on the clean samples.
            allow_drop: Whether a result may cost more clean accuracy than the method's ``max_clean_drop``. Otherwise
                the given model comes back then, see `Report.given_back`. ``anyway`` allows it too.

        Raises:
            PreflightFailed: Model and samples do not fit each other.
            ResultRefused: The purified model diverged, is at chance or lost more than ``max_loss``; its ``report`` is
                the evidence.
            UnbackdoorError: The model, the samples, the task or an option cannot be used. Whatever is raised, the model
                is then as it was.
        """
        self._check_common()
        if not max_loss >= 0:
            raise BadOption(f"max_loss is {max_loss}; the points that may be lost must be at least 0.")
        inner = inner_model(model)
        check_usable(inner)
        samples = CleanSet.of(clean)
        device = next(inner.parameters()).device
        run = Run(torch.Generator().manual_seed(seed), device, inner, watch, anyway=anyway)
        run.allow_drop = allow_drop or anyway
        run.stop(shortage(inner, COPIES - 1), PreflightFailed)
        run.notices += materialise(inner)
        before_hash = weight_hash(inner)
        signature = Signature.of(inner)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        kept = Kept.of(inner)
        try:
            with (
                seeded(seed, device),
                guarded(inner),
                eager(inner),
                evaluating(inner),
                master_precision(inner) as dtype,
                fast_layout(inner),
                dense_gradients(inner),
                differentiable_recurrence(inner),
            ):
                resident = CleanSet(floats_like(plain(samples.samples).to(device), dtype))
                with answered(inner, task, resident.samples) as told:
                    run.notices += told
                    found = self._tuned(inner, resident, task, run, max_loss, kept)
                if not found.given_back:
                    kept.settle(self._probe(inner, task, resident), norms=self.updates_buffers)
            if found.given_back:
                kept.restore()
            signature.check(inner, buffers_may_change=self.updates_buffers)
            report = Report(
                method=self.name,
                options=self.options(),
                task=task.name,
                seed=seed,
                measured_on=HELD_OUT if found.evidence["samples"] else NOT_MEASURED,
                seconds=time.perf_counter() - start,
                peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
                trainable=run.trainable,
                total=sum(p.numel() for p in inner.parameters()),
                log=tuple(run.log),
                hash_before=before_hash,
                hash_after=weight_hash(inner),
                versions=versions(device),
                before=found.before,
                after=found.after,
                by_class=found.by_class,
                evidence=found.evidence,
                given_back=found.given_back,
            )
            self._judge(found, report, run)
        except BaseException:
            kept.restore()
            raise
        return replace(report, notices=tuple(run.notices), overruled=tuple(run.overruled))

    def _probe(self, model: nn.Module, task: Task, clean: CleanSet) -> Callable[[], Any]:
        """One run of the model on a few samples."""
        return partial(task.forward, model, clean.samples[slice(0, min(len(clean), 32))].inputs)

    def _tuned(self, model: nn.Module, clean: CleanSet, task: Task, run: Run, max_loss: float, kept: Kept) -> Found:
        """Check, tune in place and measure."""
        self._inspect(model, clean, task, run)
        clean, given = self._preflight(model, clean, task, run)
        clean = clean.measured(task.extents)
        limit = getattr(self, "max_clean_drop", None)
        parts = parts_of(clean, task, run, self.holdout, tunes=self.tunes, chooses=limit is not None)
        run.holdout, tuning = parts.choose, parts.tune
        judged = tuning if parts.report is None else clean.part(parts.report)
        self._foresee(model, tuning, task, run)
        kept.settle(self._probe(model, task, tuning), norms=self.updates_buffers)
        working = Signature.of(model)
        tolerance = None if limit is None else AccuracyTolerance.of(model, task, tuning, run, limit)
        before = Figures.of(model, judged, task)
        try:
            self._purify(model, tuning, task, run)
            kept.settle(self._probe(model, task, tuning), norms=self.updates_buffers)
            working.check(model, buffers_may_change=self.updates_buffers)
            if tolerance is not None:
                tolerance.check(model)
        except NonFinite as error:
            raise Diverged(f"the purification diverged: {error}") from error
        except BeyondTolerance as error:
            run.notice(
                f"{error}. So the given model came back, bit for bit: a backdoor in it is still there. Give more clean "
                "samples, try another method, or take the result all the same with allow_drop=True (--allow-drop)."
            )
            return found_of(parts, clean, (before, before), (given, given), None, given_back=True)
        now, after = standing(model, clean.samples, task), Figures.of(model, judged, task)
        wrong = fault_of(parts, (before, after), (given, now), task, max_loss)
        found = found_of(parts, clean, (before, after), (given, now), wrong, given_back=False)
        for text in remarks(found, given, limit):
            run.notice(text)
        return found

    def _foresee(self, model: nn.Module, tuning: CleanSet, task: Task, run: Run) -> None:
        """Stop where memory will not suffice, and tell the watcher how long it will take."""
        steps, batch_size = getattr(self, "steps", None), getattr(self, "batch_size", None)
        if not isinstance(steps, int) or not isinstance(batch_size, int):
            return
        found = estimate(model, tuning, task, steps=steps, batch_size=batch_size, passes=self.step_passes)
        run.stop(too_large(found), PreflightFailed)
        run.expect(found.seconds, steps)

    def _judge(self, found: Found, report: Report, run: Run) -> None:
        if found.fault is None:
            return
        try:
            run.stop(f"{found.fault}: nothing of it is kept. Lower lr or steps, use another method", ResultRefused)
        except ResultRefused as error:
            error.report = replace(report, notices=tuple(run.notices), overruled=(found.fault,))
            raise

    def _preflight(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> tuple[CleanSet, Standing]:
        given = standing(model, clean.samples, task)
        reason = misfit(given, model, clean.samples, task, labelled="classes" in self.needs)
        run.stop(reason, PreflightFailed)
        if reason is not None:
            return clean, given
        found = doubtful(given)
        if not found:
            return clean, given
        run.notice(doubt(found, given, clean.samples, dropped=self.drop_doubtful))
        if not self.drop_doubtful:
            return clean, given
        kept = torch.ones(len(clean), dtype=torch.bool)
        kept[found] = False
        return clean.without(found), given.part(kept.nonzero().flatten())

    def _inspect(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        """Refuse labels, outputs and inputs whose forms do not fit each other."""
        first = clean.samples[slice(0, min(len(clean), 32))]
        try:
            with torch.no_grad():
                outputs = task.predict(model, first.inputs)
                count = _count(outputs)
        except UnbackdoorError:
            raise
        except Exception as error:  # a user's forward may raise anything
            said = failure(error, model) or f"{type(error).__name__}: {error}"
            raise BadData(
                f"the model cannot take the clean samples, whose inputs are {_shapes(first.inputs)}: {said}. Read "
                "them in the size, channels and type that the model was trained with."
            ) from error
        if count != len(first):
            raise BadData(
                f"for {len(first)} inputs the model returned {_shapes(outputs)}; its outputs must have the batch in "
                "dimension 0 (override Task.forward for models that return something else)."
            )
        if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves(outputs)):
            raise NonFinite("the model's outputs on clean inputs hold NaN or infinity; check the inputs' range.")
        self._check_needs(clean, outputs, task, run)

    def _check_needs(self, clean: CleanSet, outputs: Any, task: Task, run: Run) -> None:
        try:
            for text in task.inspect(clean.samples, outputs):
                run.notice(text)
        except SingleClass as error:
            if "classes" in self.needs:
                raise
            run.notice(f"{error} The method {self.name!r} tunes on no label, so they were used all the same.")
        if "perturbable" in self.needs:
            try:
                task.perturbable(clean.samples[slice(0, 1)].inputs)
            except NotImplementedError as error:
                raise UnsupportedTask(
                    f"the method {self.name!r} searches in input space, but {error}. Use a method that changes weights "
                    "alone, such as nft or f-fip, or a task whose Task.perturbable gives the floats to search in."
                ) from error
        if "one-class" in self.needs and not one_class(outputs, clean.samples.targets, task):
            raise UnsupportedTask(
                f"the method {self.name!r} compares the classes that models answer with, but the task {task.name!r} "
                f"does not answer with logits of one class a sample (outputs {_shapes(outputs)}, targets "
                f"{_shapes(clean.samples.targets)}). Use a method that needs the task's loss alone, such as nft or "
                "i-bau."
            )


def _count(outputs: Any) -> int | None:
    """How many samples outputs are of; None where their first dimensions say nothing or differ."""
    try:
        return first_dim(outputs)
    except ValueError:
        return None


def _shapes(tree: Any) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves(tree)) or f"a {type(tree).__name__} without tensors"
