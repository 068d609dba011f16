"""Clean samples from whatever users have, and batches that treat every sample alike."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from unbackdoor.data import CleanSet, GroupedBatch, floats_like, groups_of
from unbackdoor.errors import BadData
from unbackdoor.holding_out import parted
from unbackdoor.task import Batch

X, Y = torch.arange(30.0).reshape(10, 3), torch.arange(10) % 5


def pairs():
    return [(X[i], int(Y[i])) for i in range(10)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(pairs())


SOURCES = {
    "clean-set": lambda: CleanSet(Batch(X, Y)),
    "batch": lambda: Batch(X, Y),
    "tuple": lambda: (X, Y),
    "list": lambda: [X, Y],
    "dataset": lambda: TensorDataset(X, Y),
    "list-of-samples": pairs,
    "generator": lambda: (pair for pair in pairs()),
    "iterable-dataset": Stream,
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4),
    "loader-of-iterable": lambda: DataLoader(Stream(), batch_size=3),
}


@pytest.mark.parametrize("name", SOURCES)
def test_clean_set_reads_what_users_have(name):
    clean = CleanSet.of(SOURCES[name]())
    assert len(clean) == 10
    assert_close((clean.samples.inputs, clean.samples.targets), (X, Y), rtol=0, atol=0)


@pytest.mark.parametrize("wrap", [list, tuple])
def test_clean_set_of_exactly_two_samples_is_not_taken_for_inputs_and_targets(wrap):
    clean = CleanSet.of(wrap([(X[0], 1), (X[1], 2)]))
    assert_close((clean.samples.inputs, clean.samples.targets), (X[:2], torch.tensor([1, 2])), rtol=0, atol=0)
    tensors = CleanSet.of([(X[0], torch.tensor(1)), (X[1], torch.tensor(2))])
    assert_close(tensors.samples.targets, torch.tensor([1, 2]), rtol=0, atol=0)


def test_clean_set_keeps_several_inputs_and_soft_targets():
    clean = CleanSet.of(((X, X + 1), torch.eye(10)))
    assert len(clean) == 10
    part = next(clean.once(4))
    assert_close(part.inputs, (X[:4], X[:4] + 1), rtol=0, atol=0)
    loaded = CleanSet.of(DataLoader([({"a": X[i], "b": X[i, :1]}, i) for i in range(10)], batch_size=3))
    assert_close(loaded.samples.inputs, {"a": X, "b": X[:, :1]}, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "empty"),
        (iter([]), "empty"),
        (TensorDataset(X[:0], Y[:0]), "empty"),
        ((X[:0], Y[:0]), "empty"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), "yields no batch"),
        (DataLoader(TensorDataset(X, Y), batch_size=32, drop_last=True), "drop_last"),
        ([{"image": X[0], "label": 1}], "dict with keys.*collate_fn"),
        (DataLoader([{"image": X[0], "label": 1}]), "dict with keys.*collate_fn"),
        ([(X[0], 1, 2)], "tuple of length 3; expected a pair"),
        (DataLoader(X), "expected a pair"),
        ([X[0]], "expected a pair"),
        ([(X[0], 1), (X[0, :2], 2), (X[0], 0)], "cannot be stacked"),
        ([("a sentence", 1), ("another one", 2)], "tensor"),
        ((X, Y[:7]), "10 inputs but 7 targets"),
        ((X, torch.tensor(1)), "batch in dimension 0"),
        ((X.clone().fill_(math.nan), Y), "NaN"),
        ((X.clone().fill_(math.inf), Y), "infinite"),
        (7, "cannot read clean samples from int"),
        (None, "cannot read clean samples from NoneType"),
        ("samples/", "expected a pair"),
    ],
)
def test_clean_set_refuses_what_is_none_and_says_why(source, message):
    with pytest.raises(BadData, match=message):
        CleanSet.of(source)


def drawn(clean, size, count, seed=0):
    batches = clean.batches(size, torch.Generator().manual_seed(seed))
    return [next(batches).targets for _ in range(count)]


def test_batches_cover_each_sample_once_an_epoch():
    clean = CleanSet.of((X, torch.arange(10)))
    for size in (1, 2, 5, 10):
        stream = torch.cat(drawn(clean, size, 30 // size))
        for epoch in stream.split(10):
            assert sorted(epoch.tolist()) == list(range(10))
    odd = torch.cat(drawn(clean, 3, 10))
    assert sorted(odd.tolist()) == sorted(list(range(10)) * 3), "batches of 3 cross epochs, yet none is favoured"


def test_batches_pair_every_input_with_its_target():
    clean = CleanSet.of((X, torch.arange(10)))
    batch = next(clean.batches(7, torch.Generator().manual_seed(0)))
    assert_close(batch.inputs, X[batch.targets], rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_batches_larger_than_the_set_repeat_samples_evenly(count):
    clean = CleanSet.of((X[:count], torch.arange(count)))
    for batch in drawn(clean, 25, 3):
        occurrences = batch.bincount(minlength=count)
        assert int(occurrences.sum()) == 25
        assert int(occurrences.max() - occurrences.min()) <= 2


def test_batches_of_known_extents_are_of_like_extent_and_cover_all():
    extents = torch.arange(64) % 16
    clean = CleanSet(Batch(torch.arange(64), torch.arange(64)), extents)
    batches = clean.batches(4, torch.Generator().manual_seed(0))
    drawn = [next(batches).targets for _ in range(16)]
    assert sorted(torch.cat(drawn).tolist()) == list(range(64))
    spread = [int(extents[batch].max() - extents[batch].min()) for batch in drawn]
    assert max(spread) < 8
    means = [float(extents[batch].float().mean()) for batch in drawn[:8]]
    assert means != sorted(means), "in random order"


def test_parts_of_a_set_keep_their_extents():
    clean = CleanSet(Batch(torch.arange(20), torch.arange(20)), torch.arange(20) + 100)
    tuning, holdout = clean.split(0.3, torch.Generator().manual_seed(0))
    for part in (tuning, holdout, clean.without([3, 4]), clean.to("cpu")):
        assert torch.equal(part.extents, part.samples.targets + 100)
    assert CleanSet(clean.samples).measured(lambda inputs: inputs * 2).extents.tolist() == list(range(0, 40, 2))


def test_batches_are_shuffled_by_their_generator_alone():
    clean = CleanSet.of((X, torch.arange(10)))
    first = drawn(clean, 4, 5)
    torch.rand(3)
    assert_close(drawn(clean, 4, 5), first, rtol=0, atol=0)
    assert not torch.equal(torch.cat(drawn(clean, 4, 5, seed=1)), torch.cat(first))


def test_once_gives_every_sample_in_order():
    clean = CleanSet.of((X, torch.arange(10)))
    parts = [batch.targets for batch in clean.once(4)]
    assert [len(part) for part in parts] == [4, 4, 2]
    assert torch.cat(parts).tolist() == list(range(10))


def split(targets, share, seed=0):
    inputs = torch.arange(float(len(targets))).unsqueeze(1)
    clean = CleanSet.of((inputs, targets))
    return clean.split(share, torch.Generator().manual_seed(seed), targets)


def test_split_is_disjoint_complete_and_stratified():
    targets = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)
    tuning, holdout = split(targets, 0.2)
    together = torch.cat([tuning.samples.inputs, holdout.samples.inputs]).flatten()
    assert sorted(together.tolist()) == list(range(70))
    assert holdout.samples.targets.bincount().tolist() == [8, 4, 2]
    again, _ = split(targets, 0.2)
    other, _ = split(targets, 0.2, seed=1)
    assert torch.equal(again.samples.inputs, tuning.samples.inputs)
    assert not torch.equal(other.samples.inputs, tuning.samples.inputs)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("targets", [[0, 1], [0, 0], [0, 1, 2, 3], [0, 0, 0, 1]])
def test_split_leaves_something_on_both_sides(share, targets):
    tuning, holdout = split(torch.tensor(targets), share)
    assert len(tuning) >= 1
    assert len(holdout) >= 1
    assert len(tuning) + len(holdout) == len(targets)


def test_split_of_one_sample_is_refused():
    with pytest.raises(BadData, match="at least two"):
        split(torch.tensor([0]), 0.5)


def film(count: int = 40, size: int = 4) -> CleanSet:
    """Samples of two classes; ``size`` neighbours of one class are frames of one film."""
    labels = torch.arange(count) // size % 2
    return CleanSet(GroupedBatch.of(Batch(torch.arange(count).float(), labels), torch.arange(count) // size))


def test_groups_are_indexed_moved_and_joined_with_the_samples() -> None:
    clean = film()
    assert clean.groups is not None
    picked = clean.samples[torch.tensor([5, 39])]
    assert groups_of(picked).tolist() == [1, 9]
    assert groups_of(clean.samples[slice(3, 5)]).tolist() == [0, 1]
    assert groups_of(clean.samples[clean.samples.targets == 1]).tolist() == [n // 4 for n in range(40) if n // 4 % 2]
    assert clean.without([0, 1]).groups.tolist() == clean.groups.tolist()[2:]
    assert clean.part(torch.tensor([7])).groups.tolist() == [1]
    assert clean.to("cpu").measured(lambda inputs: None).groups is not None
    assert next(clean.once(6)).groups.tolist() == [0, 0, 0, 0, 1, 1]
    assert floats_like(clean.samples, torch.float64).groups.tolist() == clean.groups.tolist()
    assert groups_of(Batch(torch.zeros(2), torch.zeros(2))) is None


def test_joined_samples_without_a_group_stand_for_themselves() -> None:
    joined = CleanSet.join([film(8).samples, Batch(torch.zeros(3), torch.zeros(3, dtype=torch.long))])
    assert joined.groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, *range(10, 13)]
    assert CleanSet.join([Batch(torch.zeros(2), torch.zeros(2))] * 2).groups is None


@pytest.mark.parametrize("groups", [torch.zeros(3, dtype=torch.long), torch.zeros(40), torch.zeros(40, 1).long()])
def test_groups_of_another_form_are_refused(groups: Tensor) -> None:
    with pytest.raises(BadData, match="group"):
        GroupedBatch.of(film().samples, groups)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_parted_by_a_split(seed: int) -> None:
    clean = film(80)
    tuned, held = clean.split(0.2, torch.Generator().manual_seed(seed), clean.samples.targets)
    assert not set(tuned.groups.tolist()) & set(held.groups.tolist())
    assert sorted([*tuned.samples.inputs.tolist(), *held.samples.inputs.tolist()]) == list(range(80))
    assert set(tuned.samples.targets.tolist()) == set(held.samples.targets.tolist()) == {0, 1}
    assert 8 <= len(held) <= 24


def test_the_only_film_of_a_class_is_tuned_on() -> None:
    clean = film(12, size=4)  # two films of class 0, one of class 1
    for seed in range(5):
        held = clean.held_out(0.4, torch.Generator().manual_seed(seed), clean.samples.targets)
        assert set(clean.samples.targets[held].tolist()) == {0}


def test_films_that_cannot_be_held_out_are_refused_in_plain_words() -> None:
    with pytest.raises(BadData, match="all clean samples are of one group"):
        film(4).held_out(0.5, torch.Generator(), None)
    with pytest.raises(BadData, match="samples of every class are of one group"):
        film(8).held_out(0.5, torch.Generator(), film(8).samples.targets)


@pytest.mark.parametrize(("count", "groups", "sizes"), [(9, None, (6, 3)), (2, None, (1, 1)), (1, None, (1, 0))])
def test_parts_have_the_share_that_was_asked_for(count: int, groups: Tensor | None, sizes: tuple[int, int]) -> None:
    first, second = parted(count, 2 / 3, torch.Generator().manual_seed(0), groups)
    assert (len(first), len(second)) == sizes
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(count))


def test_parts_keep_groups_whole() -> None:
    groups = torch.arange(12) // 3
    first, second = parted(12, 0.5, torch.Generator().manual_seed(0), groups)
    assert not set(groups[first].tolist()) & set(groups[second].tolist())
    assert len(first) == len(second) == 6
    assert len(parted(4, 0.5, torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.long))[1]) == 0
