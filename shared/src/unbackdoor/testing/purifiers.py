"""What every method must satisfy."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor import purify
from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Purifier
from unbackdoor.defender.run import Run
from unbackdoor.network.signature import Signature, buffers_kept
from unbackdoor.report import NOT_MEASURED, Report, weight_hash
from unbackdoor.task import Task
from unbackdoor.testing.comparison import Snapshot, assert_equal, copy_of, global_state_kept, parts

__all__ = ["check_purifier"]


def check_purifier(
    purifier: Purifier, model: nn.Module, clean: Any, task: Task, *, draws: bool = True, again: bool = True
) -> Report:
    """Assert that ``purifier`` keeps the promises of `Purifier` on ``model``; returns the report of the first run.

    Args:
        purifier: With few steps, so that the runs (one to four) are quick.
        model: Left untouched, which is checked too.
        clean: What `CleanSet.of` reads.
        task: The kind of problem.
        draws: Whether the method draws at random, so that another seed must give other weights, unless its result is
            `discrete`.
        again: Whether to run again with the same seed, in train mode and with another seed; off for large models.

    Raises:
        AssertionError: Says which promise is broken and how.
    """
    _check_options(purifier)
    samples = CleanSet.of(clean)
    data = copy_of(parts(samples.samples))
    before, signature = Snapshot.of(model), Signature.of(model)
    with global_state_kept(f"method {purifier.name!r}"):
        purified, report = purify(model, samples, task=task, method=_watched(purifier, 1), seed=0, anyway=True)
    Snapshot.of(model).check(before, f"{purifier.name} changed the model that it was given")
    assert_equal(parts(samples.samples), data, f"{purifier.name} changed the clean samples")
    after, now = Snapshot.of(purified), Signature.of(purified)
    assert now.classes == signature.classes, "the purified model's modules or their classes differ from the given ones"
    assert now.tensors == signature.tensors, "the purified model's keys, their order, shapes or dtypes differ"
    assert now.ties == signature.ties, "weights that were tied are no longer, or the other way round"
    for what in ("modes", "trainable", "hooks", "gradients"):
        assert getattr(after, what) == getattr(before, what), f"{what} of the purified model are not as they were found"
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    for name in frozen:
        assert torch.equal(before.state[name], after.state[name]), f"{name} has requires_grad=False, yet it was changed"
    _check_buffers(purifier, model, purified)
    _check_report(report, purifier, model, purified, task)
    if again:
        must_differ = draws and not purifier.discrete and after.differs(before)
        _check_repeats(purifier, model, samples, task, after, must_differ)
    return report


def _watched(purifier: Purifier, drawn: int) -> Purifier:
    """The same method, for which torch's global generator stands ``drawn`` numbers on and must stay there.

    A purification seeds that generator for models whose forward draws from it. Methods have one of their own, but one
    that drew from the global one would so give the same each time. Of models that draw themselves nothing can be told.
    """
    kind = type(purifier)

    def _purify(self: Purifier, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        given = torch.get_rng_state()
        with torch.no_grad(), buffers_kept(model):
            task.forward(model, clean.samples[slice(0, 2)].inputs)
        if not torch.equal(torch.get_rng_state(), given):
            torch.set_rng_state(given)
            kind._purify(self, model, clean, task, run)
            return
        torch.rand(drawn)
        before = torch.get_rng_state()
        kind._purify(self, model, clean, task, run)
        assert torch.equal(torch.get_rng_state(), before), (
            f"method {purifier.name!r} seeded torch's global generator or drew from it; draw from run.generator alone"
        )

    watched: type[Purifier] = type(kind.__name__, (kind,), {"_purify": _purify, "__module__": kind.__module__})
    return watched.make(None, **purifier.options())


def _check_options(purifier: Purifier) -> None:
    for item in fields(purifier):
        assert item.kw_only, f"option {item.name!r} must be keyword-only: @dataclass(frozen=True, kw_only=True)"
        assert item.metadata.get("help"), f"option {item.name!r} has no help; declare it with option(default, help)"
    options = purifier.options()
    json.dumps(options)  # options are written into reports and cells
    assert type(purifier).make(None, **options) == purifier, "make(**options()) must give the same method again"
    for preset in purifier.presets:
        type(purifier).make(preset)


def _check_buffers(purifier: Purifier, model: nn.Module, purified: nn.Module) -> None:
    statistics = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_buffers(recurse=False)
    }
    given = dict(model.named_buffers())
    for name, buffer in purified.named_buffers():
        if purifier.updates_buffers and name in statistics:
            continue
        assert torch.equal(buffer, given[name]), (
            f"buffer {name} changed; only a method with updates_buffers may change BatchNorm's running statistics"
        )


def _check_report(report: Report, purifier: Purifier, model: nn.Module, purified: nn.Module, task: Task) -> None:
    text = report.to_json()
    assert Report.from_json(text).to_json() == text, "the report must come back from JSON as it was"
    assert (report.method, report.task, report.seed) == (purifier.name, task.name, 0), "method, task or seed is wrong"
    assert report.options == purifier.options(), "the report must hold the method's options"
    assert report.hash_before == weight_hash(model), "hash_before is not that of the given weights"
    assert report.hash_after == weight_hash(purified), "hash_after is not that of the purified weights"
    assert report.total == sum(p.numel() for p in model.parameters()), "total is not the number of parameters"
    headline = next(iter(task.meters()))
    for figures in (report.before, report.after):
        if report.measured_on == NOT_MEASURED:
            assert math.isnan(figures[headline]), f"{headline} was not measured, yet the report holds a figure"
        else:
            assert 0 <= figures[headline] <= 100, f"the report must hold {headline} in percent"


def _check_repeats(
    purifier: Purifier, model: nn.Module, clean: CleanSet, task: Task, after: Snapshot, must_differ: bool
) -> None:
    training = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)  # the global generator may stand anywhere
        _watched(purifier, 3).purify(training, clean, task, seed=0, anyway=True)
    assert not Snapshot.of(training).differs(after), (
        "one seed must give one result, bit for bit, in place as on a copy, for a model in train mode as in eval mode; "
        "draw from run.generator alone and let no layer depend on the mode that the user left it in"
    )
    assert all(module.training for module in training.modules()), "a model in train mode must come back in train mode"
    if must_differ:
        other, _ = purify(model, clean, task=task, method=purifier, seed=1, anyway=True)
        assert Snapshot.of(other).differs(after), "another seed gave the same weights; is run.generator used at all?"
