"""The three parts of the threat model: proportions, exact numbers, whole groups, and what is refused."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.attacker.splitting import clean_size, draw, hold_out, split_classes
from unbackdoor.data import GroupedBatch, groups_of
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import leaves


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def numbered(count, classes=4):
    """Samples whose inputs are a dictionary that holds their number."""
    return Batch({"number": torch.arange(count)}, torch.arange(count) % classes)


def split(train, test=None, **options):
    words = {"seed": 0, "clean_share": None, "clean_count": None, **options}
    return split_classes(train, test, tuple("abcd"), **words)


def test_draw_keeps_proportions_and_the_exact_number(generator):
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    assert labels[draw(labels, 10, generator)].bincount().tolist() == [7, 2, 1]
    assert len(draw(labels, 7, generator)) == 7
    assert draw(labels, 100, generator).tolist() == list(range(100))


def test_hold_out_keeps_tracks_whole(generator):
    labels = torch.arange(2).repeat_interleave(30)
    tracks = torch.arange(6).repeat_interleave(5).repeat(2)
    train, clean = hold_out(labels, 8, generator, tracks)
    assert len(clean) == 8
    seen = {(int(labels[i]), int(tracks[i])) for i in train}
    assert not seen & {(int(labels[i]), int(tracks[i])) for i in clean}


def test_parts_are_disjoint_whole_and_of_all_classes():
    data = split(numbered(400), clean_share=0.1, hints={"a": 1}, attack_hints={"b": 2})
    parts = [part.inputs["number"].tolist() for part in (data.train, data.clean, data.test)]
    assert sorted(number for part in parts for number in part) == list(range(400))
    assert [len(part) for part in parts] == [288, 32, 80]
    for part in (data.train, data.clean, data.test):
        assert torch.equal(part.targets, part.inputs["number"] % 4)
        assert part.targets.bincount().tolist() == [len(part) // 4] * 4
    assert (dict(data.hints), dict(data.attack_hints)) == ({"a": 1}, {"b": 2})


def test_official_test_part_stays_as_it_is_and_the_seed_decides_the_clean_part():
    test = numbered(8)
    first, again, other = (split(numbered(400), test, seed=seed, clean_count=20) for seed in (1, 1, 2))
    assert first.test is test
    assert torch.equal(first.clean.inputs["number"], again.clean.inputs["number"])
    assert not torch.equal(first.clean.inputs["number"], other.clean.inputs["number"])
    assert len(leaves(first.train.inputs)[0]) == 380


def test_labels_without_a_name_and_sizes_without_sense_are_refused():
    with pytest.raises(BadData, match="labels reach from 0 to 4, but there are 4 class names"):
        split(numbered(40, classes=5))
    with pytest.raises(BadOption, match="give one of the two"):
        clean_size(10, 0.1, 3, 0.1)
    for words in ({"clean_share": 1.0, "clean_count": None}, {"clean_share": None, "clean_count": 10}):
        with pytest.raises(BadOption, match="must lie in"):
            clean_size(10, default=0.1, **words)
    assert clean_size(10, None, None, 0.01) == 1


def test_parts_carry_their_tracks_and_no_track_lies_in_two_of_them():
    samples = numbered(400)
    tracks = samples.inputs["number"] // 4 // 10  # 10 tracks of 10 frames in every class, counted anew in each
    data = split(samples, clean_count=80, groups=tracks)
    numbers = [groups_of(part) for part in (data.train, data.clean, data.test)]
    assert [len(number) for number in numbers] == [len(part) for part in (data.train, data.clean, data.test)]
    seen = [set(number.tolist()) for number in numbers]
    assert not seen[0] & (seen[1] | seen[2])
    assert not seen[1] & seen[2]
    assert len(set().union(*seen)) <= 40
    own = {(int(label), int(number)) for label, number in zip(data.clean.targets, numbers[1], strict=True)}
    assert len(own) == len({number for _, number in own}), "tracks of two classes have two numbers"


def test_speakers_of_several_classes_are_in_one_part_alone():
    samples = numbered(400)
    speakers = samples.inputs["number"] // 4 // 5  # 20 of them, each with five samples of every class
    data = split(GroupedBatch.of(samples, speakers), clean_count=20)
    seen = [set((part.inputs["number"] // 4 // 5).tolist()) for part in (data.train, data.clean, data.test)]
    assert not seen[0] & (seen[1] | seen[2])
    assert seen[0]


def test_groups_that_leave_nothing_to_train_on_are_refused():
    speakers = torch.arange(400) // 200
    with pytest.raises(BadOption, match="none is left to train on"):
        split(GroupedBatch.of(numbered(400), speakers), numbered(8), clean_count=40)
