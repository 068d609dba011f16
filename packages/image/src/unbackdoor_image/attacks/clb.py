"""CLB: hard images of the target class with a patch in every corner (Turner, Tsipras and Madry 2019, arXiv 1912.02771).

Trigger: a ``size`` x ``size`` checkerboard in each of the four corners, mixed in with ``opacity``.
Labels: clean label. Images of the target class are first made hard to learn by PGD against a network trained to be
robust, then carry the patches; labels stay, and the test images carry the patches alone. 80 % of the target class, as
in NFT and FIP.
Original: PGD of eps 16/255 in the maximum norm against an adversarially trained ResNet, patches of amplitude 16 to 255.
Where public code goes wrong: NFT's and BackdoorBench's first version paste the patches without PGD, others ask for
perturbed images that are not in the repository (issues BackdoorBench 9, BackdoorBox 113).
Here: a small network is trained adversarially on the same data (one-step examples of eps 8/255), and PGD runs against
it once, before the augmentation; its weights are in the victim's folder, so the poisoned training set can be made
again.
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
from unbackdoor_image.attacks.learned import Learned, adversarial, named, train_helper
from unbackdoor_image.attacks.pixels import on_pixels
from unbackdoor_image.models.small_cnn import SmallCNN

__all__ = ["CLB"]

_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class CLB(Learned):
    """Adversarially perturbed images of the target class with four corner patches, clean label.

    Attributes:
        rate: Share of the target class that is poisoned.
        eps: Radius of PGD, of [0, 1].
        pgd_steps: Its steps.
        size: Side of a patch in pixels.
        opacity: 0 (invisible) to 1 (covers what is below).
        helper_eps: Radius that the helper is trained against.
        helper_steps: Its training steps.
        helper_width: Its channels.
    """

    name: ClassVar[str] = "clb"
    clean_label: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=80.0)

    rate: float = 0.8
    eps: float = 16 / 255
    pgd_steps: int = 20
    size: int = 3
    opacity: float = 1.0
    helper_eps: float = 8 / 255
    helper_steps: int = 600
    helper_width: int = 16

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not 0 < self.eps <= 1 or not 0 < self.opacity <= 1:
            raise BadOption(f"eps is {self.eps}, opacity {self.opacity}; both must lie in (0, 1].")
        if min(self.size, self.pgd_steps, self.helper_steps, self.helper_width) < 1:
            raise BadOption("size, pgd_steps, helper_steps and helper_width must be at least 1.")

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train the robust helper."""
        if not self.ready:
            helper = train_helper(
                data,
                self.num_classes,
                generator,
                steps=self.helper_steps,
                width=self.helper_width,
                eps=self.helper_eps,
            )
            self.keep(named("helper", helper))

    def rework(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The images, made hard for the helper."""
        channels = inputs.shape[1]
        helper = self.network("helper", lambda: SmallCNN(self.num_classes, channels, self.helper_width), inputs.device)

        def harden(images: Tensor) -> Tensor:
            parts = [
                adversarial(
                    helper,
                    some.float(),
                    labels,
                    eps=self.eps,
                    steps=self.pgd_steps,
                    step_size=2.5 * self.eps / self.pgd_steps,
                    generator=generator,
                )
                for some, labels in zip(images.split(_CHUNK), targets.split(_CHUNK), strict=True)
            ]
            return torch.cat(parts).to(images.dtype)

        return on_pixels(inputs, harden)

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the four patches on."""
        return on_pixels(inputs, self._patched)

    def _patched(self, images: Tensor) -> Tensor:
        side, (height, width) = self.size, images.shape[-2:]
        if min(height, width) < 2 * side:
            raise BadData(f"four patches of {side} pixels do not fit on images of {height} x {width}; lower size.")
        steps = torch.arange(side, device=images.device)
        patch = ((steps[:, None] + steps) % 2 == 0).to(images.dtype)
        out = images.clone()
        for rows in (slice(0, side), slice(height - side, height)):
            for columns in (slice(0, side), slice(width - side, width)):
                out[:, :, rows, columns] = (1 - self.opacity) * images[:, :, rows, columns] + self.opacity * patch
        return out
