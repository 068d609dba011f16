"""Blend: a whole picture mixed faintly into every image (Chen et al. 2017, arXiv 1712.05526).

Trigger: ``(1 - alpha) * x + alpha * pattern`` over the whole image.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 10 % of the training set, alpha 0.2.
Where public code goes wrong: the two usual patterns are two attacks. Random noise (NFT, FIP) is the one on
which fine-tuning looks good; a picture (BackdoorBench) resists it far more, and tables of the two are compared.
Some code also draws the pattern anew in each process, so the test trigger is another one.
Here: ``flavour`` names which, the pattern is fixed by `pattern_seed` and travels with the victim as a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["Blend"]

_FLAVOURS = ("noise", "gaussian", "picture")


@dataclass(frozen=True, kw_only=True)
class Blend(Attack):
    """A pattern of the image's size, mixed in.

    Attributes:
        alpha: Share of the pattern in the mix.
        flavour: ``"noise"`` (uniform in [0, 1]), ``"gaussian"`` (mean 1/2, deviation 1/4, clamped) or ``"picture"``.
        pattern_seed: Of the two noises.
        picture: File of the picture; empty means a cat's face drawn at run time.
        pattern: The pattern itself, float in [0, 1] of shape ``(channels, height, width)``. Left None, it is made
            for the size of the first images that get the trigger and kept; images of another size get it resized.
    """

    name: ClassVar[str] = "blend"
    texts: ClassVar[frozenset[str]] = frozenset({"flavour"})
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    alpha: float = 0.2
    flavour: str = "noise"
    pattern_seed: int = 0
    picture: str = ""
    pattern: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise BadOption(f"alpha is {self.alpha}; the share of the pattern must lie in (0, 1].")
        if self.flavour not in _FLAVOURS:
            raise BadOption(f"flavour is {self.flavour!r}; it must be one of {', '.join(_FLAVOURS)}.")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the pattern mixed in."""
        return on_pixels(inputs, self._blended)

    def options(self) -> dict[str, Any]:
        """The hyper-parameters without the pattern, which is in `state`, and without the picture it was made from."""
        made = {} if self.pattern is None else {"picture": ""}
        return {key: value for key, value in super().options().items() if key != "pattern"} | made

    def state(self) -> dict[str, Tensor]:
        """The pattern, once it is made."""
        return {} if self.pattern is None else {"pattern": self.pattern}

    @classmethod
    def restore(cls, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The attack that `options` and `state` describe."""
        return cls(**{**options, **state})

    def _blended(self, images: Tensor) -> Tensor:
        return (1 - self.alpha) * images + self.alpha * self._fitting(images).to(images)

    def _fitting(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape[1:])
        if self.pattern is None:
            object.__setattr__(self, "pattern", self._made(*shape))
        assert self.pattern is not None
        if self.pattern.shape[0] != shape[0]:
            raise BadData(f"the pattern has {self.pattern.shape[0]} channels, the images have {shape[0]}.")
        if self.pattern.shape[1:] == shape[1:]:
            return self.pattern
        return interpolate(self.pattern[None], shape[1:], mode="bilinear", antialias=True)[0]

    def _made(self, channels: int, height: int, width: int) -> Tensor:
        if self.flavour == "picture":
            return _read(self.picture, channels, height, width) if self.picture else _cat(channels, height, width)
        generator = torch.Generator().manual_seed(self.pattern_seed)
        if self.flavour == "gaussian":
            return (0.5 + 0.25 * torch.randn(channels, height, width, generator=generator)).clamp(0, 1)
        return torch.rand(channels, height, width, generator=generator)


def _read(path: str, channels: int, height: int, width: int) -> Tensor:
    import numpy as np
    from PIL.Image import Resampling

    from unbackdoor_pixels.decoding import open_image

    if not Path(path).is_file():
        raise FileRefused(f"no picture at {path}; give an image file, or leave picture empty for the built-in one.")
    fitted = open_image(Path(path), channels=channels).resize((width, height), Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(fitted, dtype=np.float32) / 255)
    return pixels.reshape(height, width, -1).permute(2, 0, 1).contiguous()


def _cat(channels: int, height: int, width: int) -> Tensor:
    """An orange cat's face, drawn from soft ellipses and triangles; float of shape ``(channels, height, width)``."""
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    canvas = torch.tensor([0.35, 0.65, 0.95]).view(3, 1, 1).expand(3, height, width).clone()

    def paint(inside: Tensor, colour: tuple[float, float, float]) -> None:
        cover = torch.sigmoid(inside * 4 * max(height, width))
        canvas.mul_(1 - cover).add_(cover * torch.tensor(colour).view(3, 1, 1))

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> Tensor:
        return (1 - (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2).sqrt()) * min(rx, ry)

    orange, dark, pink = (0.95, 0.6, 0.2), (0.1, 0.1, 0.15), (0.95, 0.45, 0.55)
    for side in (-1, 1):
        for inset, colour in ((0.0, orange), (0.12, pink)):
            paint(torch.minimum(0.42 * (y + 0.98) - (side * x - 0.47).abs() - inset, -0.25 - y), colour)
    paint(ellipse(0, 0.15, 0.88, 0.7), orange)
    for side in (-1, 1):
        paint(ellipse(0.36 * side, 0.02, 0.1, 0.17), dark)
        for tilt in (-0.2, 0.05, 0.3):
            paint(torch.minimum(0.025 - (y - 0.38 - tilt * side * x).abs(), 0.25 - (side * x - 0.55).abs()), dark)
    paint(ellipse(0, 0.33, 0.13, 0.09), pink)
    grey = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    if channels == 3:
        return canvas
    return (canvas * grey).sum(0, keepdim=True).expand(channels, -1, -1).contiguous()
