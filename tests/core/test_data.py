"""Clean samples from whatever users have, and batches that treat every sample alike."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from unbackdoor.data import CleanSet
from unbackdoor.errors import BadData
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
