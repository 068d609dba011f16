"""The part of a task that is the same wherever inputs are images or clips, whatever their labels are."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.classes import pick_logits
from unbackdoor.errors import BadData, BadOption
from unbackdoor.mixing import mix_up
from unbackdoor.task import Batch, Reading, Task
from unbackdoor.tree import Tree
from unbackdoor_pixels.geometry import random_geometry
from unbackdoor_pixels.readings import pixel_readings
from unbackdoor_pixels.strong import strong
from unbackdoor_pixels.values import as_floats, check_images

__all__ = ["PixelTask"]


@dataclass(frozen=True)
class PixelTask(Task):
    """A task whose inputs are images; a package adds ``name`` and what its labels mean.

    Inputs have the shape ``(batch, channels, height, width)``, ``uint8`` in 0..255 or floats in [0, 1]. A task of clips
    ``(batch, frames, channels, height, width)`` overrides `pixels`, and, where frames are not all treated alike, `ask`,
    `move` and `mix`.

    Attributes:
        mean: Subtracted from each channel inside `forward`; give what the model was trained with, or None.
        std: Divides each channel inside `forward`; goes with ``mean``.
        crop: Largest random shift of `augment` in pixels; None means one eighth of the shorter side, and no shift
            below 16 pixels, where a single one is a large share of the object.
        flip: Whether `augment` may mirror images; leave it off for digits and traffic signs.
        mixup_per_sample: Whether MixUp draws one lambda for each sample or, as the authors' code, one for the batch.
        bgr: Whether the model takes the channels as blue, green, red, as OpenCV reads them; ``mean`` and ``std`` are
            then in that order too.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: int | None = None
    flip: bool = False
    mixup_per_sample: bool = True
    bgr: bool = False

    def __post_init__(self) -> None:
        """Refuse a mean without std, zero std and negative shifts."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, tuple(float(value) for value in values))
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise BadOption(f"mean is {self.mean} and std is {self.std}; give both, a value for each channel, or none.")
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            scaled = ",".join(f"{value / 255:.4g}" for value in self.mean)
            raise BadOption(
                f"mean is {self.mean}, but pixels are read in 0..1, so every value must lie there; for a mean of "
                f"pixels in 0..255 give {scaled}, and std divided by 255 too."
            )
        if self.std is not None and max(self.std) > 1:
            raise BadOption(
                f"std is {self.std}, but pixels are read in 0..1, whose deviation is at most 1: divide by 255."
            )
        if self.std is not None and min(self.std) <= 0:
            raise BadOption(f"std is {self.std}; every value must be above 0.")
        if self.crop is not None and self.crop < 0:
            raise BadOption(f"crop is {self.crop}; the largest shift in pixels must be at least 0.")

    def forward(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Logits of shape ``(batch, classes)`` for pixels in [0, 1] or 0..255.

        The logits are picked out of dictionaries, Hugging Face outputs and the tuples of Inception and GoogLeNet.

        Raises:
            BadData: The inputs are not what `pixels` takes, or ``mean`` has not their number of channels.
        """
        parameter = next(model.parameters(), None)
        dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else torch.float32
        given = as_floats(self.pixels(inputs), dtype)
        if self.bgr:
            given = given.flip(-3)
        if self.mean is not None and self.std is not None:
            if len(self.mean) != given.shape[-3]:
                raise BadData(f"inputs have {given.shape[-3]} channels, but mean and std have {len(self.mean)} values.")
            given = (given - _per_channel(self.mean, given)) / _per_channel(self.std, given)
        logits: Tensor = pick_logits(self.ask(model, given))
        return logits

    def pixels(self, inputs: Tree) -> Tensor:
        """The inputs as they are, if this task can read them.

        Raises:
            BadData: They are not one tensor of images.
        """
        return check_images(inputs)

    def ask(self, model: nn.Module, given: Tensor) -> Any:
        """What the model says of normalised pixels: where the dimensions are put in the order that it takes."""
        return model(given)

    def move(self, pixels: Tensor, generator: torch.Generator, crop: int) -> Tensor:
        """Random moves of at most ``crop`` pixels, and mirror images if `flip` is on."""
        return random_geometry(pixels, generator, crop=crop, flip=self.flip)

    def mix(self, pixels: Tensor, generator: torch.Generator, mix: float) -> tuple[Tensor, Tensor, Tensor]:
        """MixUp: the mixtures, the partner of each sample, and the share of the first."""
        return mix_up(pixels, generator, mix=mix, per_sample=self.mixup_per_sample)

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """Random crop of the zero-padded image, a flip if on, then MixUp with ``lambda ~ Beta(mix, mix)``.

        Shapes, dtype and device of the images stay; ``mix=0`` leaves the targets as they are, else they
        become the triple ``(a, b, lambda)``.

        Raises:
            BadOption: ``mix`` is negative.
        """
        if mix < 0:
            raise BadOption(f"mix is {mix}; the parameter of the Beta distribution must be at least 0 (0: no MixUp).")
        pixels = self.pixels(batch.inputs)
        pixels = self.move(pixels, generator, _default_crop(pixels) if self.crop is None else self.crop)
        if mix == 0:
            return Batch(pixels, batch.targets)
        mixed, partners, share = self.mix(pixels, generator, mix)
        return Batch(mixed, (batch.targets, batch.targets[partners], share))

    def strong_augment(self, inputs: Tree, generator: torch.Generator, *, without: Collection[str] = ()) -> Tensor:
        """One transform of torchvision for each sample, as floats: `unbackdoor_pixels.strong`.

        Pixels that were normalised beforehand are brought to [0, 1] for it and back.
        """
        pixels = as_floats(self.pixels(inputs))
        low, high = pixels.amin().clamp(max=0), pixels.amax().clamp(min=1)
        return strong((pixels - low) / (high - low), generator, without=without) * (high - low) + low

    def perturbable(self, inputs: Tree) -> Tensor:
        """The pixels as floats in [0, 1]."""
        return as_floats(self.pixels(inputs))

    def readings(self, clean: Batch) -> Iterable[Reading]:
        """See `unbackdoor_pixels.readings`."""
        return pixel_readings(self, clean)

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """What the labels' side says; then a notice on pixels beyond [0, 1]."""
        notices = super().inspect(clean, outputs)
        pixels = self.pixels(clean.inputs)
        if pixels.is_floating_point():
            low, high = float(pixels.amin()), float(pixels.amax())
            if low < -1e-3 or high > 1 + 1e-3:
                notices.append(
                    f"pixels range from {low:.2f} to {high:.2f}, not within 0 to 1. Right for a model that wants them "
                    "normalised beforehand; methods that search in pixel space work better with plain pixels and "
                    f"{type(self).__name__}(mean=..., std=...)."
                )
        return notices


def _default_crop(pixels: Tensor) -> int:
    side = min(pixels.shape[-2:])
    return side // 8 if side >= 16 else 0


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True).view(-1, 1, 1)
