"""A few clean samples, kept on the device, drawn by an explicit generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, default_collate

from unbackdoor.errors import BadData
from unbackdoor.task import Batch
from unbackdoor.tree import Tree, first_dim, leaves, tree_map

__all__ = ["CleanSet"]

_DRAWN_AT_ONCE = 8
"""Batches; the fewer, the more random each is, the more, the more alike its samples are."""


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
            BadData: There are none, or inputs and targets differ in number, or inputs hold NaN.
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
        self.samples = samples
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
        """Which samples to hold out: ``share`` (0 to 1) of them, group by group of ``strata``, in order.

        Each part has at least one sample. A group of one sample stays in the tuning part.

        Raises:
            BadData: There are fewer than two samples.
        """
        count = len(self)
        if count < 2:
            raise BadData("a single clean sample cannot be split into tuning and holdout; give at least two.")
        shuffled = torch.randperm(count, generator=generator, device=generator.device).cpu()
        groups = torch.zeros(count, dtype=torch.long) if strata is None else strata.cpu().long()
        held: list[Tensor] = []
        for group in groups.unique():
            members = shuffled[groups[shuffled] == group]
            held.append(members[: min(len(members) - 1, round(share * len(members)))])
        index = torch.cat(held)
        if len(index) == 0:
            index = shuffled[: max(1, min(count - 1, round(share * count)))]
        return index.sort().values

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

    return Batch(join([b.inputs for b in batches]), join([b.targets for b in batches]))


def floats_like(samples: Batch, dtype: torch.dtype) -> Batch:
    """Floating inputs cast to the model's ``dtype``; integer inputs stay."""
    inputs = tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, samples.inputs)
    return replace(samples, inputs=inputs)
