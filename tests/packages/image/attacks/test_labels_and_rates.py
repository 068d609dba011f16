"""Which labels and how many samples an attack poisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor_image import KIT


@pytest.mark.parametrize("name", sorted(set(KIT.attacks) - {"clb", "sig", "cba"}))
def test_all_to_all_targets_are_the_next_class(name: str, data: Batch, make: Callable[..., Any]) -> None:
    """BackdoorBench issues 18 and 67: wrong targets, and which attacks can do it."""
    attack = make(name, all_to_all=True)
    assert_close(attack.retarget(data.targets), (data.targets + 1) % 10)
    assert bool(attack.counts(data.targets).all())


@pytest.mark.parametrize("name", ["badnets", "blend", "wanet"])
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.25, 0.35, 0.5])
def test_poison_rates_of_the_papers(name: str, rate: float, make: Callable[..., Any]) -> None:
    many = Batch(torch.zeros(3000, 1, 8, 8).add_(0.5), torch.arange(3000) % 10)
    options = {"noise": 0.5} if name == "wanet" else {}
    poisoned = make(name, rate=rate, **options).poison(many, torch.Generator().manual_seed(0))
    assert len(poisoned.indices) == round(rate * 3000)


def test_covers_that_do_not_fit_are_refused(data: Batch, make: Callable[..., Any]) -> None:
    with pytest.raises(BadOption, match="covers"):
        make("wanet", rate=0.5).poison(data, torch.Generator().manual_seed(0))
