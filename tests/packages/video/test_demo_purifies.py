"""The promise of the demo: SDFT purifies the victims of moving digits of seeds 0 to 2, the control does not."""

from __future__ import annotations

from statistics import mean

import pytest

import unbackdoor
from unbackdoor.attacker.plan import Plan
from unbackdoor.registry import kit

SEEDS = range(3)
LARGEST_ASR = 25.0
LARGEST_DROP = 5.0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sdft", "bn-only"])
def test_demo_victims_are_purified_by_the_default_and_not_by_the_control(method: str) -> None:
    package = kit("video")
    plan = Plan.of_demo(package)
    rates, drops = [], []
    for seed in SEEDS:
        data = plan.read(package, seed=seed)
        attack = plan.make_attack(package, data)
        model, task = plan.train(package, data, attack, seed=seed)
        before = unbackdoor.evaluate(model, data.test, task, attack)
        assert before["asr"] >= 95
        purified, _ = unbackdoor.purify(model, data.clean, task=task, method=method, seed=seed)
        after = unbackdoor.evaluate(purified, data.test, task, attack)
        rates.append(after["asr"])
        drops.append(before["accuracy"] - after["accuracy"])
    if method == "bn-only":
        assert mean(rates) >= 80
    else:
        assert mean(rates) <= LARGEST_ASR
        assert mean(drops) <= LARGEST_DROP
