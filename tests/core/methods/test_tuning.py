"""The core step of SAM, NAD, FST, TSBD and MCR, each by hand or against a slow oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.defender.loss import frozen_copy
from unbackdoor.defender.methods.fst import FST
from unbackdoor.defender.methods.fst.fst import Head, shift_penalty
from unbackdoor.defender.methods.ft_sam import FTSAM
from unbackdoor.defender.methods.mcr import MCR
from unbackdoor.defender.methods.mcr.mcr import Curve, bezier
from unbackdoor.defender.methods.nad import NAD, nad
from unbackdoor.defender.methods.nad.nad import Distillation, distance
from unbackdoor.defender.methods.sam import SAM
from unbackdoor.defender.methods.tsbd import TSBD
from unbackdoor.defender.methods.tsbd.tsbd import neuron_changes, zero_masks
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.defender.reparam.matrices import matrices
from unbackdoor.defender.schedule import learning_rate_factor, marks
from unbackdoor.errors import BadOption
from unbackdoor.network.features import attention, depths, recorded
from unbackdoor.testing import ClassificationTask, tiny_models

TASK = ClassificationTask()
TINY = tiny_models()["conv-bn"]


# -------------------------------------------------------------------------------------------------- SAM


def test_strongest_round_within_the_budget_is_kept(trained):
    """A radius that ruins the network is undone: the last round within the budget stands."""
    model, batch = copy.deepcopy(trained)
    method = FTSAM(steps=40, batch_size=30, rounds=4, radius=400.0, lr=0.5, clip=None, holdout=0.4)
    report = method.purify(model, batch, TASK)
    rounds = [entry for entry in report.log if "within" in entry]
    assert len(rounds) == 4
    assert report.before["accuracy"] - report.after["accuracy"] <= 3.0 + max(r["standard_error"] for r in rounds) or (
        not any(r["within"] for r in rounds)
    )


@pytest.mark.parametrize("wrong", [{"radius": -1.0}, {"radius": float("inf")}, {"bn": "reset"}])
def test_sam_refuses_values_out_of_range(wrong):
    with pytest.raises(BadOption):
        SAM(**wrong)


# -------------------------------------------------------------------------------------------------- NAD


def test_distance_of_attention_by_hand_and_without_nan_where_equal():
    a = torch.tensor([[3.0, 4.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    value = distance(a, b)
    assert_close(value.detach(), torch.tensor(2.5, dtype=torch.float64), rtol=0, atol=1e-10)
    value.backward()
    assert_close(a.grad, torch.tensor([[0.3, 0.4], [0.0, 0.0]], dtype=torch.float64), rtol=0, atol=1e-10)


def test_distillation_is_loss_plus_weighted_distances_of_both_models_maps():
    model, batch = TINY.build().double(), TINY.batch(6, dtype=torch.float64)
    other = TINY.build(seed=3).double()
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        theirs.copy_(mine)
    places = depths(model, lambda: model(batch.inputs), 2)
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), model)
    found = Distillation(model, other, places, TASK, run, 7.0, 2.0, 0.0)(0, batch)
    expected = TASK.loss(model(batch.inputs), batch.targets)
    maps = []
    for each in (model, other):
        with recorded(each, places) as kept:
            each(batch.inputs)
        maps.append([attention(kept[p.module], p.channels) for p in places])
    for own, taught in zip(*maps, strict=True):
        expected = expected + 7.0 * (own - taught).norm(dim=1).mean()
    assert_close(found, expected, rtol=0, atol=1e-10)


def test_teacher_of_nad_runs_on_its_stored_statistics(monkeypatch):
    """Not on those of the batch, whatever mode the student's BatchNorm is in."""
    seen = []
    plain = nad.attention

    def attention(features, *words):
        seen.append(features.detach().clone())
        return plain(features, *words)

    monkeypatch.setattr(nad, "attention", attention)
    model, batch = TINY.build(), TINY.batch(24)
    teachers = []
    monkeypatch.setattr(nad, "frozen_copy", lambda m: teachers.append(frozen_copy(m)) or teachers[0])
    NAD(teacher_steps=5, steps=1, batch_size=24, bn="update", points=1, clip=None).purify(model, batch, TASK)
    (teacher,) = teachers
    assert not any(module.training for module in teacher.modules())
    assert not torch.equal(teacher[1].running_mean, TINY.build()[1].running_mean), "the teacher keeps what it learned"
    place = depths(teacher, lambda: teacher(batch.inputs), 1)
    with recorded(teacher, place) as alone:
        rows = torch.cat([teacher(row[None]) is not None and alone[place[0].module] for row in batch.inputs])
    wanted = seen[0]
    gaps = (wanted[:, None] - rows[None]).flatten(2).abs().amax(2).min(1).values
    assert float(gaps.detach().max()) < 1e-5, "each of the teacher's maps is that of its sample alone"


def test_nad_begins_the_distillation_with_the_given_weights_and_statistics(monkeypatch):
    model, batch = TINY.build(), TINY.batch(24)
    given = copy.deepcopy(model.state_dict())
    found = []

    def first(self, step, batch):
        found.append(copy.deepcopy(self.model.state_dict()))
        raise RuntimeError

    monkeypatch.setattr(Distillation, "__call__", first)
    with pytest.raises(RuntimeError):
        NAD(teacher_steps=5, steps=1, batch_size=24, bn="update").purify(model, batch, TASK)
    assert_close(found[0], given, rtol=0, atol=0)


def test_nad_of_the_paper_has_a_tenth_of_the_rate_after_two_epochs():
    made = NAD.make("paper")
    assert (made.teacher_epochs, made.epochs, made.batch_size, made.weight_decay) == (10, 20, 64, 1e-4)
    rates = [
        made.lr * learning_rate_factor(made.schedule, step, 200, epoch=10, milestones=marks(made.milestones))
        for step in range(200)
    ]
    assert_close(rates, [0.1] * 20 + [0.01] * 180)
    short = NAD.make("paper", steps=4, teacher_steps=3)
    assert (short.steps, short.epochs, short.teacher_steps, short.teacher_epochs) == (4, None, 3, None)
    logged = NAD.make("paper", batch_size=12, teacher_epochs=1, epochs=4, beta=1.0).purify(
        TINY.build(), TINY.batch(24), TASK
    )
    assert {round(entry["lr"], 6) for entry in logged.log if "lr" in entry} == {0.1, 0.01}


@pytest.mark.parametrize("wrong", ["2 x", "0", "-1", "1.5"])
def test_milestones_that_are_no_epochs_are_refused(wrong):
    with pytest.raises(BadOption, match="milestones"):
        NAD(milestones=wrong)
    with pytest.raises(BadOption, match="milestones"):
        learning_rate_factor("milestones", 0, 10)


# -------------------------------------------------------------------------------------------------- FST


def test_penalty_and_projection_by_hand():
    given = torch.tensor([[1.0, 2.0], [0.0, 2.0]])
    assert float(shift_penalty(torch.tensor([[3.0, -1.0], [5.0, 0.5]]), given)) == 3 - 2 + 0 + 1
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(given)
    head = Head(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
    head.project_()
    assert_close(layer.weight.detach(), torch.tensor([[0.0, 1.8], [2.4, 0.0]]))  # norm 5 becomes 3


def test_classifier_keeps_its_norm_and_leaves_its_direction(trained):
    model, batch = copy.deepcopy(trained)
    given = model[3].weight.detach().clone()
    FST(steps=60, batch_size=30, lr=0.1, shift=1.0).purify(model, batch, TASK)
    now = model[3].weight.detach()
    assert_close(now.norm(), given.norm(), rtol=0, atol=1e-9)
    assert float((now * given).sum() / given.norm() ** 2) < 0.3


# ------------------------------------------------------------------------------------------------- TSBD


def test_zero_masks_by_hand():
    """Changes of neurons: 6, 1 | 9; half of three neurons, rounded, are two: the first and the third."""
    changes = [torch.tensor([[[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]]), torch.tensor([[[4.0, 5.0]]])]
    assert_close(neuron_changes(changes), torch.tensor([6.0, 1.0, 9.0]))
    masks = zero_masks(changes, 0.6, 0.6)  # of the five weights of both, three: 5, 4, 3
    assert masks[0].tolist() == [[[False, False, True], [False, False, False]]]
    assert masks[1].tolist() == [[[True, True]]]


def test_zero_masks_count_exactly_where_all_changes_are_equal():
    masks = zero_masks([torch.zeros(1, 10, 4)], 0.5, 0.5)
    assert int(masks[0].sum()) == 10


def test_matrices_take_tied_weights_once_and_leave_the_classifier_out():
    model = tiny_models()["tied"].build()
    names = [m.name for m in matrices(model, model.head.weight)]
    assert names.count("first.weight") + names.count("second.weight") == 1
    assert "head.weight" not in names


def test_unlearning_leaves_the_weights_as_given(trained):
    model, batch = copy.deepcopy(trained)
    from unbackdoor.data import CleanSet

    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), model)
    sites = matrices(model, model[3].weight)
    changes = TSBD(unlearn_steps=200, unlearn_lr=0.5)._changes(
        model, sites, FullWeights(model), CleanSet(batch), TASK, run
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert float(neuron_changes(changes).min()) >= 0
    assert float(neuron_changes(changes).max()) > 0
    assert not any("not unlearned" in text for text in run.notices)


# -------------------------------------------------------------------------------------------------- MCR


def test_curve_begins_and_ends_at_its_ends_and_its_bend_has_the_weight_of_the_formula():
    a, m, b = (torch.tensor([v], dtype=torch.float64) for v in (1.0, 5.0, 3.0))
    assert_close(bezier(a, m, b, 0.0), a)
    assert_close(bezier(a, m, b, 1.0), b)
    assert_close(bezier(a, m, b, 0.25), torch.tensor([0.5625 + 0.375 * 5 + 0.0625 * 3], dtype=torch.float64))
    bend = m.clone().requires_grad_(True)
    point = Curve({"w": a}, {"w": bend}, {"w": b}).at(0.25)["w"]
    assert_close(torch.autograd.grad(point.sum(), bend)[0], torch.tensor([0.375], dtype=torch.float64))


def test_places_run_from_the_ends_to_the_middle():
    assert MCR(points=3).places() == pytest.approx([0.25, 0.75, 0.5])


def test_purified_model_is_a_point_of_the_curve_with_statistics_of_its_own():
    model, batch = TINY.build(), TINY.batch(60)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    method = MCR(steps=5, end_steps=5, batch_size=10, max_clean_drop=100.0)
    report = method.purify(model, batch, TASK)
    assert any("t = 0.50" in text for text in report.notices)
    assert not torch.equal(model[1].running_mean, buffers["1.running_mean"])
    assert int(model[1].num_batches_tracked) == 4 * 48 // 10


@pytest.mark.parametrize("cls", [SAM, FTSAM, NAD, FST, TSBD, MCR])
def test_same_seed_gives_the_same_bits(cls):
    few = {name: 3 for name in cls.__dataclass_fields__ if name == "steps" or name.endswith("_steps")}
    results = []
    for seed in (1, 1, 2):
        model = TINY.build()
        cls(**few, batch_size=4).purify(model, TINY.batch(24), TASK, seed=seed)
        results.append(torch.cat([v.double().flatten() for v in model.state_dict().values()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
