"""That a purification purifies: on a small victim whose attack is proven alive, with a control that must not work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import unbackdoor
from unbackdoor.defender.seeker import Seeker
from unbackdoor.registry import method
from unbackdoor.testing import ClassificationTask, check_attack, check_task, tiny_victim


@dataclass(frozen=True)
class Squares:
    """A square for each of ``n`` images: its first row and column, its side and its brightness."""

    corner: Tensor
    side: Tensor
    value: Tensor

    def __len__(self) -> int:
        return len(self.side)

    def __getitem__(self, index: Tensor) -> Squares:
        return Squares(self.corner[index], self.side[index], self.value[index])

    def varied(self, generator: torch.Generator) -> Squares:
        corner, side = (
            torch.randint(-1, 2, values.shape, generator=generator) + values for values in (self.corner, self.side)
        )
        return Squares(corner.clamp(0, 7), side.clamp(1, 3), self.value)


@dataclass
class SoughtSquares(Seeker[Squares]):
    """The smallest disturber that searches; it knows neither the trigger's place nor its side nor its brightness."""

    def drawn(self, inputs: Tensor) -> Squares:
        count, generator = len(inputs), self.generator
        return Squares(
            torch.randint(0, 8, (count, 2), generator=generator),
            torch.randint(1, 4, (count,), generator=generator),
            torch.rand(count, generator=generator),
        )

    def put(self, inputs: Tensor, attempts: Squares, rate: float) -> Tensor:
        place = torch.arange(8).view(1, 8, 1) - attempts.corner.unsqueeze(1)
        rows, columns = ((place >= 0) & (place < attempts.side.view(-1, 1, 1))).unbind(2)
        chosen = torch.rand(len(inputs), 1, 1, 1, generator=self.generator) < rate
        square = rows[:, None, :, None] & columns[:, None, None, :] & chosen
        return torch.where(square, attempts.value.view(-1, 1, 1, 1), inputs)

    def joined(self, parts: Sequence[Squares]) -> Squares:
        return Squares(*(torch.cat([getattr(part, name) for part in parts]) for name in ("corner", "side", "value")))

    def said(self, worst: Squares, costs: Tensor) -> str:
        return f"corners {worst.corner.tolist()}"


class SearchingTask(ClassificationTask):
    """Images whose disturbances are searched for, as those of every task package are."""

    def disturber(self, generator: torch.Generator) -> SoughtSquares:
        return SoughtSquares(0.6, generator)


TASK = ClassificationTask()
SEARCHING = SearchingTask()

# Percent. The attack must be alive before, or what follows proves nothing.
ALIVE_ASR = 95.0
ALIVE_ACCURACY = 95.0
# What must be reached with the defaults on the test samples: largest ASR, largest loss of accuracy. Over eight seeds
# of the victim the search leaves 12 at most to f-fip and 17 to nft; without one f-fip hardly moves this victim.
PURIFIED = {("f-fip", SEARCHING): (20.0, 3.0), ("nft", SEARCHING): (20.0, 3.0), ("nft", TASK): (40.0, 3.0)}
CASES = [pytest.param(*case, marks=[pytest.mark.slow] * (case == ("nft", TASK))) for case in PURIFIED]
# The control changes BatchNorm's statistics alone; if it worked, the two above would have no merit of their own.
CONTROL_ASR = 80.0


@pytest.fixture(scope="module")
def victim():
    return tiny_victim()


@pytest.fixture(scope="module")
def figures(victim):
    return unbackdoor.evaluate(victim.model, victim.test, TASK, victim.attack)


def test_victim_conforms_and_its_attack_is_alive(victim, figures):
    for task in (TASK, SEARCHING):
        check_task(task, victim.clean[slice(0, 8)], victim.model)
    check_attack(victim.attack, victim.test)
    assert figures["asr"] >= ALIVE_ASR
    assert figures["accuracy"] >= ALIVE_ACCURACY


@pytest.mark.parametrize(("name", "task"), CASES)
def test_method_removes_the_backdoor_and_keeps_the_accuracy(victim, figures, name, task):
    asr, loss = PURIFIED[name, task]
    purified, report = unbackdoor.purify(victim.model, victim.clean, task=task, method=name)
    after = unbackdoor.evaluate(purified, victim.test, TASK, victim.attack)
    assert after["asr"] <= asr, (figures, after)
    assert after["accuracy"] >= figures["accuracy"] - loss, (figures, after)
    assert report.before["accuracy"] > 0
    assert unbackdoor.evaluate(victim.model, victim.test, TASK, victim.attack) == figures
    if task is SEARCHING:
        assert any("corners [[0, 0], " in notice for notice in report.notices), "the trigger's place, found blindly"


def test_batchnorm_alone_does_not_remove_the_backdoor(victim):
    assert method("bn-only")().updates_buffers
    purified, _ = unbackdoor.purify(victim.model, victim.clean, task=TASK, method="bn-only")
    after = unbackdoor.evaluate(purified, victim.test, TASK, victim.attack)
    assert after["asr"] >= CONTROL_ASR
