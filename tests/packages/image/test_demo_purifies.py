"""The promise of the demo: SDFT purifies the digits victims of seeds 0 to 4, the controls do not."""

from __future__ import annotations

from statistics import mean

import pytest

import unbackdoor
from unbackdoor.registry import kit

SEEDS = range(5)
LARGEST_MEAN_ASR = 15.0
LARGEST_MEAN_DROP = 3.0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sdft", "bn-only", "ft"])
def test_demo_victims_are_purified_by_the_default_and_not_by_the_controls(method: str) -> None:
    package = kit("image")
    demo = package.demo
    rates, drops = [], []
    for seed in SEEDS:
        data = package.data[demo.data](seed=seed, **demo.data_options)
        task = package.task(**data.hints)
        attack = package.attacks[demo.attack](num_classes=len(data.classes))
        model = package.build(demo.model, num_classes=len(data.classes), seed=seed, **demo.model_options)
        package.train(model, data, task, attack, seed=seed, **demo.train_options)
        before = unbackdoor.evaluate(model, data.test, task, attack)
        assert before["asr"] >= 95
        purified, _ = unbackdoor.purify(model, data.clean, task=task, method=method, seed=seed)
        after = unbackdoor.evaluate(purified, data.test, task, attack)
        rates.append(after["asr"])
        drops.append(before["accuracy"] - after["accuracy"])
    if method in ("bn-only", "ft"):
        assert mean(rates) >= 80
    else:
        assert mean(rates) <= LARGEST_MEAN_ASR
        assert mean(drops) <= LARGEST_MEAN_DROP
