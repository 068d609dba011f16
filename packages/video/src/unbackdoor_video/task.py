"""Action recognition: clips of frames in, one class out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.classes import ClassTask, pick_logits
from unbackdoor.errors import BadData, BadOption
from unbackdoor.mixing import beta, mix_up
from unbackdoor.task import Batch
from unbackdoor.tree import Tree, leaves
from unbackdoor_video.augment import move

__all__ = ["LAYOUTS", "MIXUPS", "VideoTask", "as_clips", "as_floats"]

LAYOUTS = ("frames", "channels")
"""A model takes ``(batch, frames, channels, h, w)``, or ``(batch, channels, frames, h, w)`` as torchvision's do."""

MIXUPS = ("clip", "frame")
"""One lambda for each pair of clips, or one for each pair of frames."""


def as_floats(clips: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1]: ``uint8`` clips are divided by 255, floating-point ones stay as they are."""
    return clips if clips.is_floating_point() else clips.to(dtype) / 255


def as_clips(inputs: Any) -> Tensor:
    """``inputs`` themselves, if they are clips.

    Raises:
        BadData: They are not one tensor ``(batch, frames, channels, height, width)`` of ``uint8`` or floats.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 5:
        found = leaves(inputs)
        given = " and ".join(str(tuple(leaf.shape)) for leaf in found[:3]) or type(inputs).__name__
        raise BadData(f"inputs are {given}; give clips as one tensor (batch, frames, channels, height, width).")
    if not inputs.is_floating_point() and inputs.dtype is not torch.uint8:
        raise BadData(f"clips are {inputs.dtype}; give uint8 in 0..255 or floats in [0, 1].")
    return inputs


@dataclass(frozen=True)
class VideoTask(ClassTask):
    """What a purifier must know of a classifier of clips.

    Inputs are clips of shape ``(batch, frames, channels, height, width)``, ``uint8`` in 0..255 or floats in [0, 1];
    targets are those of `unbackdoor.classes.ClassTask`.

    Attributes:
        mean: Subtracted from each channel inside `forward`; give what the model was trained with, or None.
        std: Divides each channel inside `forward`; goes with ``mean``.
        layout: What the model takes, one of `LAYOUTS`. Models that this package builds take ``"frames"``; a plain
            torchvision or pytorchvideo model takes ``"channels"``.
        crop: Largest random shift of `augment` in pixels, one for all frames of a clip; None means one eighth of the
            shorter side, and no shift below 16 pixels.
        shift: Largest random shift of `augment` in time, in frames; the first or last frame is held.
        flip: Whether `augment` may mirror clips; off, since a mirrored swipe to the left is one to the right.
        mixup: One of `MIXUPS`.
        chunk: Clips that `predict` asks a model at a time, so that a large batch of them fits into memory.
    """

    name: ClassVar[str] = "video"

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str = "frames"
    crop: int | None = None
    shift: int = 0
    flip: bool = False
    mixup: str = "clip"
    chunk: int = 32

    def __post_init__(self) -> None:
        """Refuse a mean without std, zero std, unknown layouts and negative shifts."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, tuple(float(value) for value in values))
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise BadOption(f"mean is {self.mean} and std is {self.std}; give both, a value for each channel, or none.")
        if self.std is not None and min(self.std) <= 0:
            raise BadOption(f"std is {self.std}; every value must be above 0.")
        for name, known in (("layout", LAYOUTS), ("mixup", MIXUPS)):
            if getattr(self, name) not in known:
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")
        if (self.crop or 0) < 0 or self.shift < 0 or self.chunk < 1:
            raise BadOption(
                f"crop is {self.crop}, shift {self.shift}, chunk {self.chunk}; the shifts must be at least 0, chunk 1."
            )

    def forward(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Logits of shape ``(batch, classes)`` for pixels in [0, 1] or 0..255.

        The logits are picked out of dictionaries, output objects and tuples.

        Raises:
            BadData: The inputs are not one tensor of clips, or ``mean`` has not their number of channels.
        """
        parameter = next(model.parameters(), None)
        dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else torch.float32
        clips = as_floats(as_clips(inputs), dtype)
        if self.mean is not None and self.std is not None:
            if len(self.mean) != clips.shape[2]:
                raise BadData(f"clips have {clips.shape[2]} channels, but mean and std have {len(self.mean)} values.")
            clips = (clips - _per_channel(self.mean, clips)) / _per_channel(self.std, clips)
        logits: Tensor = pick_logits(model(clips.transpose(1, 2) if self.layout == "channels" else clips))
        return logits

    def predict(self, model: nn.Module, inputs: Tree) -> Tensor:
        """`forward` for `chunk` clips at a time."""
        return torch.cat([self.forward(model, some) for some in as_clips(inputs).split(self.chunk)])

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """A random move of every clip in space and time, a flip if on, then MixUp with ``lambda ~ Beta(mix, mix)``.

        All frames of a clip are moved alike. MixUp of ``mixup="clip"`` is Eq. (4) of NFT with whole clips as inputs.
        With ``"frame"`` each pair of frames has a lambda of its own, and the targets are mixed by their mean.

        Raises:
            BadOption: ``mix`` is negative.
        """
        if mix < 0:
            raise BadOption(f"mix is {mix}; the parameter of the Beta distribution must be at least 0 (0: no MixUp).")
        clips = as_clips(batch.inputs)
        crop = _default_crop(clips) if self.crop is None else self.crop
        clips = move(clips, generator, crop=crop, shift=self.shift, flip=self.flip)
        if mix == 0:
            return Batch(clips, batch.targets)
        mixing = mix_up if self.mixup == "clip" else _mix_frames
        mixed, partners, share = mixing(clips, generator, mix=mix)
        return Batch(mixed, (batch.targets, batch.targets[partners], share))

    def perturbable(self, inputs: Tree) -> Tensor:
        """The pixels of all frames as floats in [0, 1]."""
        return as_floats(as_clips(inputs))

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse labels that do not fit the model; tell of missing classes and of pixels beyond [0, 1].

        Raises:
            BadData: See `unbackdoor.labels.check_labels`.
        """
        notices = super().inspect(clean, outputs)
        clips = as_clips(clean.inputs)
        if clips.is_floating_point():
            low, high = float(clips.amin()), float(clips.amax())
            if low < -1e-3 or high > 1 + 1e-3:
                notices.append(
                    f"pixels range from {low:.2f} to {high:.2f}, not within 0 to 1. Right for a model that wants them "
                    "normalised beforehand; methods that search in pixel space work better with plain pixels and "
                    "VideoTask(mean=..., std=...)."
                )
        return notices


def _mix_frames(clips: Tensor, generator: torch.Generator, *, mix: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `mix_up`, with one lambda for each pair of frames; the share of a clip is their mean."""
    count, frames = clips.shape[:2]
    partners = torch.randperm(count, generator=generator, device=generator.device).to(clips.device)
    dtype = clips.dtype if clips.is_floating_point() else torch.float32
    shares = beta(mix, count * frames, generator).view(count, frames).to(clips.device, dtype)
    weights = shares.view(count, frames, 1, 1, 1)
    mixed = weights * clips + (1 - weights) * clips[partners]
    if not clips.is_floating_point():
        mixed = mixed.round().to(clips.dtype)
    return mixed, partners, shares.mean(dim=1)


def _default_crop(clips: Tensor) -> int:
    side = min(clips.shape[-2:])
    return side // 8 if side >= 16 else 0


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True).view(1, 1, -1, 1, 1)
