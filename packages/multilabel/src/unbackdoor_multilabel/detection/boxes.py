"""Boxes as padded rows, how answers match them, and average precision at an overlap of 1/2."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unbackdoor.errors import BadData
from unbackdoor_multilabel.meters import average_precision

__all__ = ["OVERLAP", "AveragePrecisionOfBoxes", "matches", "pad_boxes", "unpad_boxes"]

OVERLAP = 0.5


def pad_boxes(targets: Sequence[Mapping[str, Tensor]], rows: int | None = None) -> Tensor:
    """Boxes of several images as one tensor.

    Args:
        targets: For each image ``boxes``, floats ``(m, 4)`` as x1, y1, x2, y2 in pixels, and ``labels``, int64 ``(m,)``
            from 1 (0 is the background), as torchvision's detectors take them.
        rows: Rows of the result; None takes the largest ``m``.

    Returns:
        Float32 of shape ``(n, rows, 5)``: x1, y1, x2, y2, label. Rows of label 0 are padding.

    Raises:
        BadData: A label is below 1, or an image has more boxes than rows.
    """
    most = max((len(one["boxes"]) for one in targets), default=0)
    rows = max(most, 1) if rows is None else rows
    if most > rows:
        raise BadData(f"an image has {most} boxes, more than the {rows} rows asked for.")
    out = torch.zeros(len(targets), rows, 5)
    for place, one in enumerate(targets):
        labels = one["labels"]
        if len(labels) and int(labels.min()) < 1:
            raise BadData(
                f"image {place} has a box of label {int(labels.min())}; classes count from 1, 0 is background."
            )
        out[place, : len(labels), :4] = one["boxes"].float()
        out[place, : len(labels), 4] = labels.float()
    return out


def unpad_boxes(rows: Tensor) -> list[dict[str, Tensor]]:
    """The inverse of `pad_boxes`, on the device of ``rows``."""
    return [{"boxes": one[one[:, 4] > 0, :4], "labels": one[one[:, 4] > 0, 4].long()} for one in rows]


def matches(boxes: Tensor, labels: Tensor, truth: Tensor, true_labels: Tensor) -> Tensor:
    """Which answers find an object: each object is found once, by the first answer of its class that overlaps enough.

    An answer is compared with the object of its class that it overlaps most, as in the VOC devkit, whether or not that
    one is found already.

    Args:
        boxes: Answers by falling score, ``(d, 4)``.
        labels: Their classes, ``(d,)``.
        truth: Objects, ``(m, 4)``.
        true_labels: Their classes, ``(m,)``.

    Returns:
        Bool of shape ``(d,)``.
    """
    found = torch.zeros(len(boxes), dtype=torch.bool)
    if len(boxes) == 0 or len(truth) == 0:
        return found
    overlap = importlib.import_module("torchvision.ops").box_iou(boxes.float(), truth.float()).cpu()
    overlap = torch.where(labels.cpu()[:, None] == true_labels.cpu()[None, :], overlap, torch.zeros_like(overlap))
    taken = torch.zeros(len(truth), dtype=torch.bool)
    for place, row in enumerate(overlap):
        best = int(row.argmax())
        if float(row[best]) >= OVERLAP and not bool(taken[best]):
            found[place], taken[best] = True, True
    return found


class AveragePrecisionOfBoxes:
    """Mean over classes of average precision at an overlap of 1/2, over the classes that at least one image shows.

    The area under precision and recall without interpolation (VOC since 2010 interpolates, which is never less).
    """

    def __init__(self) -> None:
        """Start at no image."""
        self._scores: dict[int, list[Tensor]] = {}
        self._found: dict[int, list[Tensor]] = {}
        self._objects: dict[int, int] = {}

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Take in answers as `DetectionTask.predict` gives them, and padded boxes."""
        for place, truth in enumerate(unpad_boxes(targets.cpu())):
            kept = outputs["labels"][place] > 0
            boxes, scores, labels = (outputs[name][place][kept].cpu() for name in ("boxes", "scores", "labels"))
            order = scores.argsort(descending=True, stable=True)
            found = matches(boxes[order], labels[order], truth["boxes"], truth["labels"])
            for label in truth["labels"].tolist():
                self._objects[label] = self._objects.get(label, 0) + 1
            for label in labels.unique().tolist():
                own = labels[order] == label
                self._scores.setdefault(label, []).append(scores[order][own])
                self._found.setdefault(label, []).append(found[own])

    def by_class(self) -> dict[int, float]:
        """Average precision of each class that is shown, by label."""
        result = {}
        for label, objects in sorted(self._objects.items()):
            if label not in self._scores:
                result[label] = 0.0
                continue
            scores, found = torch.cat(self._scores[label]), torch.cat(self._found[label])
            # objects that no answer finds lower the recall: the area counts found ones alone, so it is scaled
            share = float(found.sum()) / objects
            result[label] = share * float(average_precision(scores[:, None], found[:, None])[0]) if share else 0.0
        return result

    def compute(self) -> float:
        """The mean, 0 to 1; NaN where no object was shown."""
        values = list(self.by_class().values())
        return sum(values) / len(values) if values else float("nan")
