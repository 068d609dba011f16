"""What a demonstration shows: which samples, the trigger, and the answers of every model."""

from __future__ import annotations

import torch

from unbackdoor.attacker.showing import ask, one_of_each_class
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, SquareTrigger, tiny_models

TINY = tiny_models()["conv-bn"]


def test_samples_are_of_different_classes_and_counted():
    samples = Batch(torch.arange(40), torch.arange(40) // 4)
    chosen = one_of_each_class(samples, SquareTrigger(), 9)
    assert chosen.targets.tolist() == list(range(1, 10))
    few = one_of_each_class(samples[:6], SquareTrigger(target=1), 9)
    assert few.inputs.tolist() == [0, 1, 2, 3]


def test_every_model_is_asked_for_both_and_left_as_it_was():
    samples, attack = TINY.batch(5), SquareTrigger(num_classes=3)
    models = {"one": TINY.build(0).train(), "two": TINY.build(1)}
    shown = ask(samples, attack, models, ClassificationTask())
    assert torch.equal(shown.triggered, attack.trigger(samples.inputs))
    assert list(shown.answers) == ["one", "two"]
    assert (models["one"].training, models["two"].training) == (True, False)
    for name, (clean, triggered) in shown.answers.items():
        model = models[name].eval()
        assert torch.equal(clean, model(samples.inputs))
        assert torch.equal(triggered, model(attack.trigger(samples.inputs)))
        assert not clean.requires_grad
