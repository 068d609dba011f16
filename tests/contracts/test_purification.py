"""That a purification purifies: on a small victim whose attack is proven alive, with a control that must not work."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import Tensor

import unbackdoor
from unbackdoor.registry import method
from unbackdoor.testing import ClassificationTask, check_attack, check_task, tiny_victim
from unbackdoor.tree import Tree


class ErasingTask(ClassificationTask):
    """Images with strong changes: a square somewhere, of some brightness; nothing knows the trigger's place or side."""

    def strong_augment(self, inputs: Tree, generator: torch.Generator, *, without: Collection[str] = ()) -> Tensor:
        count, device = len(inputs), inputs.device
        corner = torch.randint(-2, 8, (count, 2, 1), generator=generator)
        side = torch.randint(1, 4, (count, 1, 1), generator=generator)
        value = torch.rand(count, 1, 1, 1, generator=generator).to(device)
        place = torch.arange(8).view(1, 1, 8) - corner
        rows, columns = ((place >= 0) & (place < side)).unbind(1)
        square = (rows[:, None, :, None] & columns[:, None, None, :]).to(device)
        return torch.where(square, value, inputs)


TASK = ClassificationTask()
ERASING = ErasingTask()

# Percent. The attack must be alive before, or what follows proves nothing.
ALIVE_ASR = 95.0
ALIVE_ACCURACY = 95.0
# What must be reached with the defaults on the test samples: largest ASR, largest loss of accuracy.
PURIFIED = {("sdft", ERASING): (20.0, 3.0)}
# The control changes BatchNorm's statistics alone; if it worked, the two above would have no merit of their own.
CONTROL_ASR = 80.0


@pytest.fixture(scope="module")
def victim():
    return tiny_victim()


@pytest.fixture(scope="module")
def figures(victim):
    return unbackdoor.evaluate(victim.model, victim.test, TASK, victim.attack)


def test_victim_conforms_and_its_attack_is_alive(victim, figures):
    for task in (TASK, ERASING):
        check_task(task, victim.clean[slice(0, 8)], victim.model)
    check_attack(victim.attack, victim.test)
    assert figures["asr"] >= ALIVE_ASR
    assert figures["accuracy"] >= ALIVE_ACCURACY


@pytest.mark.parametrize(("name", "task"), PURIFIED)
def test_method_removes_the_backdoor_and_keeps_the_accuracy(victim, figures, name, task):
    asr, loss = PURIFIED[name, task]
    purified, report = unbackdoor.purify(victim.model, victim.clean, task=task, method=name)
    after = unbackdoor.evaluate(purified, victim.test, TASK, victim.attack)
    assert after["asr"] <= asr, (figures, after)
    assert after["accuracy"] >= figures["accuracy"] - loss, (figures, after)
    assert report.before["accuracy"] > 0
    assert unbackdoor.evaluate(victim.model, victim.test, TASK, victim.attack) == figures


def test_batchnorm_alone_does_not_remove_the_backdoor(victim):
    assert method("bn-only")().updates_buffers
    purified, _ = unbackdoor.purify(victim.model, victim.clean, task=TASK, method="bn-only")
    after = unbackdoor.evaluate(purified, victim.test, TASK, victim.attack)
    assert after["asr"] >= CONTROL_ASR
