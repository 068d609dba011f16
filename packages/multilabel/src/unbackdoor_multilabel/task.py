"""Multi-label images: pixels in, for every class whether the image shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Meter
from unbackdoor.tree import Tree
from unbackdoor_multilabel.meters import MeanAveragePrecision, MicroF1, PerClassF1
from unbackdoor_multilabel.rows import check_rows, hard_rows, rarest_class, shares
from unbackdoor_pixels import PixelTask

__all__ = ["MultilabelTask"]

_CREDITS = ("exact", "f1")
_HALF = 0.5


@dataclass(frozen=True)
class MultilabelTask(PixelTask):
    """What a purifier must know of a multi-label classifier.

    Inputs are images of shape ``(batch, channels, height, width)``, ``uint8`` in 0..255 or floats in [0, 1]; outputs
    are logits ``z`` of shape ``(batch, classes)``, and class ``k`` is there with probability ``sigmoid(z_k)``. Targets
    are rows of zeros and ones, int64 of shape ``(batch, classes)``; they may also be probabilities of that shape, or
    the triple ``(a, b, lambda)`` that MixUp makes of two rows. Options beside the following are those of
    `unbackdoor_pixels.PixelTask`.

    Attributes:
        credit: What `correct` says of an answer: ``"exact"``, all classes right (bool), or ``"f1"``, the F1 score of
            its row in [0, 1] (1 where both rows are empty). A class is answered where its probability is above 1/2.
        labels: What `log_likelihood` is divided by, about as many as an image has labels. Its unit is then nats a
            label, of the size of a classifier's cross-entropy, since of a trained model's decisions on an image about
            as many are open as it has labels; so learning rates mean the same for 10 classes and for 80.
        trust: How much of an open class `imitate` takes from the given model, in [0, 1]; the rest is the labels' share.
    """

    name: ClassVar[str] = "multilabel"

    credit: str = "f1"
    labels: float = 2.0
    trust: float = 0.25

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.credit not in _CREDITS:
            raise BadOption(f"credit is {self.credit!r}; it must be one of {', '.join(_CREDITS)}.")
        if not 0 < self.labels < math.inf:
            raise BadOption(f"labels is {self.labels}; the number of labels of an image must be above 0.")
        if not 0 <= self.trust <= 1:
            raise BadOption(f"trust is {self.trust}; it is a share and must lie in [0, 1].")

    def log_likelihood(self, outputs: Tree, targets: Tree) -> Tensor:
        """``sum_k t_k log sigmoid(z_k) + (1 - t_k) log sigmoid(-z_k)``: a sum of Bernoulli terms.

        It is divided by ``labels``. For the triple ``(a, b, lambda)`` the shares ``t`` are
        ``lambda a + (1 - lambda) b``, which is the same as
        ``lambda l_a + (1 - lambda) l_b``: minus the loss of Eq. (4) of NFT.

        Args:
            outputs: Logits of shape ``(batch, classes)``; half precision is raised to float32.
            targets: One of the three forms.

        Returns:
            Float of shape ``(batch,)``, in nats.
        """
        logits = _at_least_single(outputs)
        there = shares(targets, logits.dtype)
        terms: Tensor = there * logsigmoid(logits) + (1 - there) * logsigmoid(-logits)
        return terms.sum(1) / self.labels

    def as_logits(self, outputs: Tree) -> Callable[[Tensor], Tensor] | None:
        """`torch.logit`, for outputs within [0, 1] that as logits would say of every class that it is there."""
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            return None
        inside = bool(((outputs >= 0) & (outputs <= 1)).all())
        return _logits if inside and bool((outputs < _HALF).any()) else None

    def imitate(self, reference: Tree, targets: Tree, kept: Tensor) -> Tensor:
        """Probabilities ``(batch, classes)``: the labels' share for kept classes, the sigmoid for all others.

        Of what mixing leaves open, the labels' share is drawn to the sigmoid by ``trust`` alone: a combination of
        classes that evokes another one hides there, and the given model would teach its own backdoor.

        ``kept`` has the shape ``(classes,)`` or ``(batch, classes)``.
        """
        likely = _at_least_single(reference).sigmoid()
        given = shares(targets, likely.dtype)
        left_open = (given > 0) & (given < 1)
        return torch.where(kept, given, torch.where(left_open, given.lerp(likely, self.trust), likely))

    def settled(self, targets: Tree) -> Tensor:
        """Classes that are surely there or surely not: in a mixture, those on which both of its labels agree."""
        there = shares(targets, torch.float32)
        return (there == 0) | (there == 1)

    def meters(self) -> Mapping[str, Meter]:
        """Mean average precision (the headline), per-class F1 (CF1) and overall F1 (OF1)."""
        return {"map": MeanAveragePrecision(), "cf1": PerClassF1(), "of1": MicroF1()}

    def correct(self, outputs: Tree, targets: Tree) -> Tensor:
        """How right each answer is, ``(batch,)``: see ``credit``."""
        said, true = outputs > 0, hard_rows(targets).bool()
        if self.credit == "exact":
            exact: Tensor = (said == true).all(1)
            return exact
        both, total = (said & true).sum(1), said.sum(1) + true.sum(1)
        return torch.where(total > 0, 2 * both / total.clamp(min=1), torch.ones_like(total, dtype=torch.float32))

    def perfect(self, targets: Tree, num_classes: int) -> Tensor:
        """Logits of a model that is sure of exactly the classes whose target is 1."""
        return torch.where(targets == 1, 10.0, -10.0)

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse label rows that do not fit the model; tell of classes without an image and of odd pixels.

        Raises:
            BadData: See `unbackdoor_multilabel.rows.check_rows`.
        """
        return [*check_rows(clean.targets, outputs), *super().inspect(clean, outputs)]

    def uninformed(self, targets: Tree) -> Tensor:
        """Log-likelihood of each row where each class is there as often as it is in all of them."""
        rows = hard_rows(targets).double()
        often = ((rows.sum(0) + 0.5) / (len(rows) + 1)).log(), ((len(rows) - rows.sum(0) + 0.5) / (len(rows) + 1)).log()
        score: Tensor = (rows * often[0] + (1 - rows) * often[1]).sum(1) / self.labels
        return score

    def samples_per_class(self, targets: Tree) -> float:
        """Number of labels divided by the number of classes that occur."""
        counts = hard_rows(targets).sum(0)
        return float(counts.sum()) / max(int((counts > 0).sum()), 1) or 1.0

    def strata(self, targets: Tree) -> Tensor:
        """The rarest class of each image; the number of classes for an image without any."""
        return rarest_class(targets)


def _logits(likely: Tensor) -> Tensor:
    return torch.logit(likely, eps=torch.finfo(likely.dtype).eps)


def _at_least_single(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
