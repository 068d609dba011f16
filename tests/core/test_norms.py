"""Running statistics: estimated afresh as the plain mean over batches, and left alone where a pass must not count."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.errors import BadOption
from unbackdoor.network.norms import check_norm_mode, estimating, reestimate_norms, train_norms, untracked
from unbackdoor.testing import ClassificationTask, tiny_models

TASK = ClassificationTask()


def test_statistics_are_the_mean_over_batches_and_nothing_of_the_old_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(3, 3)).double().eval()
    model[0].running_mean.fill_(1e6)
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = CleanSet.of((inputs, torch.arange(8) % 3))
    drawn = clean.batches(4, torch.Generator().manual_seed(7))
    batches = [next(drawn).inputs for _ in range(6)]
    reestimate_norms(model, TASK, clean, torch.Generator().manual_seed(7), batch_size=4, passes=3)
    assert_close(model[0].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), rtol=0, atol=1e-10)
    assert_close(model[0].running_var, torch.stack([b.var(0) for b in batches]).mean(0), rtol=0, atol=1e-10)
    assert not model[0].training
    assert model[0].momentum == 0.1


def test_untracked_pass_leaves_statistics_alone_and_gives_the_same_outputs():
    tiny = tiny_models()["conv-bn"]
    model, other = tiny.build(), tiny.build()
    before = copy.deepcopy(dict(model.named_buffers()))
    for each in (model, other):
        train_norms(each, True)
    with untracked(model):
        quiet = model(tiny.batch().inputs)
    assert_close(quiet, other(tiny.batch().inputs))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert not torch.equal(other[1].running_mean, before["1.running_mean"])


def test_estimating_takes_in_batches_by_its_own_weight_and_puts_all_back():
    model, inputs = nn.BatchNorm1d(3), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    model.eval()
    with estimating(nn.Sequential(model, nn.BatchNorm1d(3, track_running_stats=False)), 0.5) as count:
        model(inputs)
        assert count == 1
    assert_close(model.running_mean, 0.5 * inputs.mean(0))
    assert not model.training
    assert model.momentum == 0.1


def test_no_method_sets_the_mode_of_batchnorm_by_hand():
    """What is frozen and what is not is one decision, made in `unbackdoor.network.norms`."""
    root = Path(unbackdoor.__file__).parent / "defender"
    allowed = {"defence.py", "cbd.py"}  # they train whole networks
    by_hand = [
        f"{path.name}: {line.strip()}"
        for path in root.rglob("*.py")
        if path.name not in allowed
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\w\.train\(|\.momentum = |not in \(.(update|frozen)", line)
    ]
    assert by_hand == []


def test_unknown_mode_is_refused():
    with pytest.raises(BadOption, match="update, frozen"):
        check_norm_mode("reset")
