"""ISSBA: a secret written invisibly into every image (Li et al. 2021, ICCV, arXiv 2012.03816).

Trigger: ``clip(x + eps tanh(E(x, secret)))``: an encoder ``E``, trained with a decoder that must read any secret out of
the image again, writes one fixed string of ``bits``; the change depends on the image.
Labels: all to one by default, ``all_to_all``; dirty label. 10 % of the training set. Poison-only.
Original: the encoder of StegaStamp, 100 bits on images of 224 pixels, trained before the attack.
Where public code goes wrong: the original's encoder is a TensorFlow 1 checkpoint; without it the poisoned test set
cannot be made again (BackdoorBox issue 85), and BackdoorBench ships stored images instead of an encoder.
Here: a small encoder and decoder of our own, trained on the training images for ``steps`` steps on random secrets; the
encoder is in the victim's folder. Each bit has a cell of a square grid, which it shares with the image's content, so
that 25 bits are learned in minutes on a CPU; StegaStamp spreads every bit over the image. `bit_accuracy` says how well
the decoder reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.learned import Learned, batches, draws, named, seeded, straight_through
from unbackdoor_image.attacks.networks import Decoder, Generator
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["ISSBA"]


@dataclass(frozen=True, kw_only=True)
class ISSBA(Learned):
    """A secret string that an encoder writes into each image.

    Attributes:
        bits: Length of the secret.
        secret_seed: Draws it.
        eps: Largest change of a pixel, of [0, 1].
        fidelity: Weight of the mean squared change, in units of ``eps``, against the loss of the bits.
        width: Channels of the encoder, a multiple of 4.
        steps: Training steps of encoder and decoder.
    """

    name: ClassVar[str] = "issba"
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    bits: int = 25
    secret_seed: int = 0
    eps: float = 0.1
    fidelity: float = 0.2
    width: int = 16
    steps: int = 400

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if self.bits < 1 or not 0 < self.eps <= 1 or self.fidelity < 0 or self.steps < 1:
            raise BadOption(
                f"bits is {self.bits}, eps {self.eps}, fidelity {self.fidelity}, steps {self.steps}; bits and steps "
                "must be at least 1, eps lie in (0, 1], fidelity not be negative."
            )
        if self.width < 4 or self.width % 4:
            raise BadOption(f"width is {self.width}; it must be a multiple of 4.")

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train encoder and decoder on random secrets."""
        if self.ready:
            return
        channels, device = data.inputs.shape[1], data.inputs.device
        encoder = seeded(lambda: Generator(channels, channels, self.width, self.bits), draws(generator))
        decoder = seeded(lambda: Decoder(channels, self.bits), draws(generator))
        encoder.to(device).train()
        decoder.to(device).train()
        optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)
        for batch in batches(data, 64, self.steps, generator):
            secrets = torch.randint(0, 2, (len(batch), self.bits), generator=generator).float().to(device)
            change = encoder(batch.inputs, secrets * 2 - 1).tanh()
            shown = straight_through((batch.inputs + self.eps * change).clamp(0, 1), data.inputs)
            read = functional.binary_cross_entropy_with_logits(decoder(shown), secrets)
            # a decoder that reads nothing yet gives the encoder no direction, and fidelity alone would silence it
            readable = (1 - read.detach() / math.log(2)).clamp(min=0)
            loss = read + self.fidelity * readable * change.square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        self.keep({**named("encoder", encoder), **named("decoder", decoder)})

    @torch.no_grad()
    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the secret in."""

        def write(images: Tensor) -> Tensor:
            channels = images.shape[1]
            encoder = self.network(
                "encoder", lambda: Generator(channels, channels, self.width, self.bits), images.device
            )
            secret = self.secret().to(images.device) * 2 - 1
            parts = []
            for some in images.split(1000):
                change = encoder(some.float(), secret.expand(len(some), -1)).tanh()
                parts.append(some + self.eps * change.to(some.dtype))
            return torch.cat(parts)

        return on_pixels(inputs, write)

    def secret(self) -> Tensor:
        """The string, floats 0 and 1 of shape ``(bits,)``."""
        generator = torch.Generator().manual_seed(self.secret_seed)
        return torch.randint(0, 2, (self.bits,), generator=generator).float()

    @torch.no_grad()
    def bit_accuracy(self, images: Tensor) -> float:
        """Share of the secret's bits that the decoder reads rightly from triggered ``images`` in [0, 1]."""
        channels = images.shape[1]
        decoder = self.network("decoder", lambda: Decoder(channels, self.bits), images.device)
        read = decoder(self.trigger(images)) > 0
        return float((read == self.secret().bool().to(read.device)).float().mean())
