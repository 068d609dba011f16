"""Whether a purified model may replace the given one: never one that is worse than a stated bound says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unbackdoor.defender.preflight.significance import better, drop_interval, interval
from unbackdoor.defender.preflight.standing import LEVEL, Standing

__all__ = ["MAX_LOSS", "evidence", "fault", "thin"]

MAX_LOSS = 20.0
"""Points of the headline metric that a purification may cost before its result is refused.

A policy of safety, not a figure of any method: purifications that go well cost a few points.
"""

_SURE = 0.01


def fault(was: Standing, now: Standing, before: float, after: float, max_loss: float) -> str | None:
    """What is wrong with a purified model as it answers some samples; None where nothing is.

    Args:
        was: The given model on these samples.
        now: The purified one.
        before: The headline metric of the given model on them, in percent; NaN where it is not known.
        after: The same of the purified model.
        max_loss: See `MAX_LOSS`; a loss counts where it is also beyond chance (paired exact test at 1 %).
    """
    if not bool(torch.isfinite(now.scores).all()):
        return "the purified model's answers hold NaN or infinity"
    worse, improved = _changes(was, now)
    if was.above_chance and now.at_chance and better(worse, improved) <= LEVEL:
        return f"the purified model is at chance: {_share(now)}, where the given one has {was.count}"
    if before - after > max_loss and better(worse, improved) <= _SURE:
        return (
            f"the purified model has lost {before - after:.1f} points ({before:.1f} -> {after:.1f} % on "
            f"{len(now.scores)} clean samples), more than max_loss={max_loss:g} allows"
        )
    return None


def evidence(was: Standing, now: Standing, right: tuple[Tensor, Tensor], groups: Tensor | None) -> dict[str, Any]:
    """How much the figures of two models on the same samples rest on: see `Report.evidence`.

    Args:
        was: The given model on them.
        now: The purified one.
        right: Which of them each answers rightly, or how well, each of shape ``(n,)``.
        groups: Samples of one number are near copies, which count as one where shares of right answers are meant.
    """
    count = len(now.scores)
    found: dict[str, Any] = {"samples": count, "drop": list(drop_interval(*right, groups))}
    if groups is not None:
        found["groups"] = len(groups.unique())
    if now.targets is not None and was.wins is not None and now.wins is not None:
        found["classes"] = len(now.targets.unique())
        sure = found.get("groups", count)
        found["before"], found["after"] = (list(interval(of.count * sure / count, sure)) for of in (was, now))
    return found


def thin(found: Mapping[str, Any], whole: Standing) -> str | None:
    """What to say where figures rest on samples of fewer classes than there are; None where they do not."""
    classes = 0 if whole.targets is None else len(whole.targets.unique())
    if found.get("classes", classes) == classes:
        return None
    low, high = found["after"]
    return (
        f"the figures are measured on {found['samples']} samples of {found['classes']} of {classes} classes, so they "
        f"say little: of such samples the purified model may answer anything from {low:.0f} to {high:.0f} % right, and "
        "nothing is known of the other classes. Give two samples or more of each class"
    )


def _changes(was: Standing, now: Standing) -> tuple[int, int]:
    """On how many samples the purified model is worse, and on how many better, than the given one."""
    if was.logits is not None and now.logits is not None and was.wins is not None and now.wins is not None:
        return int((was.wins & ~now.wins).sum()), int((now.wins & ~was.wins).sum())
    return int((now.scores < was.scores).sum()), int((now.scores > was.scores).sum())


def _share(of: Standing) -> str:
    what = "answers right" if of.logits is not None else "answers that beat a guess without the input"
    return f"{of.count} of {len(of.scores)} {what}"
