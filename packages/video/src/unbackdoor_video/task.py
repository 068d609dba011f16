"""Action recognition: clips of frames in, one class out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.classes import ClassTask
from unbackdoor.errors import BadOption
from unbackdoor.mixing import beta
from unbackdoor.task import Batch, Reading
from unbackdoor.tree import Tree
from unbackdoor_pixels import PixelTask, check_clips
from unbackdoor_video.augment import move

__all__ = ["LAYOUTS", "MIXUPS", "VideoTask"]

LAYOUTS = ("frames", "channels")
"""A model takes ``(batch, frames, channels, h, w)``, or ``(batch, channels, frames, h, w)`` as torchvision's do."""

MIXUPS = ("clip", "frame")
"""One lambda for each pair of clips, or one for each pair of frames."""


@dataclass(frozen=True)
class VideoTask(PixelTask, ClassTask):
    """What a purifier must know of a classifier of clips.

    Inputs are clips of shape ``(batch, frames, channels, height, width)``, ``uint8`` in 0..255 or floats in [0, 1];
    targets are those of `unbackdoor.classes.ClassTask`. Options beside the following are those of
    `unbackdoor_pixels.PixelTask`; a random move in space, a mirror image and a strong change are the same in all frames
    of a clip.

    Attributes:
        layout: What the model takes, one of `LAYOUTS`. Models that this package builds take ``"frames"``; a plain
            torchvision or pytorchvideo model takes ``"channels"``.
        shift: Largest random shift of `augment` in time, in frames; the first or last frame is held.
        mixup: One of `MIXUPS`.
        chunk: Clips that `predict` asks a model at a time, so that a large batch of them fits into memory.
    """

    name: ClassVar[str] = "video"

    layout: str = "frames"
    shift: int = 0
    mixup: str = "clip"
    chunk: int = 32

    def __post_init__(self) -> None:
        """Refuse unknown layouts, negative shifts and what `PixelTask` refuses."""
        super().__post_init__()
        for name, known in (("layout", LAYOUTS), ("mixup", MIXUPS)):
            if getattr(self, name) not in known:
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")
        if self.shift < 0 or self.chunk < 1:
            raise BadOption(f"shift is {self.shift}, chunk {self.chunk}; shift must be at least 0, chunk 1.")

    def pixels(self, inputs: Tree) -> Tensor:
        """The inputs as they are, if they are clips.

        Raises:
            BadData: They are not one tensor ``(batch, frames, channels, height, width)`` of ``uint8`` or floats.
        """
        return check_clips(inputs)

    def ask(self, model: nn.Module, given: Tensor) -> Any:
        """What the model says of normalised clips, in its own layout."""
        return model(given.transpose(1, 2) if self.layout == "channels" else given)

    def readings(self, clean: Batch) -> Iterator[Reading]:
        """Those of all pixels; the other layout, for networks that take either."""
        yield from super().readings(clean)
        other = next(layout for layout in LAYOUTS if layout != self.layout)
        yield Reading(f"--task-option layout={other}", replace(self, layout=other), rare=True)

    def predict(self, model: nn.Module, inputs: Tree) -> Tensor:
        """`forward` for `chunk` clips at a time."""
        return torch.cat([self.forward(model, some) for some in self.pixels(inputs).split(self.chunk)])

    def move(self, pixels: Tensor, generator: torch.Generator, crop: int) -> Tensor:
        """Every clip moved in space and time, and mirrored if `flip` is on, alike in all its frames."""
        return move(pixels, generator, crop=crop, shift=self.shift, flip=self.flip)

    def mix(self, pixels: Tensor, generator: torch.Generator, mix: float) -> tuple[Tensor, Tensor, Tensor]:
        """MixUp of ``mixup="clip"`` is Eq. (4) of NFT with whole clips as inputs.

        With ``"frame"`` each pair of frames has a lambda of its own, and the targets are mixed by their mean.
        """
        if self.mixup == "clip":
            return super().mix(pixels, generator, mix)
        return _mix_frames(pixels, generator, mix=mix)


def _mix_frames(clips: Tensor, generator: torch.Generator, *, mix: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `unbackdoor.mixing.mix_up`, with one lambda for each pair of frames; the share of a clip is their mean."""
    count, frames = clips.shape[:2]
    partners = torch.randperm(count, generator=generator, device=generator.device).to(clips.device)
    dtype = clips.dtype if clips.is_floating_point() else torch.float32
    shares = beta(mix, count * frames, generator).view(count, frames).to(clips.device, dtype)
    weights = shares.view(count, frames, 1, 1, 1)
    mixed = weights * clips + (1 - weights) * clips[partners]
    if not clips.is_floating_point():
        mixed = mixed.round().to(clips.dtype)
    return mixed, partners, shares.mean(dim=1)
