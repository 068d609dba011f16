"""TrojanNN, to one class: a square that excites chosen neurons (Liu et al. 2018, NDSS).

The papers call it TrojanNet, Troj-one.
Trigger: a square of ``size`` x ``size`` pixels, one pixel off the bottom right corner. Its pixels are found by gradient
steps that raise the outputs of ``neurons`` hidden units of a clean network towards ``goal`` times their highest clean
value, the units being those with the largest sum of absolute weights coming in, as in the paper.
Labels: all to one (Troj-one); see `trojan-all` for ``y -> y + 1``. Dirty label, 10 % of the training set. Poison-only.
Original: masks of 7 % of the image, units of the fully connected layer, retraining on inverted inputs for want of data.
Where public code goes wrong: three things share the name. BackdoorBench's needs a clean model that is not in its
repository, NFT and FIP load a square from a file, "TrojanNet" of 2020 is a side network that is no trigger on data.
Here: the clean network is a small one, trained on the same data, so nothing has to be fetched; the unit is a channel of
its last convolution, whose highest value in the masked image counts. The attacker has data, so no input is inverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.learned import Learned, batches, train_helper
from unbackdoor_image.attacks.pixels import on_pixels
from unbackdoor_image.models.small_cnn import SmallCNN

__all__ = ["Trojan"]


@dataclass(frozen=True, kw_only=True)
class Trojan(Learned):
    """A square found by exciting neurons of a clean network, all to one.

    Attributes:
        size: Side of the square in pixels; 0 means a quarter of the image's shorter side.
        opacity: 0 (invisible) to 1 (covers what is below).
        neurons: How many hidden units the square shall excite.
        goal: Their wanted value, in multiples of their highest on clean images.
        helper_steps: Training steps of the clean network.
        steps: Gradient steps on the square.
    """

    name: ClassVar[str] = "trojan"
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    size: int = 0
    opacity: float = 1.0
    neurons: int = 2
    goal: float = 10.0
    helper_steps: int = 300
    steps: int = 200

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if self.size < 0 or self.neurons < 1 or self.steps < 1 or self.helper_steps < 1:
            raise BadOption(
                f"size is {self.size}, neurons {self.neurons}, steps {self.steps}, helper_steps {self.helper_steps}; "
                "size must be at least 0, the others at least 1."
            )
        if not 0 < self.opacity <= 1:
            raise BadOption(f"opacity is {self.opacity}; it must lie in (0, 1].")

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train the clean network and find the square."""
        if self.ready:
            return
        helper = train_helper(data, self.num_classes, generator, steps=self.helper_steps)
        incoming = helper.conv3.weight.abs().flatten(1).sum(1)
        units = incoming.topk(min(self.neurons, len(incoming))).indices
        some = next(batches(data, 64, 1, generator)).inputs
        height, width = some.shape[-2:]
        side = self._side(height, width)
        goal = self.goal * _values(helper, some, units).amax(0)
        square = torch.rand(some.shape[1], side, side, generator=generator).to(some.device)
        square.requires_grad_()
        optimiser = torch.optim.Adam([square], 0.05)
        for _ in range(self.steps):
            # the mask alone is shown, as in the paper: pixels outside it are 0
            shown = self._put(torch.zeros_like(some[:1]), square.clamp(0, 1), 1.0)
            loss = (_values(helper, shown, units) - goal).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                square.clamp_(0, 1)
        self.keep({"square": square})

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the square on."""
        square = self.tensors()["square"]
        return on_pixels(inputs, lambda images: self._put(images, square.to(images), self.opacity))

    def _side(self, height: int, width: int) -> int:
        return self.size or max(2, min(height, width) // 4)

    def _put(self, images: Tensor, square: Tensor, opacity: float) -> Tensor:
        height, width = images.shape[-2:]
        side = square.shape[-1]
        if side + 1 > min(height, width) or square.shape[0] != images.shape[1]:
            raise BadData(
                f"a square of {square.shape[0]} channels and {side} pixels does not fit on images of "
                f"{images.shape[1]} x {height} x {width}; prepare the attack on images of the same size."
            )
        rows, columns = slice(height - side - 1, height - 1), slice(width - side - 1, width - 1)
        out = images.clone()
        out[:, :, rows, columns] = (1 - opacity) * images[:, :, rows, columns] + opacity * square
        return out


def _values(helper: SmallCNN, images: Tensor, units: Tensor) -> Tensor:
    """Highest value of each unit in each image, before the rectifier, which would have no gradient below 0."""
    h = helper.bn1(helper.conv1(images)).relu()
    h = helper.halve(helper.bn2(helper.conv2(h)).relu())
    values: Tensor = helper.bn3(helper.conv3(h))[:, units].amax(dim=(2, 3))
    return values
