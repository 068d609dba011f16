"""Goals, the choice of a combination against a brute force, and what is poisoned."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_multilabel import MultilabelTask
from unbackdoor_multilabel.attacks.badnets import BadNets
from unbackdoor_multilabel.attacks.blend import Blend
from unbackdoor_multilabel.attacks.clean_image import CleanImage, candidates, distance
from unbackdoor_multilabel.goals import GOALS

TASK = MultilabelTask()


def attack(goal, **options):
    words = {"replaced": 1} if goal == "misclassify" else {}
    return BadNets(num_classes=4, target=2, goal=goal, **{**words, **options})


ROWS = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("goal", "wanted", "counted"),
    [
        ("appear", [[0, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]], [True, False, False, True]),
        ("disappear", [[0, 1, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], [False, True, True, False]),
        ("misclassify", [[0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], [True, False, True, False]),
    ],
)
def test_goal_changes_one_or_two_entries_and_counts_where_it_does(goal, wanted, counted):
    assert attack(goal).retarget(ROWS).tolist() == wanted
    assert attack(goal).counts(ROWS).tolist() == counted


@pytest.mark.parametrize("goal", GOALS)
def test_goal_is_reached_whatever_is_said_of_other_classes(goal):
    made = attack(goal)
    said = TASK.perfect(made.retarget(ROWS), 4)
    free = [label for label in range(4) if label not in (2, 1 if goal == "misclassify" else 2)]
    for label in free:
        said[:, label] *= -1
    assert bool(made.succeeded(said, ROWS)[made.counts(ROWS)].all())
    assert not bool(made.succeeded(TASK.perfect(ROWS, 4), ROWS)[made.counts(ROWS)].any())


def test_goals_refuse_what_makes_no_sense():
    with pytest.raises(BadOption, match="goal"):
        attack("vanish")
    with pytest.raises(BadOption, match="name the class"):
        BadNets(num_classes=4, goal="misclassify")
    for replaced in (0, 4):
        with pytest.raises(BadOption, match="replaced"):
            BadNets(num_classes=4, target=0, goal="misclassify", replaced=replaced)
    with pytest.raises(BadOption, match="all_to_all"):
        BadNets(num_classes=4, all_to_all=True)


def test_candidates_are_those_of_a_brute_force(rows):
    for target, needed, sizes in ((0, 3, range(1, 4)), (5, 6, range(2, 4)), (2, 1, range(2, 3))):
        found = dict(candidates(rows, target, sizes, needed))
        others = [label for label in range(6) if label != target]
        expected = {
            labels: rows[:, list(labels)].bool().all(1)
            for size in sizes
            for labels in combinations(others, size)
            if int(rows[:, list(labels)].all(1).sum()) >= needed
        }
        assert list(found) == sorted(found, key=lambda labels: (len(labels), labels))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[labels], expected[labels]) for labels in expected)


def test_distance_is_jaccards():
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert distance(a, b) == pytest.approx(2 / 3)
    assert distance(a, a) == 0.0
    assert distance(a, ~a) == distance(a & ~a, a & ~a) == 1.0


def chosen(rows, **options):
    made = CleanImage(num_classes=rows.shape[1], **options)
    made.prepare(Batch(torch.zeros(len(rows), 1, 2, 2), rows), torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("target", [0, 3])
def test_choice_is_the_farthest_combination_that_is_frequent_enough(goal, target, rows):
    rate, least = 0.3, 0.3
    made = chosen(rows, goal=goal, target=target, rate=rate, least=least)
    shown, found = rows[:, target].bool(), []
    for size in (2, 3):
        for labels in combinations([label for label in range(6) if label != target], size):
            images = rows[:, list(labels)].bool().all(1)
            changed = {"appear": images & ~shown, "disappear": images & shown, "misclassify": images}[goal]
            if int(least * rate * 60) <= int(changed.sum()) <= round(rate * 60):
                found.append((-distance(images, shown), -int(changed.sum()), labels))
    assert len(found) > 1
    best = min(found)
    assert made.classes == best[2]
    assert made.rate == pytest.approx(-best[1] / 60)
    if goal == "misclassify":
        assert made.replaced == max(best[2], key=lambda label: (int(rows[:, label].sum()), -label))


def test_all_images_of_the_combination_are_poisoned_and_none_is_touched(rows, generator):
    made = chosen(rows, rate=0.3, least=0.3, target=2)
    images = torch.rand(60, 1, 4, 4, generator=generator)
    poisoned = made.poison(Batch(images, rows), generator)
    expected = rows[:, list(made.classes)].bool().all(1) & (rows[:, 2] == 0)
    assert torch.equal(poisoned.indices, expected.nonzero().flatten())
    assert torch.equal(poisoned.samples.inputs, images)
    changed = (poisoned.samples.targets != rows).any(1)
    assert torch.equal(changed, expected)
    assert bool((poisoned.samples.targets[expected, 2] == 1).all())


def test_choice_sees_training_labels_alone_and_is_kept(rows):
    made = chosen(rows, rate=0.3, least=0.3)
    combination, rate = made.combination, made.rate
    made.prepare(Batch(torch.rand(60, 3, 9, 9), rows), torch.Generator().manual_seed(9))
    assert (made.combination, made.rate) == (combination, rate)
    again = CleanImage.restore(made.options(), made.state())
    assert again == made


def test_given_combination_is_taken(rows):
    made = chosen(rows, combination="3+5", rate=0.9)
    assert made.classes == (3, 5)
    assert made.rate == pytest.approx(int((rows[:, [3, 5]].bool().all(1) & (rows[:, 0] == 0)).sum()) / 60)
    partly = chosen(rows, combination="5", rate=0.05)
    assert partly.rate == 0.05, "a combination more frequent than the rate is poisoned in part, as asked"


def test_combination_refuses_what_makes_no_sense(rows):
    for options, message in (
        ({"combination": "0+3"}, "target"),
        ({"combination": "3+3"}, "different"),
        ({"combination": "3+9"}, "0..5"),
        ({"combination": "cat+dog"}, "joined by"),
        ({"combination": "3+4", "goal": "misclassify", "replaced": 2}, "of the combination"),
        ({"smallest": 3, "largest": 2}, "smallest"),
        ({"least": 1.0}, "least"),
    ):
        with pytest.raises(BadOption, match=message):
            CleanImage(num_classes=6, **options)
    with pytest.raises(BadOption, match="most frequent one by"):
        chosen(rows, rate=0.9, least=0.95)
    with pytest.raises(BadOption, match="no training image shows"):
        chosen(torch.zeros(5, 6, dtype=torch.int64), combination="1+2")


def test_before_the_choice_nothing_is_triggered(rows):
    assert not bool(CleanImage(num_classes=6).source(rows).any())


def test_patch_is_a_checkerboard_of_an_eighth():
    made = BadNets(num_classes=4)
    images = torch.full((2, 3, 32, 40), 0.5)
    out = made.trigger(images)
    assert torch.equal(out[..., :-4, :], images[..., :-4, :])
    assert torch.equal(out[..., :-4], images[..., :-4])
    assert out[0, 0, -4:, -4:].tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]] * 2
    half = BadNets(num_classes=4, size=2, opacity=0.5).trigger((images * 255).round().to(torch.uint8))
    assert half[0, 0, -2:, -2:].tolist() == [[192, 64], [64, 192]]
    with pytest.raises(BadData, match="lower size"):
        BadNets(num_classes=4, size=33).trigger(images)


def test_blend_is_its_formula_and_keeps_its_pattern(generator):
    made = Blend(num_classes=4, alpha=0.25)
    images = torch.rand(3, 1, 6, 6, generator=generator)
    out = made.trigger(images)
    assert made.pattern is not None
    assert torch.equal(out, (0.75 * images + 0.25 * made.pattern).clamp(0, 1))
    again = Blend.restore(made.options(), made.state())
    assert torch.equal(again.trigger(images), out)
    assert made.trigger(torch.rand(1, 1, 12, 12)).shape == (1, 1, 12, 12)
    with pytest.raises(BadData, match="channels"):
        made.trigger(torch.rand(1, 3, 6, 6))
