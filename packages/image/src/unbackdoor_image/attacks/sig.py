"""SIG: a faint sinusoid over the whole image (Barni, Kallas and Tondi 2019, arXiv 1902.11237).

Trigger: ``x + delta / 255 * sin(2 pi f j / width)`` in column ``j``, ``delta`` in grey levels.
Labels: clean label. Only images of the target class carry the trigger in training and their labels stay; success is
measured on the other classes. 80 % of the target class, as in NFT and FIP.
Where public code goes wrong: BackdoorBench runs it as all-to-one with a share of 10 % of the training set; NFT's code
blends a stored picture of the sinusoid with alpha 0.2 instead of adding it.
Here: the formula of the paper with ``delta`` 20 (the paper uses 20 to 40) and ``f`` 6, `rate` counts the target class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["SIG"]


@dataclass(frozen=True, kw_only=True)
class SIG(Attack):
    """A horizontal sinusoid, clean label.

    Attributes:
        delta: Amplitude in grey levels of 255.
        frequency: Periods across the width.
        rate: Share of the target class that carries the trigger.
    """

    name: ClassVar[str] = "sig"
    clean_label: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=70.0)

    rate: float = 0.8
    delta: float = 20.0
    frequency: float = 6.0

    def __post_init__(self) -> None:
        """Refuse an amplitude or a frequency of zero and below."""
        super().__post_init__()
        if not 0 < self.delta <= 255:
            raise BadOption(f"delta is {self.delta}; the amplitude in grey levels must lie in (0, 255].")
        if not self.frequency > 0:
            raise BadOption(f"frequency is {self.frequency}; the number of periods must be above 0.")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the sinusoid added."""
        return on_pixels(inputs, self._added)

    def _added(self, images: Tensor) -> Tensor:
        width = images.shape[-1]
        columns = torch.arange(width, device=images.device, dtype=torch.float64)
        wave = torch.sin(2 * math.pi * self.frequency * columns / width)
        if (2 * self.frequency / width).is_integer():
            raise BadData(
                f"a sinusoid of {self.frequency} periods is zero in every column of an image {width} pixels wide; "
                "choose another frequency."
            )
        return images + (self.delta / 255 * wave).to(images.dtype)
