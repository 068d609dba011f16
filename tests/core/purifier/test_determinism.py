"""One seed gives one result; buffers move only where the method says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.methods.bn_only import BNOnly
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.methods.nft import NFT
from unbackdoor.registry import method, method_names
from unbackdoor.report import weight_hash
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


QUICK = {"steps": 2, "batch_size": 4}


@pytest.mark.parametrize("name", method_names())
def test_purify_is_the_same_for_one_seed_and_reports_hashes(clean, name, mlp, state_of, quick):
    first, one = unbackdoor.purify(mlp(), clean, task=TASK, method=name, seed=3, **quick(name))
    torch.rand(5)
    second, two = unbackdoor.purify(mlp(), clean, task=TASK, method=name, seed=3, **quick(name))
    assert_close(state_of(first), state_of(second), rtol=0, atol=0)
    assert one.hash_after == two.hash_after == weight_hash(first)
    assert one.seed == 3


@pytest.mark.parametrize("name", method_names())
def test_purify_leaves_buffers_bit_identical_unless_the_method_says_so(clean, name, mlp, quick):
    """The network has dropout and BatchNorm; a buffer that is no statistic stays in any case."""
    model = mlp().train()
    model.register_buffer("table", torch.rand(3))
    purified, _ = unbackdoor.purify(model, clean, task=TASK, method=name, **quick(name, steps=5))
    found, given = dict(purified.named_buffers()), dict(model.named_buffers())
    if method(name)().updates_buffers:
        assert torch.equal(found.pop("table"), given["table"])
        assert not torch.equal(found["1.running_mean"], given["1.running_mean"])
    else:
        assert_close(found, given, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["update", "frozen"])
@pytest.mark.parametrize("name", [name for name in method_names() if "bn" in method(name).__dataclass_fields__])
def test_option_bn_decides_whether_statistics_move(clean, name, mode, mlp, quick):
    purifier = method(name)(bn=mode, **quick(name, site="norm"))
    purified, _ = unbackdoor.purify(mlp(), clean, task=TASK, method=purifier)
    assert purifier.updates_buffers == (mode == "update")
    assert torch.equal(purified[1].running_mean, mlp()[1].running_mean) == (mode == "frozen")


def test_purify_updates_buffers_only_where_the_method_says_so(clean, mlp):
    given = dict(mlp().named_buffers())
    for purifier, moves in (
        (BNOnly(**QUICK), True),
        (FT(**QUICK), True),
        (FT(**QUICK, bn="frozen"), False),
        (NFT(**QUICK, site="norm"), True),
        (NFT(**QUICK), False),
    ):
        purified, _ = unbackdoor.purify(mlp(), clean, task=TASK, method=purifier)
        assert purifier.updates_buffers == moves
        assert torch.equal(purified[1].running_mean, given["1.running_mean"]) != moves


def test_bn_only_changes_no_weight_and_says_so_where_there_is_no_batchnorm(clean, mlp):
    purified, _ = unbackdoor.purify(mlp(), clean, task=TASK, method="bn-only", **QUICK)
    assert_close(dict(purified.named_parameters()), dict(mlp().named_parameters()), rtol=0, atol=0)
    plain = nn.Linear(6, 3)
    same, report = unbackdoor.purify(plain, clean, task=TASK, method="bn-only", **QUICK)
    assert torch.equal(same.weight, plain.weight)
    assert any("no BatchNorm" in text for text in report.notices)
