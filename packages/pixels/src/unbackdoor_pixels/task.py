"""The part of a task that is the same wherever inputs are images, whatever their labels are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.classes import pick_logits
from unbackdoor.errors import BadData, BadOption
from unbackdoor.mixing import mix_up
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree
from unbackdoor_pixels.disturbance import disturbance
from unbackdoor_pixels.geometry import random_geometry
from unbackdoor_pixels.values import as_floats, check_images

__all__ = ["PixelTask"]


@dataclass(frozen=True)
class PixelTask(Task):
    """A task whose inputs are images; a package adds ``name`` and what its labels mean.

    Inputs have the shape ``(batch, channels, height, width)``, ``uint8`` in 0..255 or floats in [0, 1].

    Attributes:
        mean: Subtracted from each channel inside `forward`; give what the model was trained with, or None.
        std: Divides each channel inside `forward`; goes with ``mean``.
        crop: Largest random shift of `augment` in pixels; None means one eighth of the shorter side, and no shift
            below 16 pixels, where a single one is a large share of the object.
        flip: Whether `augment` may mirror images; leave it off for digits and traffic signs.
        mixup_per_sample: Whether MixUp draws one lambda for each sample or, as the authors' code, one for the batch.
        disturbed: Share of the images into which `disturb` puts a rectangle; half as many get an overlay; 0 for none.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: int | None = None
    flip: bool = False
    mixup_per_sample: bool = True
    disturbed: float = 0.3

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
        if not 0 <= self.disturbed <= 1:
            raise BadOption(f"disturbed is {self.disturbed}; it is a share of the images and must lie in [0, 1].")

    def forward(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Logits of shape ``(batch, classes)`` for pixels in [0, 1] or 0..255.

        The logits are picked out of dictionaries, Hugging Face outputs and the tuples of Inception and GoogLeNet.

        Raises:
            BadData: The inputs are not one tensor of images, or ``mean`` has not their number of channels.
        """
        parameter = next(model.parameters(), None)
        dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else torch.float32
        images = as_floats(check_images(inputs), dtype)
        if self.mean is not None and self.std is not None:
            if len(self.mean) != images.shape[1]:
                raise BadData(f"images have {images.shape[1]} channels, but mean and std have {len(self.mean)} values.")
            images = (images - _per_channel(self.mean, images)) / _per_channel(self.std, images)
        logits: Tensor = pick_logits(model(images))
        return logits

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """Random crop of the zero-padded image, a flip if on, then MixUp with ``lambda ~ Beta(mix, mix)``.

        Shapes, dtype and device of the images stay; ``mix=0`` leaves the targets as they are, else they
        become the triple ``(a, b, lambda)``.

        Raises:
            BadOption: ``mix`` is negative.
        """
        if mix < 0:
            raise BadOption(f"mix is {mix}; the parameter of the Beta distribution must be at least 0 (0: no MixUp).")
        images = check_images(batch.inputs)
        crop = _default_crop(images) if self.crop is None else self.crop
        images = random_geometry(images, generator, crop=crop, flip=self.flip)
        if mix == 0:
            return Batch(images, batch.targets)
        mixed, partners, share = mix_up(images, generator, mix=mix, per_sample=self.mixup_per_sample)
        return Batch(mixed, (batch.targets, batch.targets[partners], share))

    def disturb(self, inputs: Tree, generator: torch.Generator) -> Tensor:
        """Images with a random rectangle or a faint pattern over them: `unbackdoor_pixels.disturbance`.

        ``uint8`` images become floats in [0, 1]. What is put over images that were normalised beforehand has their
        range.
        """
        images = check_images(inputs)
        if self.disturbed == 0:
            return images
        images = as_floats(images)
        share, content = disturbance(*images.shape, generator, rate=self.disturbed)
        low, high = images.amin().clamp(max=0), images.amax().clamp(min=1)
        return images.lerp(low + (high - low) * content.to(images), share.to(images))

    def perturbable(self, inputs: Tree) -> Tensor:
        """The pixels as floats in [0, 1]."""
        return as_floats(check_images(inputs))

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """What the labels' side says; then a notice on pixels beyond [0, 1]."""
        notices = super().inspect(clean, outputs)
        images = check_images(clean.inputs)
        if images.is_floating_point():
            low, high = float(images.amin()), float(images.amax())
            if low < -1e-3 or high > 1 + 1e-3:
                notices.append(
                    f"pixels range from {low:.2f} to {high:.2f}, not within 0 to 1. Right for a model that wants them "
                    "normalised beforehand; methods that search in pixel space work better with plain pixels and "
                    f"{type(self).__name__}(mean=..., std=...)."
                )
        return notices


def _default_crop(images: Tensor) -> int:
    side = min(images.shape[-2:])
    return side // 8 if side >= 16 else 0


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True).view(1, -1, 1, 1)
