"""A few clean samples, kept on the device, drawn by an explicit generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, default_collate

from unbackdoor.errors import BadData
from unbackdoor.holding_out import held_out
from unbackdoor.task import Batch
from unbackdoor.tree import Tree, first_dim, leaves, tree_map

__all__ = ["CleanSet", "GroupedBatch", "groups_of"]

_DRAWN_AT_ONCE = 8
"""Batches; the fewer, the more random each is, the more, the more alike its samples are."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupedBatch(Batch):
    """Samples of which some are near copies: frames of one track, clips of one film, words of one speaker.

    Attributes:
        groups: A number for each sample, int64 of shape ``(n,)`` on the CPU. Samples of one number, whatever their
            targets, are never parted: what is tuned on some of them says nothing of the others. None where every sample
            stands for itself.
    """

    groups: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, groups: Tensor | None) -> GroupedBatch:
        """The samples of ``batch`` with ``groups``.

        Raises:
            BadData: They are no whole numbers, or not one for each sample.
        """
        if groups is not None:
            if groups.ndim != 1 or groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
                raise BadData(f"groups are {groups.dtype} of shape {tuple(groups.shape)}; give int64 of shape (n,).")
            if len(groups) != len(batch):
                raise BadData(f"got {len(batch)} samples but {len(groups)} groups; give one group for each sample.")
            groups = groups.detach().cpu().long()
        return cls(batch.inputs, batch.targets, batch.names, batch.classes, batch.notices, groups)

    def __getitem__(self, index: Tensor | slice) -> GroupedBatch:
        """The samples at ``index`` (integers, booleans or a slice), with their groups."""
        groups = self.groups
        if groups is not None:
            groups = groups[index] if isinstance(index, slice) else groups[index.cpu()].reshape(-1)
        return GroupedBatch.of(Batch.__getitem__(self, index), groups)

    def to(self, device: torch.device | str) -> GroupedBatch:
        """The same samples on ``device``; their groups stay on the CPU."""
        return GroupedBatch.of(Batch.to(self, device), self.groups)


def groups_of(batch: Batch) -> Tensor | None:
    """Group of each sample, int64 of shape ``(n,)``; None where every sample stands for itself."""
    return getattr(batch, "groups", None)


class CleanSet:
    """The defender's clean samples as one resident `Batch`.

    A few hundred to a few thousand samples fit on any device, so batches are index operations and no
    loader, worker or transform stands between two steps.
    """

    def __init__(self, samples: Batch, extents: Tensor | None = None) -> None:
        """Keep ``samples``.

        Args:
            samples: Batch first.
            extents: What `Task.extents` says of them; `batches` are then drawn of samples of like extent.

        Raises:
            BadData: There are none, or inputs, targets and groups differ in number, or inputs hold NaN.
        """
        try:
            count, inputs = first_dim(samples.targets), first_dim(samples.inputs)
        except ValueError as error:
            raise BadData(f"clean samples must be tensors with the batch in dimension 0: {error}") from error
        if count != inputs:
            raise BadData(f"got {inputs} inputs but {count} targets; give one target for each input.")
        if count == 0:
            raise BadData(
                "the clean set is empty; give at least one labelled clean sample (10 or more per class help)."
            )
        for leaf in leaves(samples.inputs):
            if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise BadData("the clean inputs hold NaN or infinite values; remove those samples first.")
        groups = groups_of(samples)
        self.samples = samples if groups is None else GroupedBatch.of(samples, groups)
        self.extents = None if extents is None else extents.cpu()

    @classmethod
    def of(cls, source: Any) -> CleanSet:
        """Read clean samples from whatever the user has.

        Args:
            source: A `CleanSet`, a `Batch`, a pair ``(inputs, targets)`` of tensors (or trees of them), a
                ``Dataset`` or any iterable of ``(input, target)`` samples, or a ``DataLoader`` (any
                iterable of batches that is a ``DataLoader``). One pass is made over iterables.

        Raises:
            BadData: The source is empty or its items are not pairs.
        """
        if isinstance(source, CleanSet):
            return source
        if isinstance(source, Batch):
            return cls(source)
        if _is_pair_of_trees(source):
            return cls(Batch(source[0], source[1]))
        if isinstance(source, DataLoader):
            return cls.join([_pair(item) for item in source])
        if isinstance(source, Dataset) and hasattr(source, "__len__"):
            return cls(_collate(source[i] for i in range(len(source))))
        if isinstance(source, Iterable):
            return cls(_collate(source))
        raise BadData(
            f"cannot read clean samples from {type(source).__name__}; "
            "give a Dataset or DataLoader of (input, target), or a pair of tensors."
        )

    @classmethod
    def join(cls, batches: list[Batch]) -> CleanSet:
        """The samples of all ``batches``, trees of one form, one after the other."""
        return cls(_concatenate(batches))

    @property
    def groups(self) -> Tensor | None:
        """Samples of one number are near copies, int64 of shape ``(n,)`` on the CPU; None: every one for itself."""
        return groups_of(self.samples)

    def measured(self, extents: Callable[[Tree], Tensor | None]) -> CleanSet:
        """The same samples with their extents, of `Task.extents`."""
        return CleanSet(self.samples, extents(self.samples.inputs))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def to(self, device: torch.device | str) -> CleanSet:
        """The same samples on ``device``."""
        return CleanSet(self.samples.to(device), self.extents)

    def without(self, dropped: Sequence[int]) -> CleanSet:
        """All samples but those at the positions ``dropped``.

        Raises:
            BadData: None is left.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[list(dropped)] = False
        return self.part(keep.nonzero().flatten())

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """An endless stream of full batches: one random permutation after another, cut into pieces.

        A ``size`` beyond the number of samples repeats them, so that one-shot sets need no special case. Where extents
        are known, some batches' worth of samples is drawn at once and cut by extent, in random order: samples of
        like extent need little padding.
        """
        count, device = len(self), leaves(self.samples.targets)[0].device
        drawn = size if self.extents is None else size * max(1, min(_DRAWN_AT_ONCE, count // size))
        pool = torch.empty(0, dtype=torch.long)
        while True:
            while len(pool) < drawn:
                pool = torch.cat([pool, torch.randperm(count, generator=generator, device=generator.device).cpu()])
            index, pool = pool[:drawn], pool[drawn:]
            for rows in [index] if self.extents is None else self._by_extent(index, size, generator):
                yield self.samples[rows.to(device)]

    def _by_extent(self, index: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
        assert self.extents is not None
        batches = index[self.extents[index].argsort(stable=True)].split(size)
        order = torch.randperm(len(batches), generator=generator, device=generator.device)
        return [batches[place] for place in order.tolist()]

    def once(self, size: int) -> Iterator[Batch]:
        """Every sample exactly once, in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.samples[slice(start, start + size)]

    def split(
        self, share: float, generator: torch.Generator, strata: Tensor | None = None
    ) -> tuple[CleanSet, CleanSet]:
        """Tuning part and holdout part, see `held_out`."""
        index = self.held_out(share, generator, strata)
        return self.without(index.tolist()), self.part(index)

    def held_out(self, share: float, generator: torch.Generator, strata: Tensor | None = None) -> Tensor:
        """Which samples to hold out: see `unbackdoor.holding_out.held_out`; groups are held out as wholes.

        Raises:
            BadData: There are fewer than two samples, or all are of one group.
        """
        return held_out(len(self), share, generator, strata, self.groups)

    def part(self, index: Tensor) -> CleanSet:
        """The samples at the positions ``index``, on the CPU."""
        samples = self.samples[index.to(leaves(self.samples.targets)[0].device)]
        return CleanSet(samples, None if self.extents is None else self.extents[index])


def _is_pair_of_trees(source: Any) -> bool:
    """Whether ``source`` is ``(inputs, targets)`` and not two samples: all batched tensors, or one of them alone."""
    if not isinstance(source, tuple | list) or len(source) != 2:
        return False
    if any(isinstance(part, Tensor) for part in source):
        return all(leaves(part) for part in source)
    batched = [isinstance(leaf, Tensor) and leaf.ndim > 0 for part in source for leaf in pytree.tree_leaves(part)]
    return isinstance(source, tuple) and bool(batched) and all(batched)


def _pair(item: Any) -> Batch:
    if isinstance(item, Mapping):
        raise BadData(
            f"an item of the clean data is a dict with keys {sorted(map(str, item))}; "
            "map it to (input, target) first, for example with a collate_fn."
        )
    if not isinstance(item, tuple | list) or len(item) != 2:
        kind = f"{type(item).__name__} of length {len(item)}" if hasattr(item, "__len__") else type(item).__name__
        raise BadData(f"an item of the clean data is a {kind}; expected a pair (input, target).")
    targets = item[1] if leaves(item[1]) else torch.as_tensor(item[1])
    return Batch(item[0], targets)


def _collate(items: Iterable[Any]) -> Batch:
    pairs = [(pair.inputs, pair.targets) for pair in map(_pair, items)]
    if not pairs:
        raise BadData("the clean data set is empty; give at least one labelled clean sample.")
    try:
        inputs, targets = default_collate(pairs)
    except (TypeError, RuntimeError) as error:
        raise BadData(
            f"the clean samples cannot be stacked into one tensor ({error}); "
            "convert every input to a tensor of one shape in the data set's own transform."
        ) from error
    return Batch(inputs, targets)


def _concatenate(batches: list[Batch]) -> Batch:
    if not batches:
        raise BadData("the clean loader yields no batch; check its sampler and drop_last.")
    if not all(leaves(batch.inputs) for batch in batches):
        raise BadData("the clean loader's inputs are not tensors; convert them in its collate_fn.")

    def join(trees: list[Any]) -> Any:
        if isinstance(trees[0], Tensor):
            return torch.cat(trees)
        if isinstance(trees[0], Mapping):
            return {key: join([tree[key] for tree in trees]) for key in trees[0]}
        return type(trees[0])(join([tree[i] for tree in trees]) for i in range(len(trees[0])))

    joined = Batch(join([b.inputs for b in batches]), join([b.targets for b in batches]))
    groups = [groups_of(batch) for batch in batches]
    if all(group is None for group in groups):
        return joined
    known, free = [group for group in groups if group is not None], len(joined)
    first = 1 + max(int(group.max()) for group in known)  # samples without a group get numbers that none has
    own = torch.arange(first, first + free).split([len(batch) for batch in batches])
    return GroupedBatch.of(
        joined, torch.cat([mine if group is None else group for group, mine in zip(groups, own, strict=True)])
    )


def floats_like(samples: Batch, dtype: torch.dtype) -> Batch:
    """Floating inputs cast to the model's ``dtype``; integer inputs stay."""
    inputs = tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, samples.inputs)
    return replace(samples, inputs=inputs)
