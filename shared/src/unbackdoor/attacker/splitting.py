"""Which samples the defender holds: a seeded draw that keeps the proportions of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.data import GroupedBatch, groups_of
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch

__all__ = ["clean_size", "draw", "hold_out", "split_classes"]

_FEWEST = 3
"""Samples, so that each part has one."""


def clean_size(total: int, clean_share: float | None, clean_count: int | None, default: float) -> int:
    """Number of samples that the defender holds: the count, or a share of ``total``, at least 1.

    Raises:
        BadOption: Both are given, or the number does not leave something on either side.
    """
    if clean_share is not None and clean_count is not None:
        raise BadOption(f"clean_share is {clean_share} and clean_count {clean_count}; give one of the two.")
    if clean_count is None:
        share = default if clean_share is None else clean_share
        if not 0 < share < 1:
            raise BadOption(f"clean_share is {share}; the share of the defender must lie in (0, 1).")
        clean_count = max(1, round(share * total))
    if not 0 < clean_count < total:
        raise BadOption(f"clean_count is {clean_count} of {total} samples; it must lie in 1..{total - 1}.")
    return clean_count


def draw(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` sorted indices, as many of each class as its share of ``labels``.

    Args:
        labels: Class indices, int64 of shape ``(n,)``.
        count: 1 to n.
        generator: Draws which.
    """
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    return torch.cat([order[shuffled == label][:number] for label, number in _quotas(labels, count)]).sort().values


def hold_out(
    labels: Tensor, count: int, generator: torch.Generator, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices of the training part and of ``count`` clean samples, disjoint.

    Args:
        labels: Class indices, int64 of shape ``(n,)``.
        count: Number of clean samples.
        generator: Draws which.
        groups: Samples of one class with one number here are near copies (frames of one film). Whole groups are
            then held out; their frames beyond ``count`` belong to neither part.

    Raises:
        BadOption: A class has too few groups to give its share and keep one for training.
    """
    keep = torch.ones(len(labels), dtype=torch.bool)
    if groups is None:
        clean = draw(labels, count, generator)
        keep[clean] = False
        return keep.nonzero().flatten(), clean
    chosen = []
    for label, number in _quotas(labels, count):
        frames = _whole_groups((labels == label).nonzero().flatten(), groups, number, generator)
        if len(frames) < number:
            raise BadOption(f"class {label} can give {len(frames)} of {number} clean samples; ask for fewer.")
        keep[frames] = False
        chosen.append(frames[torch.randperm(len(frames), generator=generator)[:number]])
    return keep.nonzero().flatten(), torch.cat(chosen).sort().values


def _apart(samples: Batch, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`hold_out` with the samples' own groups, which may be of several classes: none has samples in both parts."""
    groups = groups_of(samples)
    kept, held = hold_out(samples.targets, count, generator, groups)
    if groups is not None:
        kept = kept[~torch.isin(groups[kept], groups[held])]
        if not len(kept):
            raise BadOption(f"{count} samples have some of every group, so none is left to train on; ask for fewer.")
    return kept, held


def _by_class(labels: Tensor, groups: Tensor) -> Tensor:
    """One number for each pair of class and group: tracks and films are counted anew in every class."""
    numbers: Tensor = torch.stack([labels, groups], 1).unique(dim=0, return_inverse=True)[1]
    return numbers


def _quotas(labels: Tensor, count: int) -> list[tuple[int, int]]:
    """Every class with its number of ``count``, by the largest remainder."""
    classes, sizes = labels.unique(return_counts=True)
    wanted = sizes.double() * count / len(labels)
    quota = wanted.floor().long()
    short = count - int(quota.sum())
    quota[(wanted - quota).argsort(descending=True, stable=True)[:short]] += 1
    return list(zip(classes.tolist(), quota.tolist(), strict=True))


def _whole_groups(members: Tensor, groups: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Whole groups among ``members``, in random order until they hold ``number``; at least one stays behind."""
    names = groups[members].unique()
    names = names[torch.randperm(len(names), generator=generator)]
    taken = [torch.empty(0, dtype=torch.long)]
    for name in names[: len(names) - 1]:
        if sum(map(len, taken)) >= number:
            break
        taken.append(members[groups[members] == name])
    return torch.cat(taken)


def split_classes(
    train: Batch,
    test: Batch | None,
    classes: tuple[str, ...],
    *,
    seed: int,
    clean_share: float | None,
    clean_count: int | None,
    default_share: float = 0.01,
    test_share: float = 0.2,
    groups: Tensor | None = None,
    hints: Mapping[str, Any] | None = None,
    attack_hints: Mapping[str, Any] | None = None,
) -> Splits:
    """The three parts: clean samples out of ``train``, and test samples too where there is no ``test``.

    Args:
        train: Samples with class indices, int64 of shape ``(n,)``, as targets.
        test: The official test part; None takes ``test_share`` of ``train``.
        classes: Names in label order.
        seed: Of the draw, which keeps the proportions of the classes.
        clean_share: Share of the defender; None means ``default_share``.
        clean_count: Their number instead.
        default_share: See ``clean_share``.
        test_share: See ``test``.
        groups: Samples of one class with one number here are near copies, see `hold_out`; parts carry them, each class
            with numbers of its own (`GroupedBatch`). None takes those of ``train``, where it has some.
        hints: See `Splits`.
        attack_hints: See `Splits`.

    Raises:
        BadData: A label has no class name, or there are too few samples.
        BadOption: ``test_share`` is not allowed; or see `clean_size`.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = train.targets
    if len(train) < _FEWEST or (test is not None and not len(test)):
        raise BadData(f"there are {len(train)} samples to train on; give at least {_FEWEST}, and one to test on.")
    if not 0 < test_share < 1:
        raise BadOption(f"test_share is {test_share}; it must lie in (0, 1).")
    parts = [part.targets for part in (train, *(() if test is None else (test,)))]
    lowest, highest = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
    if highest >= len(classes) or lowest < 0:
        raise BadData(f"labels reach from {lowest} to {highest}, but there are {len(classes)} class names.")
    if groups is not None:
        groups = _by_class(labels, groups.cpu().long())
        train = GroupedBatch.of(train, groups)
    if test is None:
        number = min(len(labels) - 2, max(1, round(test_share * len(labels))))
        rest, tested = _apart(train, number, generator)
        test, train = train[tested], train[rest]
    kept, held = _apart(train, clean_size(len(train), clean_share, clean_count, default_share), generator)
    return Splits(
        train=train[kept],
        clean=train[held],
        test=test,
        classes=classes,
        hints=hints or {},
        attack_hints=attack_hints or {},
    )
