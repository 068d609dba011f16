"""Images as tensors: what every task of pixels shares, whatever its labels are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.classes import pick_logits
from unbackdoor.errors import BadData, BadOption
from unbackdoor.mixing import mix_up
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree, leaves

__all__ = ["PixelTask", "as_floats", "check_images", "on_pixels", "random_geometry", "shift_and_flip"]


def as_floats(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1]: ``uint8`` images are divided by 255, floating-point ones stay as they are."""
    return images if images.is_floating_point() else images.to(dtype) / 255


def on_pixels(inputs: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change(images)`` with pixels in [0, 1], clamped, in the dtype that came in.

    Args:
        inputs: Shape ``(batch, channels, height, width)``; ``uint8`` in 0..255 or floats in [0, 1].
        change: Gets floats in [0, 1] and returns floats of the same shape; it must not write into its argument.

    Returns:
        Same shape, dtype and device; ``uint8`` is rounded to the nearest level.

    Raises:
        BadData: The inputs are no images.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise BadData(f"the trigger got {given}; give images of shape (batch, channels, height, width).")
    if inputs.is_floating_point():
        return change(inputs).clamp(0, 1)
    if inputs.dtype is not torch.uint8:
        raise BadData(f"the trigger got {inputs.dtype} images; give uint8 in 0..255 or floats in [0, 1].")
    return (change(inputs.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)


def shift_and_flip(images: Tensor, down: Tensor, right: Tensor, flipped: Tensor) -> Tensor:
    """``out[n, :, i, j] = images[n, :, i - down[n], j - right[n]]``, zero beyond the border.

    Where ``flipped`` holds, the image is mirrored left to right before it is shifted.

    Args:
        images: Shape ``(batch, channels, height, width)``, any dtype.
        down: Rows to move down, int64 of shape ``(batch,)``.
        right: Columns to move right, int64 of shape ``(batch,)``.
        flipped: Bool of shape ``(batch,)``.
    """
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - down[:, None]
    columns = torch.arange(width, device=images.device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    places = (rows[:, :, None] * width + columns[:, None, :]).reshape(count, 1, height * width)
    moved = images.reshape(count, channels, height * width).gather(2, places.expand(-1, channels, -1))
    return moved.reshape(images.shape) * inside[:, None].to(images.dtype)


def random_geometry(images: Tensor, generator: torch.Generator, *, crop: int, flip: bool) -> Tensor:
    """A crop of the zero-padded image at a random place and, if ``flip``, a mirror image of every second one.

    Args:
        images: Shape ``(batch, channels, height, width)``, any dtype.
        generator: Draws places and flips, on its own device.
        crop: Largest shift in pixels, along each axis and in both directions; 0 leaves images where they are.
        flip: Whether left and right may change places.
    """
    if crop == 0 and not flip:
        return images
    count = len(images)
    shifts = torch.randint(-crop, crop + 1, (2, count), generator=generator, device=generator.device)
    flips = torch.zeros(count, dtype=torch.bool)
    if flip:
        flips = torch.rand(count, generator=generator, device=generator.device) < 0.5
    down, right = shifts.to(images.device)
    return shift_and_flip(images, down, right, flips.to(images.device))


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
    """

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


def check_images(inputs: Any) -> Tensor:
    """The inputs, which must be one tensor of images.

    Raises:
        BadData: They are something else, or integers other than ``uint8``.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        found = leaves(inputs)
        given = " and ".join(str(tuple(leaf.shape)) for leaf in found[:3]) or type(inputs).__name__
        raise BadData(f"inputs are {given}; give images as one tensor of shape (batch, channels, height, width).")
    if not inputs.is_floating_point() and inputs.dtype is not torch.uint8:
        raise BadData(f"images are {inputs.dtype}; give uint8 in 0..255 or floats in [0, 1].")
    return inputs


def _default_crop(images: Tensor) -> int:
    side = min(images.shape[-2:])
    return side // 8 if side >= 16 else 0


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True).view(1, -1, 1, 1)
