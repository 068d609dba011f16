"""Detection: pixels in, boxes out, with the detector's own losses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.builders import seeded
from unbackdoor.errors import BadData, BadOption, UnsupportedModel
from unbackdoor.mixing import beta
from unbackdoor.task import Batch, Meter, Task
from unbackdoor.tree import Tree
from unbackdoor_multilabel.detection.boxes import AveragePrecisionOfBoxes, matches, pad_boxes, unpad_boxes
from unbackdoor_pixels import as_floats
from unbackdoor_pixels.strong import strong

__all__ = ["DetectionTask", "detection_batch"]

_ANSWER = ("boxes", "scores", "labels")


def detection_batch(images: Tensor, targets: Sequence[Mapping[str, Tensor]], rows: int | None = None) -> Batch:
    """Samples of `DetectionTask` from images of one size and torchvision's target dictionaries.

    Args:
        images: Shape ``(n, channels, height, width)``, ``uint8`` or floats in [0, 1].
        targets: ``boxes`` and ``labels`` of each image, see `pad_boxes`.
        rows: See `pad_boxes`.
    """
    boxes = pad_boxes(targets, rows)
    return Batch({"images": images, "boxes": boxes}, boxes)


@dataclass(frozen=True)
class DetectionTask(Task):
    """What a purifier must know of an object detector with torchvision's interface: SSD, RetinaNet, Faster R-CNN, ...

    A detector computes its loss inside: ``model(images, targets)`` gives a dictionary of losses in train mode, and
    ``model(images)`` one of boxes for each image in eval mode. So the inputs hold the true boxes beside the images,
    ``{"images": (n, channels, height, width), "boxes": (n, m, 5)}``, as a translator's hold the true prefix; targets
    are the same boxes. `detection_batch` makes both. Labels alone are used (there is no self-distillation of boxes).

    The losses are taken image by image with the detector's flags set to train, but normalisation, dropout and
    everything inside ``model.backbone`` as they are found, so that images do not mix and the running statistics stay.
    Anchors and proposals that a detector samples at random are drawn from one seed for every image. A model that is in
    train mode, as while a victim is trained, gets whole batches instead, and every image the mean loss of its batch.

    Faster R-CNN's RoI pooling has no second derivative: purify it with ``trace_weight=0`` or with ``nft``.

    Attributes:
        answers: Largest number of boxes in an answer of `predict`.
        threshold: Score above which a box counts in `correct`.
        brightness: `augment` scales the pixels of an image by up to so much, either way.
    """

    name: ClassVar[str] = "detection"

    answers: int = 100
    threshold: float = 0.5
    brightness: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.answers < 1:
            raise BadOption(f"answers is {self.answers}; it must be at least 1.")
        for name in ("threshold", "brightness"):
            if not 0 <= getattr(self, name) < 1:
                raise BadOption(f"{name} is {getattr(self, name)}; it must lie in [0, 1).")

    def forward(self, model: nn.Module, inputs: Tree) -> dict[str, Tensor]:
        """``{"loss": (batch,)}``: the sum of the detector's losses on each image.

        ``inputs`` may be the triple ``(a, b, lambda)`` of MixUp: then the images are mixed, and the loss is ``lambda``
        times that against the boxes of ``a`` and ``1 - lambda`` times that against those of ``b``.

        Raises:
            BadData: The inputs are not of the form above.
            UnsupportedModel: The model gives no dictionary of losses.
        """
        if isinstance(inputs, tuple | list):
            first, second, share = inputs
            weight = share.view(-1, 1, 1, 1)
            mixed = weight * self._images(model, first) + (1 - weight) * self._images(model, second)
            one, other = (self._losses(model, mixed, side["boxes"]) for side in (first, second))
            return {"loss": share * one + (1 - share) * other}
        return {"loss": self._losses(model, self._images(model, inputs), _boxes(inputs))}

    def log_likelihood(self, outputs: Tree, targets: Tree) -> Tensor:
        """Minus the loss of each image, which the detector has already taken against the boxes in its inputs."""
        scores: Tensor = -outputs["loss"]
        return scores

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """Brighter or darker images; with ``mix > 0`` also MixUp, inputs and targets becoming ``(a, b, lambda)``.

        Raises:
            BadOption: ``mix`` is negative.
        """
        if mix < 0:
            raise BadOption(f"mix is {mix}; the parameter of the Beta distribution must be at least 0 (0: no MixUp).")
        images: Tensor = batch.inputs["images"]
        count, device = len(images), images.device
        draws = torch.rand(count, generator=generator, device=generator.device).to(device)
        factor = (1 + self.brightness * (2 * draws - 1)).view(-1, 1, 1, 1)
        top = 1.0 if images.is_floating_point() else 255.0
        changed = (images * factor).clamp(0, top)
        changed = changed.to(images.dtype) if images.is_floating_point() else changed.round().to(images.dtype)
        inputs = {**batch.inputs, "images": changed}
        if mix == 0:
            return Batch(inputs, batch.targets)
        partners = torch.randperm(count, generator=generator, device=generator.device).to(device)
        share = beta(mix, count, generator).to(device, torch.float32)
        other = {name: value[partners] for name, value in inputs.items()}
        return Batch((inputs, other, share), (batch.targets, batch.targets[partners], share))

    def strong_augment(self, inputs: Tree, generator: torch.Generator, *, without: Collection[str] = ()) -> Tree:
        """Images as in `unbackdoor_pixels.strong`, but for what would move or hide their objects."""
        if isinstance(inputs, tuple | list):
            first, second, share = inputs
            return (*(self.strong_augment(one, generator, without=without) for one in (first, second)), share)
        images = as_floats(inputs["images"])
        return {**inputs, "images": strong(images, generator, without={*without, "geometry", "patch"})}

    def predict(self, model: nn.Module, inputs: Tree) -> dict[str, Tensor]:
        """The boxes that the model finds, the surest first, padded to ``answers`` rows with label 0.

        Returns:
            ``boxes`` ``(batch, answers, 4)``, ``scores`` ``(batch, answers)`` and ``labels``, int64 of that shape.
        """
        images = self._images(model, inputs)
        with _flags(model, False), torch.no_grad():
            found = self.detector_answers(model, list(images))
        out = {
            "boxes": torch.zeros(len(images), self.answers, 4, device=images.device, dtype=images.dtype),
            "scores": torch.zeros(len(images), self.answers, device=images.device, dtype=images.dtype),
            "labels": torch.zeros(len(images), self.answers, device=images.device, dtype=torch.int64),
        }
        for place, one in enumerate(found):
            order = one["scores"].argsort(descending=True, stable=True)[: self.answers]
            for name in _ANSWER:
                out[name][place, : len(order)] = one[name][order].to(out[name].dtype)
        return out

    def meters(self) -> Mapping[str, Meter]:
        """Mean average precision at an overlap of 1/2."""
        return {"map50": AveragePrecisionOfBoxes()}

    def correct(self, outputs: Tree, targets: Tree) -> Tensor:
        """F1 of the boxes above ``threshold`` in each image, float32 of shape ``(batch,)``; 1 where there are none."""
        rows = targets[0] if isinstance(targets, tuple | list) else targets
        values = []
        for place, truth in enumerate(unpad_boxes(rows)):
            kept = (outputs["labels"][place] > 0) & (outputs["scores"][place] > self.threshold)
            boxes, labels = outputs["boxes"][place][kept], outputs["labels"][place][kept]
            hits = int(matches(boxes, labels, truth["boxes"], truth["labels"]).sum())
            total = len(boxes) + len(truth["boxes"])
            values.append(2 * hits / total if total else 1.0)
        return torch.tensor(values)

    def perfect(self, targets: Tree, num_classes: int) -> dict[str, Tensor]:
        """What `predict` gives where the model finds exactly ``targets``."""
        labels = targets[..., 4].long()
        return {"boxes": targets[..., :4], "scores": (labels > 0).float(), "labels": labels}

    def perturbable(self, inputs: Tree) -> Tensor:
        """The pixels as floats in [0, 1]."""
        return as_floats(inputs["images"])

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse samples of another form, and boxes without an area; tell of pixels and boxes out of range.

        Raises:
            BadData: See above.
        """
        boxes = _boxes(clean.inputs)
        if not isinstance(clean.targets, Tensor) or not torch.equal(clean.targets, boxes):
            raise BadData("targets must be the boxes that the inputs hold; make samples with detection_batch.")
        real = boxes[boxes[..., 4] > 0]
        if len(real) == 0:
            raise BadData("no clean image has a box; a detector cannot be tuned on empty images alone.")
        if not bool((real[:, 2:4] > real[:, :2]).all()):
            raise BadData("boxes must have x2 > x1 and y2 > y1; check the order of their numbers.")
        if float(real[:, :4].max()) <= 1:
            raise BadData("boxes lie within 0 to 1, so they are shares of an image; multiply by its width and height.")
        empty = int((boxes[..., 4] == 0).all(1).sum())
        notices = [f"{empty} of {len(boxes)} clean images have no box."] if empty else []
        return notices + _out_of_range(clean.inputs["images"], real)

    def uninformed(self, targets: Tree) -> None:
        """Nothing, so that whether a detector is at chance is not asked.

        Its losses are its own: how dear an empty answer is depends on its anchors, on how it samples them and on the
        weights between its losses, and no guess without the image can be scored in their unit. For the same reason no
        other `readings` are tried. What can be told of samples that are read wrongly, `inspect` tells.
        """

    def samples_per_class(self, targets: Tree) -> float:
        """Number of boxes divided by the number of classes that occur."""
        labels = targets[..., 4][targets[..., 4] > 0]
        return max(len(labels), 1) / max(len(labels.unique()), 1)

    def strata(self, targets: Tree) -> Tensor:
        """The highest label of each image; 0 for one without boxes."""
        highest: Tensor = targets[..., 4].amax(1).long()
        return highest

    def detector_losses(
        self, model: nn.Module, images: Sequence[Tensor], truths: Sequence[Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """What the detector calls its losses; another interface than torchvision's overrides this.

        Args:
            model: With its own train flags on.
            images: Floats in [0, 1], ``(channels, height, width)`` each.
            truths: ``boxes`` and ``labels`` (from 1) of each.

        Raises:
            UnsupportedModel: It gives no dictionary of losses.
        """
        losses: Any = model(images, truths)
        if not isinstance(losses, Mapping) or not losses:
            raise UnsupportedModel(
                f"{type(model).__name__} gave a {type(losses).__name__} in train mode; a detector gives a dictionary "
                "of losses."
            )
        return losses

    def detector_answers(self, model: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """``boxes``, ``scores`` and ``labels`` of each image; another interface overrides this.

        Raises:
            UnsupportedModel: It gives something else.
        """
        found: Any = model(images)
        if not isinstance(found, list) or not all(
            isinstance(one, Mapping) and set(_ANSWER) <= set(one) for one in found
        ):
            raise UnsupportedModel(
                f"{type(model).__name__} gave a {type(found).__name__} in eval mode; a detector gives a list of "
                "dictionaries with boxes, scores and labels, one for each image."
            )
        return found

    def _images(self, model: nn.Module, inputs: Any) -> Tensor:
        if not isinstance(inputs, Mapping) or "images" not in inputs:
            raise BadData(
                f"inputs are a {type(inputs).__name__}; give {{'images': ..., 'boxes': ...}}, see detection_batch."
            )
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        return as_floats(inputs["images"], dtype).to(dtype)

    def _losses(self, model: nn.Module, images: Tensor, boxes: Tensor) -> Tensor:
        truths = [{**one, "boxes": one["boxes"].to(images.dtype)} for one in unpad_boxes(boxes)]
        if model.training:
            return _total(self.detector_losses(model, list(images), truths)).expand(len(images))
        with _flags(model, True):
            found = []
            for image, truth in zip(images, truths, strict=True):
                with seeded(0, image.device):
                    found.append(_total(self.detector_losses(model, [image], [truth])))
        return torch.stack(found)


def _boxes(inputs: Any) -> Tensor:
    found = inputs.get("boxes") if isinstance(inputs, Mapping) else None
    if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[2] != 5:
        raise BadData("inputs hold no boxes of shape (n, m, 5); make samples with detection_batch.")
    return found


def _out_of_range(images: Tensor, boxes: Tensor) -> list[str]:
    """Notices on boxes that leave their image, and on pixels that a detector does not expect."""
    height, width = images.shape[-2:]
    sides = torch.tensor([width, height], device=boxes.device) + 1
    beyond = int(((boxes[:, 2:4] > sides).any(1) | (boxes[:, :2] < -1).any(1)).sum())
    notices = []
    if beyond:
        notices.append(
            f"{beyond} of {len(boxes)} boxes reach beyond their image of {width} x {height} pixels; they must be x1, "
            "y1, x2, y2 in pixels of the image as it is given."
        )
    if images.is_floating_point() and not -1e-3 <= float(images.amin()) <= float(images.amax()) <= 1 + 1e-3:
        low, high = float(images.amin()), float(images.amax())
        notices.append(
            f"pixels range from {low:.2f} to {high:.2f}, not within 0 to 1; detectors normalise them themselves and "
            "expect that range."
        )
    return notices


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.sum() for value in losses.values()]).sum()


@contextmanager
def _flags(model: nn.Module, training: bool) -> Iterator[None]:
    """The train flag of the detector's own parts inside; leaves (norms, dropout) and the backbone keep theirs."""
    backbone = getattr(model, "backbone", None)
    inside = set(backbone.modules()) if isinstance(backbone, nn.Module) else set()
    parts = [m for m in model.modules() if m not in inside and (m is model or any(True for _ in m.children()))]
    before = [part.training for part in parts]
    for part in parts:
        part.training = training
    try:
        yield
    finally:
        for part, flag in zip(parts, before, strict=True):
            part.training = flag
