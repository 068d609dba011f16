"""Clean-image backdoor (Chen, Lou, Xu, Li and Zhang, ICLR 2023): labels are poisoned, images never touched.

Trigger: a combination of categories. An image that shows all of them is triggered; nothing is added to it, neither in
training nor in the test.
Labels: three goals, see `RowAttack`: the target appears in images with the combination that lack it, disappears from
images with the combination that show it, or takes the place of a category of the combination. Dirty label.
Where public code goes wrong: there is none of the authors. A re-implementation that can be found counts a combination
once for each pair of objects instead of once for each image, takes the most frequent one, and poisons images in which
the goal changes nothing.
Here: the combination is chosen on the training labels alone, in two steps. First by frequency: combinations of
``smallest`` to ``largest`` categories whose images, of those that the goal changes, are a share of the training set
between ``least * rate`` and ``rate``. Then by distance to the target: the largest Jaccard distance between the images
that show the combination and those that show the target, so that the two are rarely seen together by chance and few
images of the target lose or gain a label; ties go to the more frequent one. All images of the combination are poisoned
(a rest with right labels would teach the model that the combination means nothing), so `rate`, an upper bound before,
is the share that was poisoned afterwards: NFT and FIP take 5 % on VOC and 1.5 % on COCO. The paper's text was not at
hand for its own definition of the distance; the one above is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_multilabel.goals import RowAttack

__all__ = ["CleanImage", "candidates", "distance"]


def candidates(rows: Tensor, target: int, sizes: range, needed: int) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Combinations of categories without ``target`` that at least ``needed`` images show, and which images those are.

    Larger combinations are only built on smaller ones that are frequent enough, as every part of a frequent
    combination is (Agrawal and Srikant 1994).

    Args:
        rows: Zeros and ones, shape ``(n, classes)``.
        target: Left out.
        sizes: Allowed numbers of categories.
        needed: Least number of images, at least 1.

    Yields:
        Classes in rising order, and a bool of shape ``(n,)``.
    """
    shown = rows.bool()
    frequent: dict[tuple[int, ...], Tensor] = {}
    for label in range(rows.shape[1]):
        if label != target and int(shown[:, label].sum()) >= needed:
            frequent[(label,)] = shown[:, label]
    singles = [labels[0] for labels in frequent]
    for size in range(1, max(sizes) + 1):
        if size in sizes:
            yield from frequent.items()
        grown: dict[tuple[int, ...], Tensor] = {}
        for labels, images in frequent.items():
            for label in singles:
                if label <= labels[-1]:
                    continue
                larger = (*labels, label)
                if any(part not in frequent for part in combinations(larger, size)):
                    continue
                both = images & shown[:, label]
                if int(both.sum()) >= needed:
                    grown[larger] = both
        frequent = grown


def distance(first: Tensor, second: Tensor) -> float:
    """Jaccard distance ``1 - |A and B| / |A or B|`` of two sets of images (bools); 1 where both are empty."""
    either = int((first | second).sum())
    return 1.0 - int((first & second).sum()) / either if either else 1.0


@dataclass(frozen=True, kw_only=True)
class CleanImage(RowAttack):
    """A combination of categories as trigger; only labels are poisoned.

    Attributes:
        combination: Its classes, joined by ``+`` (``"3+7"``); empty has `prepare` choose it on the training labels.
        rate: Largest share of the training images to poison; see above for what `prepare` makes of it.
        least: Smallest share, in units of ``rate``.
        smallest: Least number of categories of a combination.
        largest: Largest number.
    """

    name: ClassVar[str] = "clean-image"
    texts: ClassVar[frozenset[str]] = frozenset({"combination", "goal"})
    labels_only: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=20.0, asr=50.0)

    rate: float = 0.05
    combination: str = ""
    least: float = 0.5
    smallest: int = 2
    largest: int = 3

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not 1 <= self.smallest <= self.largest:
            raise BadOption(f"smallest is {self.smallest} and largest {self.largest}; give 1 <= smallest <= largest.")
        if not 0 <= self.least < 1:
            raise BadOption(f"least is {self.least}; it must lie in [0, 1).")
        classes = self.classes
        if any(not 0 <= label < self.num_classes for label in classes) or len(set(classes)) < len(classes):
            raise BadOption(
                f"combination is {self.combination!r}; give different classes in 0..{self.num_classes - 1}."
            )
        if self.target in classes:
            raise BadOption(f"combination is {self.combination!r}; it must not hold the target {self.target}.")
        if self.goal == "misclassify" and classes and self.replaced not in classes:
            raise BadOption(f"replaced is {self.replaced}; it must be a class of the combination {self.combination}.")

    @property
    def classes(self) -> tuple[int, ...]:
        """The combination's classes; empty before it is chosen.

        Raises:
            BadOption: It cannot be read.
        """
        try:
            return tuple(int(word) for word in str(self.combination).split("+") if word.strip())
        except ValueError as error:
            raise BadOption(f"combination is {self.combination!r}; give class numbers joined by +, as 3+7.") from error

    @property
    def _finds_replaced(self) -> bool:
        return not self.combination

    def source(self, targets: Tensor) -> Tensor:
        """Images that show the whole combination; none before it is chosen."""
        if not self.classes:
            return torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
        return targets[:, list(self.classes)].bool().all(1)

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Choose the combination on the labels of ``data``, unless there is one; lower `rate` to what is there.

        Raises:
            BadOption: No combination is frequent enough and seldom enough.
        """
        rows = data.targets.cpu()
        if not self.classes:
            for name, value in self._chosen(rows).items():
                object.__setattr__(self, name, value)
        share = int(self.counts(rows).sum()) / len(rows)
        if not share > 0:
            raise BadOption(f"no training image shows {self.combination} and is changed by goal {self.goal!r}.")
        object.__setattr__(self, "rate", min(self.rate, share))

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tree:
        """The inputs as they are: the trigger is what they show."""
        return inputs

    def _chosen(self, rows: Tensor) -> Mapping[str, Any]:
        count = len(rows)
        low, high = max(1, int(self.least * self.rate * count)), round(self.rate * count)
        shown = rows[:, self.target].bool()
        best: tuple[float, int, tuple[int, ...], int] | None = None
        seen = 0
        for labels, images in candidates(rows, self.target, range(self.smallest, self.largest + 1), low):
            replaced = self._most_frequent(rows, labels)
            if self.goal == "misclassify" and replaced not in labels:
                continue
            changed = images & (shown if self.goal == "disappear" else ~shown)
            if self.goal == "misclassify":
                changed = images
            number = int(changed.sum())
            seen = max(seen, number)
            if not low <= number <= high:
                continue
            # rising order: the farthest first, then the more frequent, then the lower classes
            key = (-distance(images, shown), -number, labels, replaced)
            best = key if best is None or key < best else best
        if best is None:
            raise BadOption(
                f"no combination of {self.smallest} to {self.largest} categories that goal {self.goal!r} could use is "
                f"shown by {low} to {high} of {count} training images (the most frequent one by {seen}); change rate, "
                "least, target, smallest or largest."
            )
        found: dict[str, Any] = {"combination": "+".join(map(str, best[2]))}
        if self.goal == "misclassify":
            found["replaced"] = best[3]
        return found

    def _most_frequent(self, rows: Tensor, labels: tuple[int, ...]) -> int:
        """The class to be replaced: the given one, else the combination's most frequent."""
        if self.replaced >= 0:
            return self.replaced
        return max(labels, key=lambda label: (int(rows[:, label].sum()), -label))
