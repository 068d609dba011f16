"""The promise of the demo: SDFT purifies its victims."""

from __future__ import annotations

from statistics import mean

import pytest

import unbackdoor
from unbackdoor.attacker.plan import Plan
from unbackdoor.registry import kit

SEEDS = range(3)


@pytest.mark.slow
def test_demo_victims_are_purified() -> None:
    package = kit("pointcloud")
    plan = Plan.of_demo(package)
    rates, drops = [], []
    for seed in SEEDS:
        data = plan.read(package, seed=seed)
        attack = plan.make_attack(package, data)
        model, task = plan.train(package, data, attack, seed=seed)
        before = unbackdoor.evaluate(model, data.test, task, attack)
        assert before["asr"] >= attack.health.asr
        assert before["accuracy"] >= attack.health.clean
        purified, _ = unbackdoor.purify(model, data.clean, task=task, method="sdft", seed=seed)
        after = unbackdoor.evaluate(purified, data.test, task, attack)
        rates.append(after["asr"])
        drops.append(before["accuracy"] - after["accuracy"])
    assert mean(rates) <= 20
    assert mean(drops) <= 4
