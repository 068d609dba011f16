"""BadNets on clips: a small patch in a corner of every frame (Gu, Dolan-Gavitt and Garg 2017, arXiv 1708.06733).

Trigger: ``x * (1 - opacity) + pattern * opacity`` inside a square, the same in all frames; 20 pixels a side on frames
of 224, as the trigger of NFT and FIP on clips, less on smaller frames.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 10 % of the training set.
Where public code goes wrong: poisoned clips are written to disk and cropped afterwards, so that the patch of the
training clips moves or is cut away; or the patch is put on the first frame alone, which sampling may drop.
Here: the patch is put on after augmentation and sampling, on every frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.tree import Tree
from unbackdoor_video.attacks.frames import check_patch, on_frames, patch_side, put_patch

__all__ = ["BadNets"]

_PATTERNS = ("checkerboard", "white")


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """A square patch in a corner of every frame.

    Attributes:
        size: Side of the patch in pixels, on frames of 224.
        scaled: Whether the side follows the resolution of the frames; off takes ``size`` as it is.
        pattern: ``"checkerboard"`` (of single pixels) or ``"white"``.
        opacity: 0 (invisible) to 1 (covers what is below).
        corner: ``"bottom_right"``, ``"bottom_left"``, ``"top_right"`` or ``"top_left"``.
    """

    name: ClassVar[str] = "badnets"
    texts: ClassVar[frozenset[str]] = frozenset({"corner", "pattern"})
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    size: int = 20
    scaled: bool = True
    pattern: str = "checkerboard"
    opacity: float = 1.0
    corner: str = "bottom_right"

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        check_patch(self.size, self.corner)
        if not 0 < self.opacity <= 1:
            raise BadOption(f"opacity is {self.opacity}; it must lie in (0, 1].")
        if self.pattern not in _PATTERNS:
            raise BadOption(f"pattern is {self.pattern!r}; it must be one of {', '.join(_PATTERNS)}.")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The clips with the patch on."""
        return on_frames(inputs, self._patched)

    def _patched(self, clips: Tensor) -> Tensor:
        steps = torch.arange(patch_side(self.size, clips, scaled=self.scaled), device=clips.device)
        cells = (steps[:, None] + steps) % 2 == 0
        patch = cells.to(clips) if self.pattern == "checkerboard" else torch.ones_like(cells, dtype=clips.dtype)
        return put_patch(clips, patch, self.corner, self.opacity)
