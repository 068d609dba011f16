# ruff: noqa: PT018 - one promise, one assertion, one message
"""What every task must satisfy."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from unbackdoor.task import Batch, Task
from unbackdoor.testing.comparison import assert_close, assert_equal, copy_of, form, generator, global_state_kept, parts
from unbackdoor.tree import Tree, first_dim, leaves, tree_map

__all__ = ["check_task"]


def check_task(task: Task, batch: Batch, model: nn.Module) -> None:
    """Assert that ``task`` keeps the promises of `Task` on ``batch`` (at least 3 samples) and ``model``.

    Raises:
        AssertionError: Says which promise is broken and how.
    """
    count = len(batch)
    assert count >= 3, f"give at least 3 samples to check a task, not {count}"
    model = copy.deepcopy(model).eval()
    state, given = copy_of(model.state_dict()), copy_of((batch.inputs, batch.targets))
    with global_state_kept(f"task {task.name!r}"):
        outputs = task.forward(model, batch.inputs)
        assert leaves(outputs) and first_dim(outputs) == count, "forward must give tensors, batch first"
        _check_likelihood(task, batch, model, outputs)
        _check_augment(task, batch)
        _check_strong_augment(task, batch, model)
        _check_mixing(task, batch, tree_map(Tensor.detach, outputs))
        _check_imitation(task, batch, tree_map(Tensor.detach, outputs))
        _check_mixed_forward(task, batch, model)
        _check_judgement(task, batch, model)
    assert_equal(model.state_dict(), state, "the task changed the model's state")
    assert_equal((batch.inputs, batch.targets), given, "the task changed the batch that it was given")


def _check_likelihood(task: Task, batch: Batch, model: nn.Module, outputs: Tree) -> None:
    scores = task.log_likelihood(outputs, batch.targets)
    assert scores.shape == (len(batch),), (
        f"log_likelihood has shape {tuple(scores.shape)}; expected one value for each sample, ({len(batch)},). "
        "An indexing such as outputs[:, targets] pairs every sample with every label; use gather."
    )
    assert scores.is_floating_point() and bool(torch.isfinite(scores).all()), "log_likelihood must be finite floats"
    assert scores.requires_grad, "log_likelihood must carry the graph back to the weights; do not detach it"
    loss = task.loss(outputs, batch.targets)
    assert_close(loss, -scores.mean(), "loss must be minus the mean of log_likelihood")
    alone = []
    for i in range(len(batch)):
        one = batch[slice(i, i + 1)]
        alone.append(task.log_likelihood(task.forward(model, one.inputs), one.targets))
    assert_close(scores, torch.cat(alone), "log_likelihood of a batch must be that of its samples one at a time")


def _check_imitation(task: Task, batch: Batch, outputs: Tree) -> None:
    if type(task).imitate is Task.imitate:
        return
    for targets in (batch.targets, task.augment(batch, generator(1), mix=1.0).targets):
        none = torch.zeros((), dtype=torch.bool)
        soft = task.imitate(outputs, targets, none)
        best = task.log_likelihood(outputs, soft)
        for factor in (0.5, 2.0) if targets is batch.targets else ():  # what mixing leaves open may be asked of labels
            other = task.log_likelihood(tree_map(partial(torch.mul, other=factor), outputs), soft)
            assert bool((best >= other - 1e-5).all()), "outputs must be the likeliest for the targets that imitate them"
        labels = task.log_likelihood(outputs, targets)
        kept = task.log_likelihood(outputs, task.imitate(outputs, targets, ~none))
        assert_close(kept, labels, "with every class kept, imitate must leave the labels as they are")


def _check_augment(task: Task, batch: Batch) -> None:
    for mix in (0.0, 1.0, 0.4):
        first = task.augment(batch, generator(0), mix=mix)
        torch.rand(1)  # an augmentation that reads the global generator differs from here on
        again = task.augment(batch, generator(0), mix=mix)
        assert_equal(parts(first), parts(again), "augment must draw from its generator alone: one seed, one result")
        sides = [first.inputs]
        if mix > 0 and form(first.inputs) != form(batch.inputs) and _is_triple(first.inputs, len(batch)):
            sides = list(first.inputs[:2])  # what cannot be mixed as it is, for forward to mix inside the model
        for side in sides:
            assert form(side) == form(batch.inputs), (
                f"augment(mix={mix}) must keep structure, shapes, dtypes and device of the inputs: "
                f"{form(batch.inputs)} became {form(side)}"
            )
        assert first_dim(first.targets) == len(batch), f"augment(mix={mix}) must keep the number of targets"
        if mix == 0:
            assert_equal(first.targets, batch.targets, "augment(mix=0) must leave the targets as they are")


def _check_strong_augment(task: Task, batch: Batch, model: nn.Module) -> None:
    weak = task.augment(batch, generator(1), mix=1.0)
    for given in (batch.inputs, weak.inputs):
        first = task.strong_augment(given, generator(0))
        torch.rand(1)
        again = task.strong_augment(given, generator(0))
        assert_equal(first, again, "strong_augment must draw from its generator alone: one seed, one result")
        with torch.no_grad():
            said = task.forward(model, first)
        assert first_dim(said) == len(batch), "what strong_augment makes must be as many inputs of the same form"


def _is_triple(inputs: Tree, count: int) -> bool:
    if not isinstance(inputs, tuple) or len(inputs) != 3:
        return False
    share = inputs[2]
    return isinstance(share, Tensor) and share.is_floating_point() and share.shape == (count,)


def _check_mixing(task: Task, batch: Batch, outputs: Tree) -> None:
    """For fixed outputs, the mixed score must be ``lambda * l_a + (1 - lambda) * l_b``, one lambda for all outputs."""
    mixed = task.augment(batch, generator(1), mix=1.0).targets

    def scores(targets: Tree) -> Tensor:
        rows = []
        for k in range(len(batch)):
            same = tree_map(partial(_repeat, k), outputs)  # output k for every sample
            rows.append(task.log_likelihood(same, targets).detach().double())
        return torch.stack(rows)

    hard, soft = scores(batch.targets), scores(mixed)
    span = hard.unsqueeze(1) - hard.unsqueeze(2)  # (outputs, a, b): l_b - l_a
    offset = (soft - hard).unsqueeze(2)
    share = ((offset * span).sum(0) / span.square().sum(0).clamp(min=1e-12)).clamp(0, 1)
    worst = (offset - share * span).abs().amax(0).amin(1)
    scale = float(hard.abs().max().clamp(min=1.0))
    assert float(worst.max()) <= 1e-4 * scale, (
        "log_likelihood must be linear in mixed targets: lambda * l_a + (1 - lambda) * l_b with lambda in [0, 1]; "
        f"the scores of sample {int(worst.argmax())} are no such mixture (off by {float(worst.max()):.3g})"
    )


def _check_mixed_forward(task: Task, batch: Batch, model: nn.Module) -> None:
    """Where inputs are a triple, a share of 1 must be the first input, and the shares must matter."""
    mixed = task.augment(batch, generator(1), mix=1.0).inputs
    if form(mixed) == form(batch.inputs) or not _is_triple(mixed, len(batch)):
        return
    first, second, share = mixed
    with torch.no_grad():
        plain = task.log_likelihood(task.forward(model, first), batch.targets)
        whole = task.log_likelihood(task.forward(model, (first, second, torch.ones_like(share))), batch.targets)
        half = task.log_likelihood(task.forward(model, (first, second, 0.5 * torch.ones_like(share))), batch.targets)
    assert_close(whole, plain, "inputs mixed with a share of 1 must be the first of the two")
    assert not torch.equal(half, plain), "the share of mixed inputs must change what the model says"


def _repeat(k: int, outputs: Tensor) -> Tensor:
    return outputs[k : k + 1].expand_as(outputs)


def _check_judgement(task: Task, batch: Batch, model: nn.Module) -> None:
    with torch.no_grad():
        answers = task.predict(model, batch.inputs)
    assert first_dim(answers) == len(batch), "predict must give the batch in dimension 0"
    right = task.correct(answers, batch.targets)
    assert right.shape == (len(batch),), "correct must have the shape (batch,)"
    graded = right.is_floating_point() and 0.0 <= float(right.min()) <= float(right.max()) <= 1.0
    assert right.dtype is torch.bool or graded, "correct must be bool, or floats in [0, 1] for answers right in part"
    meters, others = task.meters(), task.meters()
    assert meters, "meters must not be empty; the first is the headline"
    for name, meter in meters.items():
        assert meter is not others[name], f"meters() must make a fresh {name!r} at each call"
        meter.update(answers, batch.targets)
        value = float(meter.compute())
        assert value >= 0.0 and (value <= 1.0 or hasattr(meter, "scale")), (
            f"the meter {name!r} says {value}; expected a fraction of 1 (or an attribute scale for other quantities)"
        )
    assert task.samples_per_class(batch.targets) > 0, "samples_per_class must be positive"
    strata = task.strata(batch.targets)
    if strata is not None:
        assert strata.shape == (len(batch),) and not strata.is_floating_point(), "strata must be integers, one a sample"
    assert all(isinstance(text, str) for text in task.inspect(batch, answers)), "inspect must give a list of texts"
    try:
        space = task.perturbable(batch.inputs)
    except NotImplementedError:
        return
    assert space.is_floating_point() and len(space) == len(batch), "perturbable must be floats with the batch first"
