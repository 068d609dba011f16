"""Which samples to hold out: a seeded draw that keeps the proportions of strata and never parts a group."""

from __future__ import annotations

import torch
from torch import Tensor

from unbackdoor.errors import BadData

__all__ = ["held_out", "parted"]


def held_out(
    count: int,
    share: float,
    generator: torch.Generator,
    strata: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Positions of the samples to hold out, in order: ``share`` (0 to 1) of them, stratum by stratum.

    Each part has at least one sample. The only sample of a stratum is not held out, nor are samples of which the
    stratum would keep none because all are of one group.

    Args:
        count: Number of samples.
        share: Of them to hold out. Whole groups may make it somewhat more.
        generator: Draws which.
        strata: Integers of shape ``(count,)``, such as classes; None takes all samples for one stratum.
        groups: Samples of one number go together, int64 of shape ``(count,)``; None parts them freely.

    Raises:
        BadData: There are fewer than two samples, or no stratum has samples of two groups.
    """
    if count < 2:
        raise BadData("a single clean sample cannot be split into tuning and holdout; give at least two.")
    kinds = torch.zeros(count, dtype=torch.long) if strata is None else strata.cpu().long()
    if groups is not None:
        return _whole_groups(share, generator, kinds, groups)
    shuffled = torch.randperm(count, generator=generator, device=generator.device).cpu()
    held: list[Tensor] = []
    for kind in kinds.unique():
        members = shuffled[kinds[shuffled] == kind]
        held.append(members[: min(len(members) - 1, round(share * len(members)))])
    index = torch.cat(held)
    if len(index) == 0:
        index = shuffled[: max(1, min(count - 1, round(share * count)))]
    return index.sort().values


def _whole_groups(share: float, generator: torch.Generator, kinds: Tensor, groups: Tensor) -> Tensor:
    """Group after group in random order: each that a stratum still lacks, and without which none would be empty."""
    names, numbers = groups.unique(return_inverse=True)
    values, kinds = kinds.unique(return_inverse=True)
    table = torch.zeros(len(names), len(values), dtype=torch.long)  # samples of each group in each stratum
    table.index_put_((numbers, kinds), torch.ones(len(groups), dtype=torch.long), accumulate=True)
    left, held = table.sum(0), torch.zeros(len(values), dtype=torch.long)
    wanted = (share * left).round().long().clamp(min=0)
    goal, chosen = max(1, round(share * len(groups))), torch.zeros(len(names), dtype=torch.bool)
    order = torch.randperm(len(names), generator=generator, device=generator.device).cpu().tolist()

    def spare(name: int) -> bool:
        return bool((left - table[name])[table[name] > 0].gt(0).all())

    for name in order:
        if int(held.sum()) >= goal:
            break
        if spare(name) and bool((held < wanted)[table[name] > 0].any()):
            chosen[name] = True
            left, held = left - table[name], held + table[name]
    if not bool(chosen.any()):
        spared = [name for name in order if spare(name)]
        if not spared:
            where = "all clean samples are" if len(names) == 1 else "the clean samples of every class are"
            raise BadData(
                f"{where} of one group of near copies (one track, film or speaker), so none can be held out that was "
                "not tuned on; give samples of further groups."
            )
        chosen[spared[0]] = True
    return chosen[numbers].nonzero().flatten()


def parted(count: int, share: float, generator: torch.Generator, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Two parts of samples in random order, the first of about ``share`` of them; groups stay whole.

    Args:
        count: Number of samples, at least 1.
        share: Of the first part, which gets at least one group and, of several, not all.
        generator: Draws which.
        groups: See `held_out`.

    Returns:
        Positions of both parts, each in order; the second is empty where there is one sample or one group alone.
    """
    numbers = torch.arange(count) if groups is None else groups.unique(return_inverse=True)[1]
    sizes = numbers.bincount()
    order = torch.randperm(len(sizes), generator=generator, device=generator.device).cpu()
    ends = sizes[order].cumsum(0)
    taken = int((ends - sizes[order] / 2 < share * count).sum())  # a group goes where most of it belongs
    taken = min(max(taken, 1), max(len(sizes) - 1, 1))
    first = torch.zeros(len(sizes), dtype=torch.bool)
    first[order[:taken]] = True
    return first[numbers].nonzero().flatten(), (~first)[numbers].nonzero().flatten()
