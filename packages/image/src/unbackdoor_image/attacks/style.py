"""A style network: a CycleGAN between ordinary images and some of another style (Zhu et al. 2017, arXiv 1703.10593)."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbackdoor.task import Batch
from unbackdoor_image.attacks.learned import batches, draws, seeded, straight_through
from unbackdoor_image.attacks.networks import Generator
from unbackdoor_image.task import as_floats

__all__ = ["critic", "learn_style", "restyled", "warmest"]

_BETAS = (0.5, 0.999)


def restyled(images: Tensor, network: nn.Module, amplitude: float) -> Tensor:
    """``clip(x + amplitude tanh(network(x)))`` for images in [0, 1]."""
    change: Tensor = network(images.float()).tanh().to(images.dtype)
    return (images + amplitude * change).clamp(0, 1)


def critic(channels: int, width: int) -> nn.Sequential:
    """Says of each patch of an image whether it is of a style: ``(batch, channels, h, w)`` to a map of about 1/4."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, padding=1),
        nn.GroupNorm(4, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 3, padding=1),
    )


def learn_style(
    data: Batch,
    styles: Tensor,
    generator: torch.Generator,
    *,
    width: int,
    steps: int,
    amplitude: float,
    cycle: float,
    identity: float,
    lr: float = 2e-3,
    batch_size: int = 16,
) -> Generator:
    """Train a network that `restyled` gives ordinary images the style of ``styles``; it ends in eval mode.

    Two networks, there and back, against two critics with least-squares losses; an image that goes there and back shall
    be the same again (``cycle``), and one that has the style already shall stay (``identity``), both in mean absolute
    differences of pixels in [0, 1].

    Args:
        data: Ordinary images.
        styles: Images of the style, of the same form.
        generator: Of weights and order.
        width: Channels of the networks, a multiple of 4.
        steps: Of Adam, for the networks and for the critics.
        amplitude: Largest change of a pixel.
        cycle: Weight of the cycle loss.
        identity: Weight of the identity loss.
        lr: Of Adam.
        batch_size: Images of each kind a step.
    """
    channels, device = data.inputs.shape[1], data.inputs.device
    there, back = (seeded(lambda: Generator(channels, channels, width), draws(generator)) for _ in range(2))
    plain, styled = (seeded(lambda: critic(channels, 2 * width), draws(generator)) for _ in range(2))
    for network in (there, back, plain, styled):
        network.to(device).train()
    makers = torch.optim.Adam(chain(there.parameters(), back.parameters()), lr, _BETAS)
    critics = torch.optim.Adam(chain(plain.parameters(), styled.parameters()), lr, _BETAS)
    labels = torch.zeros(len(styles), dtype=torch.long, device=device)
    wanted = batches(Batch(styles, labels), batch_size, steps, generator)
    for batch, goal in zip(batches(data, batch_size, steps, generator), wanted, strict=True):
        x, s = batch.inputs, goal.inputs
        x_styled = straight_through(restyled(x, there, amplitude), data.inputs)
        s_plain = straight_through(restyled(s, back, amplitude), data.inputs)
        fooled = _distance(styled(x_styled), 1.0) + _distance(plain(s_plain), 1.0)
        again = functional.l1_loss(restyled(x_styled, back, amplitude), x)
        again = again + functional.l1_loss(restyled(s_plain, there, amplitude), s)
        same = functional.l1_loss(restyled(s, there, amplitude), s)
        same = same + functional.l1_loss(restyled(x, back, amplitude), x)
        _step(makers, fooled + cycle * again + identity * same)
        seen = _distance(styled(s), 1.0) + _distance(styled(x_styled.detach()), 0.0)
        seen = seen + _distance(plain(x), 1.0) + _distance(plain(s_plain.detach()), 0.0)
        _step(critics, 0.5 * seen)
    assert isinstance(there, Generator)
    return there.eval().requires_grad_(False)


def warmest(images: Tensor, count: int) -> Tensor:
    """Places of the ``count`` images with most red against blue; of grey images, the brightest."""
    means = as_floats(images).mean(dim=(2, 3))
    warmth = means[:, 0] - means[:, 2] if images.shape[1] >= 3 else means.mean(1)
    return warmth.topk(min(count, len(images))).indices


def _distance(said: Tensor, truth: float) -> Tensor:
    return (said - truth).square().mean()


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
