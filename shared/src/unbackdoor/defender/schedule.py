"""Learning rate over the steps of a run, as a multiple of ``lr``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from unbackdoor.errors import BadOption

__all__ = ["Schedule", "learning_rate_factor", "marks"]

Schedule = Literal["one-cycle", "cosine", "step", "exponential", "milestones", "constant"]


def learning_rate_factor(
    schedule: Schedule,
    step: int,
    steps: int,
    *,
    gamma: float = 0.1,
    epoch: int = 1,
    milestones: Sequence[int] = (),
) -> float:
    """The multiple of ``lr`` at ``step`` (0 to ``steps - 1``).

    - ``"one-cycle"``: up from 1/25 by half a cosine over the first 30 %, then down to 0 by another.
    - ``"cosine"``: from 1 down to 0.
    - ``"step"``: 1 for the first 80 %, then ``gamma`` (FIP, appendix A.3.2: a tenth after 40 of 50 epochs).
    - ``"exponential"``: times ``gamma`` after each ``epoch`` steps (the same, Tiny-ImageNet: 0.3).
    - ``"milestones"``: times ``gamma`` when so many epochs of ``epoch`` steps are over.
    - ``"constant"``: 1.

    Raises:
        BadOption: The schedule is none of these.
    """
    at = step / max(steps, 1)
    if schedule == "one-cycle":
        rise = 0.3
        if at < rise:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * at / rise)) / 2
        return (1 + math.cos(math.pi * (at - rise) / (1 - rise))) / 2
    if schedule == "cosine":
        return (1 + math.cos(math.pi * at)) / 2
    if schedule == "step":
        return 1.0 if at < 0.8 else gamma
    if schedule == "exponential":
        return float(gamma ** (step // epoch))
    if schedule == "milestones":
        if not milestones:
            raise BadOption("schedule='milestones' needs epochs after which the rate falls; this run has none.")
        return float(gamma ** sum(step >= mark * epoch for mark in milestones))
    if schedule == "constant":
        return 1.0
    raise BadOption(f"no schedule {schedule!r}. Known: {', '.join(get_args(Schedule))}.")


def marks(text: str) -> tuple[int, ...]:
    """The milestones that an option names: whole numbers of epochs with spaces between.

    Raises:
        BadOption: They are no such numbers.
    """
    try:
        found = tuple(int(word) for word in text.split())
    except ValueError:
        found = (0,)
    if any(mark < 1 for mark in found):
        raise BadOption(f"milestones is {text!r}; give whole numbers of epochs of at least 1, with spaces between.")
    return found
