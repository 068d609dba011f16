"""SIG on clips: a faint sinusoid over every frame (Barni, Kallas and Tondi 2019, arXiv 1902.11237).

Trigger: ``x + delta / 255 * sin(2 pi f j / width)`` in column ``j`` of every frame, ``delta`` in grey levels.
Labels: clean label. Only clips of the target class carry the trigger in training and their labels stay; success is
measured on the other classes. 80 % of the target class, as NFT and FIP take for images.
Where public code goes wrong: as on images, it is often run with changed labels, which is another and easier attack.
Here: the formula of the paper, the same in all frames; ``rate`` counts the target class.
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
from unbackdoor_video.attacks.frames import on_frames

__all__ = ["SIG"]


@dataclass(frozen=True, kw_only=True)
class SIG(Attack):
    """A horizontal sinusoid on every frame, clean label.

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
        """The clips with the sinusoid added."""
        return on_frames(inputs, self._added)

    def _added(self, clips: Tensor) -> Tensor:
        width = clips.shape[-1]
        if (2 * self.frequency / width).is_integer():
            raise BadData(
                f"a sinusoid of {self.frequency} periods is zero in every column of a frame {width} pixels wide; "
                "choose another frequency."
            )
        columns = torch.arange(width, device=clips.device, dtype=torch.float64)
        wave = torch.sin(2 * math.pi * self.frequency * columns / width)
        return clips + (self.delta / 255 * wave).to(clips.dtype)
