"""The template every method fills in: checks before, one ``_purify``, checks after."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from unbackdoor.configured import Configured, option
from unbackdoor.data import CleanSet, floats_like
from unbackdoor.disturbance import started
from unbackdoor.errors import BadData, BadOption, NonFinite, SingleClass, UnsupportedTask
from unbackdoor.measure import accuracy_by_group, clean_metrics, evaluating, unlikely
from unbackdoor.model import (
    Signature,
    check_usable,
    differentiable_recurrence,
    fast_layout,
    inner_model,
    master_precision,
    materialise,
)
from unbackdoor.report import Report, versions, weight_hash
from unbackdoor.task import Disturber, Task
from unbackdoor.tree import first_dim, leaves

__all__ = ["Progress", "Purifier", "Run", "Watch", "option"]

_DOUBTFUL = 0.01
_LISTED = 10


@dataclass(frozen=True)
class Progress:
    """What a `Watch` is told: ``step`` of ``steps``, scalars of that step, the model as it is then."""

    step: int
    steps: int
    message: str
    scalars: Mapping[str, float]
    model: nn.Module


Watch = Callable[[Progress], None]
"""Called now and then during a purification; it returns nothing, so no method can stop by what it sees."""


@dataclass
class Run:
    """What a method gets beside model, clean samples and task; nothing of it knows an attack."""

    generator: torch.Generator
    device: torch.device
    model: nn.Module
    watch: Watch | None = None
    log: list[dict[str, float]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    trainable: int = 0
    holdout: CleanSet | None = None
    sparse: bool = False
    """Whether nothing was held out since there are fewer than two clean samples for each class."""
    disturbers: list[Disturber] = field(default_factory=list)

    def disturber(self, task: Task, model: nn.Module, clean: CleanSet, batch_size: int) -> Disturber:
        """What disturbs this run's batches of ``clean``, for ``model`` as it was given; its findings are reported."""
        self.disturbers.append(started(task, model, clean, self.generator, batch_size))
        return self.disturbers[-1]

    def record(self, step: int, steps: int, message: str, **scalars: float) -> None:
        """Append scalars to the log and tell the watcher; what is not finite is left out."""
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self.log.append({"step": float(step), **scalars})
        if self.watch is not None:
            self.watch(Progress(step, steps, message, scalars, self.model))

    def notice(self, text: str) -> None:
        """Something that the user should know; it ends up in the report."""
        if text not in self.notices:
            self.notices.append(text)


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
    discrete: ClassVar[bool] = False
    """Whether the result is one of few (which neurons are pruned), so that two seeds may give the same weights."""
    tunes_sparse: ClassVar[bool] = False
    """Whether nothing is held out for it where there are fewer than two clean samples for each class: `Run.sparse`."""

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
    def purify(self, model: nn.Module, clean: Any, task: Task, *, seed: int = 0, watch: Watch | None = None) -> Report:
        """Purify ``model`` in place; it keeps class, keys, order, shapes, dtypes, ties, modes and device.

        Args:
            model: Any module with floating-point weights; parallel and compiled wrappers are looked through.
            clean: What `CleanSet.of` reads.
            task: The kind of problem.
            seed: Of every random draw; the same seed gives the same bits on a CPU.
            watch: Called now and then.

        Raises:
            UnbackdoorError: The model, the samples, the task or an option cannot be used; the model is then as it was.
        """
        self._check_common()
        inner = inner_model(model)
        check_usable(inner)
        samples = CleanSet.of(clean)
        notices = materialise(inner)
        before_hash = weight_hash(inner)
        signature = Signature.of(inner)
        total = sum(p.numel() for p in inner.parameters())
        device = next(inner.parameters()).device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        state = inner.state_dict()
        originals = {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}
        try:
            with (
                evaluating(inner),
                master_precision(inner) as dtype,
                fast_layout(inner),
                differentiable_recurrence(inner),
            ):
                working = Signature.of(inner)
                run = Run(torch.Generator().manual_seed(seed), device, inner, watch, notices=notices)
                resident = self._inspect(inner, CleanSet(floats_like(samples.samples.to(device), dtype)), task, run)
                resident = resident.measured(task.extents)
                tuning, run.holdout = self._split(resident, task, run)
                judged = (run.holdout or tuning).samples
                before, groups = clean_metrics(inner, judged, task), accuracy_by_group(inner, judged, task)
                self._purify(inner, tuning, task, run)
                for text in (text for disturber in run.disturbers for text in disturber.findings()):
                    run.notice(text)
                working.check(inner, buffers_may_change=self.updates_buffers)
                after = clean_metrics(inner, judged, task)
                groups_after = accuracy_by_group(inner, judged, task)
            signature.check(inner, buffers_may_change=self.updates_buffers)
        except BaseException:
            with suppress(RuntimeError):  # keys or shapes that a faulty method changed stay changed
                inner.load_state_dict(originals, strict=False)
            raise
        return Report(
            method=self.name,
            options=self.options(),
            task=task.name,
            seed=seed,
            before=before,
            after=after,
            by_class={
                name: {"samples": count, "before": share, "after": groups_after[name][1]}
                for name, (count, share) in groups.items()
            },
            measured_on="clean set" if run.holdout is None else "holdout",
            seconds=time.perf_counter() - start,
            peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            trainable=run.trainable,
            total=total,
            log=tuple(run.log),
            notices=tuple(run.notices),
            hash_before=before_hash,
            hash_after=weight_hash(inner),
            versions=versions(device),
        )

    def _split(self, clean: CleanSet, task: Task, run: Run) -> tuple[CleanSet, CleanSet | None]:
        share = float(getattr(self, "holdout", 0.0))
        if not 0 <= share < 1:
            raise BadOption(f"holdout is {share}; the share of clean samples that is held out must lie in [0, 1).")
        if share == 0 or len(clean) < 2:
            return clean, None
        strata = task.strata(clean.samples.targets)
        if self.tunes_sparse and strata is not None and len(clean) < 2 * (classes := len(strata.unique())):
            run.sparse = True
            run.notice(
                f"there are {len(clean)} clean samples of {classes} classes: one that is held out would be all that is "
                "known of its class, so none was. holdout=0 leaves everything else to the options too."
            )
            return clean, None
        return clean.split(share, run.generator, strata)

    def _inspect(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> CleanSet:
        """Refuse labels, outputs and inputs that do not fit each other; returns the samples that are to be used."""
        first = clean.samples[slice(0, min(len(clean), 32))]
        try:
            with torch.no_grad():
                outputs = task.predict(model, first.inputs)
        except RuntimeError as error:
            raise BadData(
                f"the model cannot take the clean samples, whose inputs are {_shapes(first.inputs)}: {error}. Read "
                "them in the size, channels and type that the model was trained with."
            ) from error
        if not leaves(outputs) or first_dim(outputs) != len(first):
            raise BadData(
                f"for {len(first)} inputs the model returned {_shapes(outputs)}; its outputs must have the batch in "
                "dimension 0 (override Task.forward for models that return something else)."
            )
        if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves(outputs)):
            raise NonFinite("the model's outputs on clean inputs hold NaN or infinity; check the inputs' range.")
        self._check_needs(clean, outputs, task, run)
        doubtful = unlikely(model, clean, task, below=_DOUBTFUL)
        if not doubtful:
            return clean
        found = (
            f"the given model finds the targets of {len(doubtful)} of {len(clean)} clean samples unlikely (below "
            f"{_DOUBTFUL:.0%})"
        )
        if 2 * len(doubtful) > len(clean):
            run.notice(
                f"{found}: the inputs' range, the normalisation or the order of the classes may be wrong. All were "
                "used."
            )
            return clean
        listed = ", ".join(map(str, doubtful[:_LISTED]))
        more = f" and {len(doubtful) - _LISTED} more" if len(doubtful) > _LISTED else ""
        done = "left out" if self.drop_doubtful else "used (drop_doubtful=True leaves them out)"
        run.notice(
            f"{found}, most of all of {listed}{more} (counted from 0). They were {done}; look whether they are "
            "mislabelled or carry a trigger."
        )
        return clean.without(doubtful) if self.drop_doubtful else clean

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
        if "one-class" in self.needs and not _one_class(clean, outputs, task):
            raise UnsupportedTask(
                f"the method {self.name!r} compares the classes that models answer with, but the task {task.name!r} "
                f"does not answer with logits of one class a sample (outputs {_shapes(outputs)}, targets "
                f"{_shapes(clean.samples.targets)}). Use a method that needs the task's loss alone, such as nft or "
                "i-bau."
            )


def _one_class(clean: CleanSet, outputs: Any, task: Task) -> bool:
    """Whether outputs are logits ``(batch, classes)`` of the task's own likelihood, and targets class indices."""
    targets = clean.samples.targets
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return False
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        return False
    first = targets[: len(outputs)]
    likely = outputs.float().log_softmax(1).gather(1, first.long().unsqueeze(1)).squeeze(1)
    return torch.allclose(likely, task.log_likelihood(outputs, first).float(), rtol=1e-3, atol=1e-3)


def _shapes(tree: Any) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves(tree)) or f"a {type(tree).__name__} without tensors"
