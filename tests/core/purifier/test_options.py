"""Names, presets and options: what is taken and what is refused."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

import unbackdoor
from unbackdoor.defender.methods.f_fip import FastFIP
from unbackdoor.defender.methods.fip import FIP
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.methods.nft import NFT
from unbackdoor.errors import (
    BadOption,
    UnbackdoorError,
    UnknownName,
)
from unbackdoor.registry import method, method_names
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


QUICK = {"steps": 2, "batch_size": 4}


def test_purify_hints_at_names_that_come_close(clean, mlp):
    with pytest.raises(UnknownName, match=r"no method 'f-fipp'.*Did you mean 'f-fip'"):
        unbackdoor.purify(mlp(), clean, task=TASK, method="f-fipp")
    with pytest.raises(UnknownName, match=r"no task 'imge'.*Install a task package"):
        unbackdoor.purify(mlp(), clean, task="imge")


@pytest.mark.parametrize("name", method_names())
def test_make_refuses_options_and_presets_that_do_not_exist(name):
    cls = method(name)
    own = [field.name for field in fields(cls) if field.name != "drop_doubtful"]
    with pytest.raises(BadOption, match=r"no option 'stepz'\. Known: ") as refused:
        cls.make(stepz=3)
    assert own
    assert all(field in str(refused.value) for field in own)
    with pytest.raises(BadOption, match="no preset 'best'"):
        cls.make("best")
    for preset, values in cls.presets.items():
        key = "steps" if "steps" in own else next(iter(values))
        assert getattr(cls.make(preset, **{key: 7}), key) == 7


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 1.5}, {"steps": True}, {"batch_size": 0}, {"batch_size": "8"}])
def test_make_refuses_values_that_make_no_sense(clean, name, bad, mlp):
    """A method that takes no steps has no such option, and says that."""
    known = set(bad) <= set(method(name).__dataclass_fields__)
    with pytest.raises(BadOption, match="must be an integer of at least 1" if known else f"no option '{min(bad)}'"):
        method(name).make(**bad)
    with pytest.raises(BadOption):
        unbackdoor.purify(mlp(), clean, task=TASK, method=name, **bad)
    if known:
        with pytest.raises(UnbackdoorError):
            unbackdoor.purify(mlp(), clean, task=TASK, method=method(name)(**bad))


@pytest.mark.parametrize("lr", [0, -1.0, math.inf, math.nan, "fast"])
@pytest.mark.parametrize("name", method_names())
def test_make_refuses_learning_rates_that_make_no_sense(name, lr):
    """A method that descends by no gradient has no such option, and says that."""
    known = "lr" in method(name).__dataclass_fields__
    with pytest.raises(BadOption, match="must be a positive number" if known else "no option 'lr'"):
        method(name).make(lr=lr)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (NFT, {"site": "bn"}),
        (NFT, {"mask_schedule": "quadratic"}),
        (NFT, {"depth": "deep"}),
        (NFT, {"alpha": 1.5}),
        (NFT, {"alpha": -0.1}),
        (FT, {"bn": "reset"}),
        (FIP, {"trace_every": 0}),
        (FastFIP, {"trace_samples": 0}),
    ],
)
def test_methods_refuse_options_outside_their_range(kind, bad):
    with pytest.raises(BadOption):
        kind(**bad)


def test_purify_takes_options_with_a_name_and_not_with_a_method(clean, mlp):
    with pytest.raises(BadOption, match="give them to the Purifier itself"):
        unbackdoor.purify(mlp(), clean, task=TASK, method=NFT(), steps=3)
    with pytest.raises(BadOption):
        unbackdoor.purify(mlp(), clean, task=TASK, method=NFT(), preset="paper")
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, method="fip", preset="paper", **QUICK)
    assert report.options["retain_weight"] == 5.0
    assert report.options["steps"] == 2
