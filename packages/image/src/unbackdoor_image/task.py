"""Image classification: pixels in, one class out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch, Meter, Task
from unbackdoor.tree import Tree, leaves
from unbackdoor_image.augment import beta, mix_images, random_geometry
from unbackdoor_image.labels import check_labels
from unbackdoor_image.meters import Accuracy

__all__ = ["ImageTask", "as_floats"]


def as_floats(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1]: ``uint8`` images are divided by 255, floating-point ones stay as they are."""
    return images if images.is_floating_point() else images.to(dtype) / 255


@dataclass(frozen=True)
class ImageTask(Task):
    """What a purifier must know of an image classifier.

    Inputs are images of shape ``(batch, channels, height, width)``, ``uint8`` in 0..255 or floats in [0, 1]; targets
    are class indices, int64 of shape ``(batch,)``. Targets may also be probabilities of shape ``(batch, classes)``, or
    the triple ``(a, b, lambda)`` that MixUp makes: two class indices and the share of the first.

    Attributes:
        mean: Subtracted from each channel inside `forward`; give what the model was trained with, or None.
        std: Divides each channel inside `forward`; goes with ``mean``.
        crop: Largest random shift of `augment` in pixels; None means one eighth of the shorter side, and no shift
            below 16 pixels, where a single one is a large share of the object.
        flip: Whether `augment` may mirror images; leave it off for digits and traffic signs.
        mixup_per_sample: Whether MixUp draws one lambda for each sample or, as the authors' code, one for the batch.
    """

    name: ClassVar[str] = "image"

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: int | None = None
    flip: bool = False
    mixup_per_sample: bool = True

    def __post_init__(self) -> None:
        """Refuse a mean without std, zero std and negative shifts."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, tuple(float(value) for value in values))
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise BadOption(f"mean is {self.mean} and std is {self.std}; give both, a value for each channel, or none.")
        if self.std is not None and min(self.std) <= 0:
            raise BadOption(f"std is {self.std}; every value must be above 0.")
        if self.crop is not None and self.crop < 0:
            raise BadOption(f"crop is {self.crop}; the largest shift in pixels must be at least 0.")

    def forward(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Logits of shape ``(batch, classes)`` for pixels in [0, 1] or 0..255.

        The logits are picked out of dictionaries, Hugging Face outputs and the tuples of Inception and GoogLeNet.

        Raises:
            BadData: The inputs are not one tensor of images, or ``mean`` has not their number of channels.
        """
        parameter = next(model.parameters(), None)
        dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else torch.float32
        images = as_floats(_images(inputs), dtype)
        if self.mean is not None and self.std is not None:
            if len(self.mean) != images.shape[1]:
                raise BadData(f"images have {images.shape[1]} channels, but mean and std have {len(self.mean)} values.")
            images = (images - _per_channel(self.mean, images)) / _per_channel(self.std, images)
        logits: Tensor = _logits(model(images))
        return logits

    def log_likelihood(self, outputs: Tree, targets: Tree) -> Tensor:
        """``log softmax(z)_y`` for class indices, ``sum_k t_k log softmax(z)_k`` for probabilities.

        For the triple ``(a, b, lambda)`` it is ``lambda * l_a + (1 - lambda) * l_b``: minus the loss of Eq. (4) of NFT.

        Args:
            outputs: Logits of shape ``(batch, classes)``; half precision is raised to float32.
            targets: One of the three forms.

        Returns:
            Float of shape ``(batch,)``.
        """
        logs = _log_softmax(outputs)
        if isinstance(targets, tuple | list):
            first, second, share = targets
            share = share.to(logs.dtype)
            mixed: Tensor = share * _at(logs, first) + (1 - share) * _at(logs, second)
            return mixed
        if targets.is_floating_point():
            expected: Tensor = targets.to(logs.dtype) * logs
            return expected.sum(dim=1)
        return _at(logs, targets)

    def evoked(self, outputs: Tree, targets: Tree) -> Tensor:
        """Mean softmax of each class over the samples, 0 where a sample's label names it: shape ``(classes,)``."""
        likely = _log_softmax(outputs).exp()
        return torch.where(_shares(targets, likely) > 0, 0.0, likely).mean(dim=0)

    def imitate(self, reference: Tree, targets: Tree, suspects: Tensor) -> Tensor:
        """Probabilities ``(batch, classes)``: the labels' share for suspects, the softmax for the rest of it."""
        shares = _shares(targets, likely := _log_softmax(reference).exp())
        trusted = torch.where(suspects, 0.0, likely)
        total = trusted.sum(dim=1, keepdim=True)
        rest = torch.where(suspects, 0.0, shares).sum(dim=1, keepdim=True)
        tiny = torch.finfo(likely.dtype).tiny
        soft = torch.where(suspects, shares, trusted / total.clamp(min=tiny) * rest)
        return torch.where(total > 0, soft, shares)

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """Random crop of the zero-padded image, a flip if on, then MixUp with ``lambda ~ Beta(mix, mix)``.

        Shapes, dtype and device of the images stay; ``mix=0`` leaves the targets as they are, else they
        become the triple ``(a, b, lambda)``.

        Raises:
            BadOption: ``mix`` is negative.
        """
        if mix < 0:
            raise BadOption(f"mix is {mix}; the parameter of the Beta distribution must be at least 0 (0: no MixUp).")
        images = _images(batch.inputs)
        crop = _default_crop(images) if self.crop is None else self.crop
        images = random_geometry(images, generator, crop=crop, flip=self.flip)
        if mix == 0:
            return Batch(images, batch.targets)
        count, device = len(images), images.device
        partners = torch.randperm(count, generator=generator, device=generator.device).to(device)
        share = beta(mix, count if self.mixup_per_sample else 1, generator).expand(count).contiguous()
        share = share.to(device, images.dtype if images.is_floating_point() else torch.float32)
        return Batch(mix_images(images, partners, share), (batch.targets, batch.targets[partners], share))

    def meters(self) -> Mapping[str, Meter]:
        """Accuracy over all samples."""
        return {"accuracy": Accuracy()}

    def correct(self, outputs: Tree, targets: Tree) -> Tensor:
        """Whether the largest logit is that of the class: bool of shape ``(batch,)``."""
        answers: Tensor = outputs.argmax(dim=1)
        return answers == _classes(targets)

    def perturbable(self, inputs: Tree) -> Tensor:
        """The pixels as floats in [0, 1]."""
        return as_floats(_images(inputs))

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse labels that do not fit the model; tell of missing classes and of pixels beyond [0, 1].

        Raises:
            BadData: See `unbackdoor_image.labels.check_labels`.
        """
        notices = check_labels(clean.targets, outputs)
        images = _images(clean.inputs)
        if images.is_floating_point():
            low, high = float(images.amin()), float(images.amax())
            if low < -1e-3 or high > 1 + 1e-3:
                notices.append(
                    f"pixels range from {low:.2f} to {high:.2f}, not within 0 to 1. Right for a model that wants them "
                    "normalised beforehand; methods that search in pixel space work better with plain pixels and "
                    "ImageTask(mean=..., std=...)."
                )
        return notices

    def samples_per_class(self, targets: Tree) -> float:
        """Number of samples divided by the number of classes that occur."""
        classes = _classes(targets)
        return len(classes) / len(torch.unique(classes))

    def strata(self, targets: Tree) -> Tensor:
        """The classes themselves: a split keeps their proportions."""
        return _classes(targets)


def _default_crop(images: Tensor) -> int:
    side = min(images.shape[-2:])
    return side // 8 if side >= 16 else 0


def _images(inputs: Any) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        found = leaves(inputs)
        given = " and ".join(str(tuple(leaf.shape)) for leaf in found[:3]) or type(inputs).__name__
        raise BadData(f"inputs are {given}; give images as one tensor of shape (batch, channels, height, width).")
    if not inputs.is_floating_point() and inputs.dtype is not torch.uint8:
        raise BadData(f"images are {inputs.dtype}; give uint8 in 0..255 or floats in [0, 1].")
    return inputs


def _logits(answer: Any) -> Any:
    if isinstance(answer, Mapping) and "logits" in answer:
        return answer["logits"]
    if isinstance(getattr(answer, "logits", None), Tensor):
        return answer.logits
    if isinstance(answer, tuple | list) and answer and isinstance(answer[0], Tensor):
        return answer[0]
    return answer


def _log_softmax(logits: Tensor) -> Tensor:
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return (logits.float() if half else logits).log_softmax(dim=1)


def _shares(targets: Tree, like: Tensor) -> Tensor:
    """The targets in any of their three forms as probabilities of the shape of ``like``."""
    if isinstance(targets, tuple | list):
        first, second, share = targets
        share = share.to(like.dtype).unsqueeze(1)
        mixed: Tensor = share * _shares(first, like) + (1 - share) * _shares(second, like)
        return mixed
    given: Tensor = targets
    if given.is_floating_point():
        return given.to(like.dtype)
    return torch.zeros_like(like).scatter(1, given.long().unsqueeze(1), 1.0)


def _at(logs: Tensor, classes: Tensor) -> Tensor:
    return logs.gather(1, classes.long().unsqueeze(1)).squeeze(1)


def _classes(targets: Any) -> Tensor:
    if isinstance(targets, tuple | list):
        first, second, share = targets
        return torch.where(share >= 0.5, first, second)
    classes: Tensor = targets.argmax(dim=1) if targets.is_floating_point() and targets.ndim == 2 else targets.long()
    return classes


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True).view(1, -1, 1, 1)
