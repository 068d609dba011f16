# ruff: noqa: PT018 - one promise, one assertion, one message
"""What every attack must satisfy."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Task
from unbackdoor.testing.classification import ClassificationTask
from unbackdoor.testing.comparison import assert_equal, copy_of, form, generator, global_state_kept, parts
from unbackdoor.tree import leaves

__all__ = ["check_attack"]


def check_attack(attack: Attack, batch: Batch, task: Task | None = None) -> None:
    """Assert that ``attack`` keeps the promises of `Attack` on ``batch``.

    Args:
        attack: Its ``rate`` must leave at least one sample of ``batch`` unpoisoned.
        batch: Samples of several classes, the target among them; floating inputs in [0, 1].
        task: Says what a model that answers certain targets gives (`Task.perfect`); None means logits of classes.

    Raises:
        AssertionError: Says which promise is broken and how.
    """
    given = copy_of(parts(batch))
    with global_state_kept(f"attack {attack.name!r}"):
        _check_trigger(attack, batch)
        _check_labels(attack, batch.targets, ClassificationTask() if task is None else task)
        _check_poison(attack, batch)
        restored = type(attack).restore(json.loads(json.dumps(attack.options())), copy_of(attack.state()))
        assert restored.options() == type(attack).restore(attack.options(), attack.state()).options()
        assert_equal(
            restored.trigger(batch.inputs, generator(3)),
            attack.trigger(batch.inputs, generator(3)),
            "options() and state(), through JSON and safetensors, must make the same trigger again",
        )
    assert_equal(parts(batch), given, f"{attack.name} changed the samples that it was given")


def _check_trigger(attack: Attack, batch: Batch) -> None:
    triggered = attack.trigger(batch.inputs, generator(0))
    torch.rand(1)
    again = attack.trigger(batch.inputs, generator(0))
    assert_equal(triggered, again, "one seed must give one trigger")
    assert form(triggered) == form(batch.inputs), (
        f"the trigger must keep shapes, dtypes and device: {form(batch.inputs)} became {form(triggered)}"
    )
    changed = False
    for before, after in zip(leaves(batch.inputs), leaves(triggered), strict=True):
        changed |= not torch.equal(before, after)
        _check_range(before, after, "triggered samples")
    assert changed or attack.labels_only, "the trigger changed no sample"
    assert not (changed and attack.labels_only), "an attack with labels_only must leave the inputs as they are"


def _check_range(before: Tensor, after: Tensor, what: str) -> None:
    if before.is_floating_point() and float(before.min()) >= 0 and float(before.max()) <= 1:
        low, high = float(after.min()), float(after.max())
        assert low >= 0 and high <= 1, f"{what} must stay within [0, 1] as their inputs do, not {low}..{high}"


def _check_labels(attack: Attack, targets: Tensor, task: Task) -> None:
    wanted = attack.retarget(targets)
    assert wanted.shape == targets.shape and wanted.dtype is torch.int64, "retarget must give int64, one a target"
    assert int(wanted.min()) >= 0 and int(wanted.max()) < attack.num_classes, "retarget gave an unknown class"
    if targets.ndim == 1:
        due = (targets + 1) % attack.num_classes if attack.all_to_all else torch.full_like(targets, attack.target)
        assert_equal(
            wanted, due, "the label map must be y -> (y + 1) mod num_classes with all_to_all, else y -> target"
        )
    counts, eligible = attack.counts(targets), attack.eligible(targets)
    source = attack.source(targets)
    assert source.dtype is torch.bool and source.shape == (len(targets),), "source must be bool, one a target"
    changed = (wanted != targets).flatten(1).any(1) if targets.ndim > 1 else wanted != targets
    assert counts.dtype is torch.bool and torch.equal(counts, changed & source), (
        "counts must hold exactly for samples of a source class whose class the attack changes; others would flatter "
        "the success rate"
    )
    expected = targets == attack.target if attack.clean_label else counts
    assert torch.equal(eligible, expected), (
        "eligible must be the target class for a clean-label attack, and what counts for any other"
    )
    asked = task.perfect(wanted, attack.num_classes)
    said = attack.succeeded(asked, targets)[counts] if targets.ndim > 1 else attack.succeeded(asked, targets)
    assert bool(said.all()), "succeeded must hold where the model answers as wanted"
    others = task.perfect((wanted + 1) % attack.num_classes, attack.num_classes)
    assert not bool(attack.succeeded(others, targets).any()), "succeeded must not hold for other answers"
    truth = attack.succeeded(task.perfect(targets, attack.num_classes), targets)
    assert not bool(truth[counts].any()), "succeeded must not hold where the model answers rightly"


def _check_poison(attack: Attack, batch: Batch) -> None:
    poisoned = attack.poison(batch, generator(0))
    base = int((batch.targets == attack.target).sum()) if attack.clean_label else len(batch)
    indices = poisoned.indices
    assert len(indices) == round(attack.rate * base), (
        f"{len(indices)} samples were poisoned; rate {attack.rate} of {base} is {round(attack.rate * base)}"
    )
    assert indices.dtype is torch.int64 and bool((indices.diff() > 0).all()), "indices must be sorted, unique int64"
    assert bool(attack.eligible(batch.targets)[indices].all()), "a sample was poisoned that is not eligible"
    rest = torch.ones(len(batch), dtype=torch.bool)
    rest[indices] = False
    covers = poisoned.covers
    assert len(covers) == round(attack.cover_ratio * len(indices)), (
        f"there are {len(covers)} covers; {attack.cover_ratio} for each of {len(indices)} poisoned are due"
    )
    assert bool(rest[covers].all()) and len(covers.unique()) == len(covers), "covers must be distinct and not poisoned"
    assert_equal(poisoned.samples.targets[covers], batch.targets[covers], "covers must keep their labels")
    rest[covers] = False
    assert_equal(parts(poisoned.samples[rest]), parts(batch[rest]), "a sample was changed that is not in indices")
    for before, after in zip(leaves(batch.inputs), leaves(poisoned.samples.inputs), strict=True):
        _check_range(before, after, "poisoned samples and covers")
    labels = batch.targets[indices] if attack.clean_label else attack.retarget(batch.targets[indices])
    assert_equal(poisoned.samples.targets[indices], labels, "poisoned labels must be those of retarget or as before")
    again = attack.poison(batch, generator(0))
    assert_equal(parts(poisoned.samples), parts(again.samples), "one seed must give one poisoned set")
    try:
        replace(attack, rate=1.0).poison(batch, generator(0))
    except BadOption:
        return
    assert attack.clean_label or bool(attack.eligible(batch.targets).all()), "a rate that cannot be met must be refused"
