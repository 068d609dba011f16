"""Patches on objects that the tuned detector takes badly, sought on clean images, and others anywhere beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unbackdoor.defender.seeker import Seeker
from unbackdoor.tree import Tree
from unbackdoor_pixels import Patches, as_floats, lay_over

__all__ = ["PatchesOnObjects"]

_OF_OBJECT = 1.5
"""Sides of a rectangle on an object, as a share of the object's, over those of one in an image, as a share of its."""


def _unchanged(inputs: Tree, generator: torch.Generator) -> Tree:
    return inputs


@dataclass
class PatchesOnObjects(Seeker[Patches]):
    """The disturber of detectors: in a share of the images every object is touched by a rectangle at the same place.

    A detector answers to an object and what surrounds it, so a place in the image, as `unbackdoor_pixels` seeks, would
    mean something else in every image. Here a place is one about an object's box. Costs fade by a tenth a search: one
    object's is little evidence, and what was dear by chance should make room. Attributes are those of
    `unbackdoor.defender.seeker.Seeker`, and this.

    Attributes:
        anywhere: What is done beside, without regard to objects.
    """

    fading: float = 0.9
    anywhere: Callable[[Tree, torch.Generator], Tree] = field(default=_unchanged)

    def beside(self, inputs: Tree) -> Tree:
        """See `anywhere`."""
        return self.anywhere(inputs, self.generator)

    def drawn(self, inputs: Tree) -> Patches:
        """Rectangles of 15 to 52 % of an object's sides: what hides all of it says nothing of a trigger."""
        images = (inputs[0] if isinstance(inputs, tuple | list) else inputs)["images"]
        count, channels, height, width = images.shape
        return Patches.drawn(count, channels, height, width, self.generator, beyond=True)

    def put(self, inputs: Tree, attempts: Patches, rate: float) -> Tree:
        """A share ``rate`` of the images with their rectangle on each of their objects, on either side of a mixture."""
        draws = torch.rand(len(attempts), generator=self.generator, device=self.generator.device)
        return _laid(inputs, attempts, draws < rate)

    def joined(self, parts: Sequence[Patches]) -> Patches:
        """One after the other."""
        return Patches.joined(parts)

    def said(self, worst: Patches, costs: Tensor) -> str:
        """Where the rectangles lay, the dearest first."""
        places = (100 * (worst.start + worst.side) / (1 + worst.side)).round().int().tolist()
        listed = ", ".join(dict.fromkeys(f"{down} % down and {right} % to the right" for down, right in places))
        return (
            "of the patches that were laid on objects while tuning, those here changed the model's answers most (0 % "
            f"is above or left of the object, 100 % below or right of it): {listed}. Look there for a trigger if "
            "several lie close together; a model without a backdoor has such places too."
        )


def _laid(inputs: Tree, attempts: Patches, chosen: Tensor) -> Tree:
    if isinstance(inputs, tuple | list):
        first, second, share = inputs
        return (_laid(first, attempts, chosen), _laid(second, attempts, chosen), share)
    images, boxes = as_floats(inputs["images"]), inputs["boxes"]
    wanted = chosen.to(boxes.device)[:, None] & (boxes[..., 4] > 0)
    for column in range(boxes.shape[1]):  # one row of each image's table at a time
        share, content = _about(boxes[:, column], attempts)
        images = lay_over(images, share * wanted[:, column].view(-1, 1, 1, 1).to(share), content)
    return {**inputs, "images": images}


def _about(box: Tensor, attempts: Patches) -> tuple[Tensor, Tensor]:
    """What `lay_over` takes for one box of each image: a place of 0 to 1 runs from just above it to just below."""
    size = attempts.content.shape
    content, lines = attempts.content.to(box.device), []
    for axis, length in enumerate(size[2:]):
        first, last = box[:, 1 - axis], box[:, 3 - axis]
        share = attempts.side[:, axis].to(box.device)
        place, side = (
            (attempts.start[:, axis].to(box.device) + share) / (1 + share),
            _OF_OBJECT * share * (last - first),
        )
        start = (first + place * (last - first + side) - side).round()
        at = torch.arange(length, device=box.device) - start[:, None]
        lines.append((at >= 0) & (at < side.round().clamp(min=1)[:, None]))
        index = at.long().clamp(0, length - 1)
        index = index[:, None, :, None] if axis == 0 else index[:, None, None, :]
        content = content.gather(2 + axis, index.expand(size))
    inside = lines[0][:, None, :, None] & lines[1][:, None, None, :]
    return torch.where(inside, attempts.opacity.to(box.device), 0.0), content
