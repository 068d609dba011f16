"""I-BAU: no batch without a perturbed sample, and the hypergradient of its objective against finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from unbackdoor.data import CleanSet
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.defender.methods.i_bau import IBAU, i_bau
from unbackdoor.defender.methods.i_bau.i_bau import MinMax, touched
from unbackdoor.defender.perturbation import Ball
from unbackdoor.defender.purifier import Run
from unbackdoor.errors import BadOption
from unbackdoor.testing import ClassificationTask, tiny_models

TASK = ClassificationTask()


@pytest.mark.parametrize("count", [1, 2, 10, 99, 100, 128])
@pytest.mark.parametrize("portion", [0.01, 0.5, 1.0])
def test_every_batch_has_a_perturbed_sample(count, portion):
    """``int(0.01 n)``, as in public code, is 0 for n < 100: no defence at all on few samples."""
    assert 1 <= touched(count, portion) <= count
    assert touched(count, portion) >= portion * count


def test_one_step_on_a_tiny_batch_differs_from_fine_tuning():
    """With one sample in a hundred perturbed, a batch of four must still carry the perturbation."""
    tiny = tiny_models()["mlp-layernorm"]
    results = []
    for radius in (0.5, 1e-9):
        model = tiny.build()
        IBAU(steps=1, batch_size=4, portion=0.01, radius=radius, solver_steps=0).purify(model, tiny.batch(), TASK)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(*results)


def objective(model, batch, delta, solver):
    clean = CleanSet(batch)
    space = InputSpace.of(TASK, clean)
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), model)
    made = MinMax(
        model, space, run, iter(lambda: batch, None), Ball(float(delta.norm()) * 10), every=100, ascent_steps=1,
        solver_steps=200, portion=1.0, penalty=1.0, mixup=0.0, solver=solver,
    )  # fmt: skip
    made.delta = delta
    return made


def solved(model, batch, start):
    """``delta*`` of the penalised inner problem, to machine precision (the penalty makes it strongly convex)."""
    delta = start.clone()
    made = objective(model, batch, torch.ones_like(start), "conjugate-gradients")
    for _ in range(60):
        delta.requires_grad_(True)
        (slope,) = torch.autograd.grad(made.inner(batch, delta), delta, create_graph=True)
        flat = slope.flatten()
        rows = [torch.autograd.grad(value, delta, retain_graph=True)[0].flatten() for value in flat]
        step = torch.linalg.solve(torch.stack(rows), flat.detach()).view_as(delta)
        delta = (delta - step).detach()
        if float(step.norm()) < 1e-13:
            break
    return delta


def test_gradient_of_the_objective_is_that_of_the_bilevel_problem():
    """``d / d theta L(delta*(theta), theta)`` by finite differences; float64."""
    tiny = tiny_models()["mlp-layernorm"]
    model, batch = tiny.build().double(), tiny.batch(6, dtype=torch.float64)
    batch.inputs[0, :], batch.inputs[1, :] = -9.0, 9.0  # a wide range, so that nothing is cut
    delta = solved(model, batch, torch.zeros(1, 6, dtype=torch.float64))
    made = objective(model, batch, delta, "conjugate-gradients")
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    implicit = 0.0
    for i, term in enumerate(made(1, batch)):
        slopes = torch.autograd.grad(term, parameters, allow_unused=True)
        for t, s in zip(total, slopes, strict=True):
            t += 0 if s is None else s
        if i == 0:
            implicit = max(float(s.abs().max()) for s in slopes if s is not None)
    assert implicit > 1e-6, "the implicit term must matter here, or the test says nothing"
    place = int(total[0].abs().argmax())
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            next(moved.parameters()).view(-1)[place] += sign * 1e-5
        best = solved(moved, batch, delta)
        values.append(float(TASK.loss(moved(made.space.add(batch.inputs, best)), batch.targets).detach()))
    assert float(total[0].view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6)


def test_implicit_term_is_of_the_very_samples_of_the_outer_loss(monkeypatch):
    """An augmentation that changes its samples at each call would else give two different losses."""

    class Noisy(ClassificationTask):
        def augment(self, batch, generator, *, mix=1.0):
            noise = torch.randn(batch.inputs.shape, generator=generator, dtype=batch.inputs.dtype)
            return replace(batch, inputs=batch.inputs + noise)

    tiny = tiny_models()["mlp-layernorm"]
    model, batch = tiny.build().double(), tiny.batch(6, dtype=torch.float64)
    made = objective(model, batch, torch.full((1, 6), 0.1, dtype=torch.float64), "fixed-point")
    made.space, made.portion = replace(made.space, task=Noisy()), 0.5
    parts = []
    keep = made._implicit
    monkeypatch.setattr(made, "_implicit", lambda part, share: parts.append(part.inputs) or keep(part, share))
    read = []
    add = InputSpace.add
    monkeypatch.setattr(InputSpace, "add", lambda self, inputs, delta: read.append(inputs) or add(self, inputs, delta))
    for _ in made(1, batch):
        pass
    assert len(parts[0]) == 3
    assert not torch.equal(parts[0], batch.inputs[:3])
    assert torch.equal(read[-1], parts[0])


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"ascent_steps": 0}, {"solver_steps": -1}, {"portion": 0.0}, {"penalty": -1.0}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(BadOption):
        IBAU(**wrong)


@pytest.mark.parametrize(("preset", "radii"), [(None, [0.1, 0.2, 0.3, 0.4]), ("paper", [0.4])])
def test_the_radius_rises_and_the_preset_has_one(preset, radii, monkeypatch):
    seen = []
    real = i_bau.Ball.of

    def recorded(space, clean, radius):
        seen.append(radius)
        return real(space, clean, radius)

    monkeypatch.setattr(i_bau.Ball, "of", recorded)
    tiny = tiny_models()["mlp-layernorm"]
    made = IBAU.make(preset, steps=4, rounds=4, batch_size=4, ascent_steps=1, solver_steps=0)
    made.purify(tiny.build(), tiny.batch(), TASK)
    assert seen == pytest.approx(radii)


def test_a_radius_beyond_the_budget_is_undone(monkeypatch):
    """Every step at the second radius and beyond ruins the model; the first stands."""
    tiny = tiny_models()["mlp-layernorm"]
    model = tiny.build()
    right = TASK.forward(model, tiny.batch(40).inputs).argmax(1)
    clean = replace(tiny.batch(40), targets=right)
    calls = []

    def ruin(parameters, *_, **__):
        calls.append(1)
        with torch.no_grad():
            for value in parameters:
                value.mul_(1.0 if len(calls) == 1 else -1.0 if value.ndim == 2 and len(value) == 3 else 1.0)

    monkeypatch.setattr(i_bau, "finetune", ruin)
    before = [value.detach().clone() for value in model.parameters()]
    report = IBAU(steps=4, rounds=4, batch_size=4, levels=2).purify(model, clean, TASK, anyway=True)
    assert [entry["within"] for entry in report.log] == [1.0, 0.0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
