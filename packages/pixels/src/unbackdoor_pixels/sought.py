"""Patches that the tuned model takes badly, sought on clean images or clips, and faint overlays beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unbackdoor.defender.seeker import Seeker
from unbackdoor.task import Losses
from unbackdoor.tree import Tree
from unbackdoor_pixels.ascent import climbed, worth
from unbackdoor_pixels.contents import chance
from unbackdoor_pixels.disturbance import lay_over, overlays
from unbackdoor_pixels.patches import Patches
from unbackdoor_pixels.values import as_floats

__all__ = ["SoughtPatches"]


_JUDGED = 4
"""One of so many passes judges."""


def _everywhere(share: Tensor, pixels: Tensor, generator: torch.Generator) -> Tensor:
    return share


@dataclass
class SoughtPatches(Seeker[Patches]):
    """The disturber of pixels: a rectangle in a share of the images, a new one or one that was found to cost much.

    Hardly any random content comes near a trigger's, so three quarters of a search's passes move that of the rectangles
    up the gradient of the loss, and the rest tell what it costs for each nat that another in its place does: see
    `unbackdoor_pixels.ascent`.

    Attributes are those of `unbackdoor.defender.seeker.Seeker` and these.

    Attributes:
        beyond: Whether rectangles may reach over the border.
        spread: `unbackdoor_pixels.PixelTask.spread`.
    """

    looks: int = 24
    every: int = 80
    beyond: bool = False
    spread: Callable[[Tensor, Tensor, torch.Generator], Tensor] = field(default=_everywhere)

    def beside(self, inputs: Tree) -> Tensor:
        """A faint pattern over half as many images as get a rectangle."""
        pixels = as_floats(inputs)
        channels, height, width = pixels.shape[-3:]
        share, content = overlays((len(pixels), channels, height, width), self.generator, self.rate / 2)
        return lay_over(pixels, self.spread(share, pixels, self.generator), content)

    def drawn(self, inputs: Tree) -> Patches:
        """Rectangles as `unbackdoor_pixels.disturbance` draws them."""
        channels, height, width = inputs.shape[-3:]
        return Patches.drawn(len(inputs), channels, height, width, self.generator, self.beyond)

    def put(self, inputs: Tree, attempts: Patches, rate: float) -> Tensor:
        """Images as floats, of which a share ``rate`` holds its rectangle."""
        pixels = as_floats(inputs)
        drawn = chance(len(pixels), self.generator, rate)
        share = torch.where(drawn, attempts.opacity * attempts.covers(), 0.0)
        return lay_over(pixels, self.spread(share, pixels, self.generator), attempts.content)

    def tried(self, inputs: Tree, losses: Losses) -> Iterator[tuple[Patches, Tensor]]:
        """One rectangle for each sample: half of them new, a quarter known ones, a quarter known ones varied."""

        def put(given: Tree, some: Patches) -> Tensor:
            return self.put(given, some, 1.0)

        some, judged = self.drawn(inputs), max(1, self.passes // _JUDGED)
        if self.found is not None and len(self.found):
            count, device = len(some), self.generator.device
            again = self.again(count)
            kind = torch.randint(4, (count,), generator=self.generator, device=device).clamp(min=1) - 1
            some = self.joined([some, again, again.varied(self.generator)])[
                kind * count + torch.arange(count, device=device)
            ]
        some = climbed(some, inputs, losses, put, self.passes - judged, self.generator)
        yield some, worth(some, inputs, losses, put, judged, self.generator)

    def joined(self, parts: Sequence[Patches]) -> Patches:
        """One after the other."""
        return Patches.joined(parts)

    def said(self, worst: Patches, costs: Tensor) -> str:
        """Where the rectangles lay, the dearest first."""
        centres = (100 * (worst.start + worst.side / 2).clamp(0, 1)).round().int().tolist()
        listed = ", ".join(dict.fromkeys(f"{down} % down and {right} % to the right" for down, right in centres))
        return (
            "of the patches that were laid over clean images while tuning, those with their middle here changed the "
            f"model's answers most: {listed}. Look there for a trigger if several lie close together; a model without "
            "a backdoor has such places too."
        )
