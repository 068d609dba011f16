"""Controlled detoxification: images that excite a victim's compromised features without a trigger (DFST)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbackdoor.errors import UnsupportedModel
from unbackdoor.measure import evaluating
from unbackdoor.task import Task
from unbackdoor_image.attacks.learned import seeded
from unbackdoor_image.attacks.networks import Generator

__all__ = ["Detoxifier", "last_features", "ssim"]


def ssim(first: Tensor, second: Tensor, window: int = 7) -> Tensor:
    """Mean structural similarity of images in [0, 1] over windows (Wang et al. 2004, Eq. 13); 1 for equal images."""
    side = min(window, *first.shape[-2:])

    def mean(images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, side, stride=1)

    a, b = mean(first), mean(second)
    spread_a, spread_b, both = mean(first * first) - a * a, mean(second * second) - b * b, mean(first * second) - a * b
    shown = (2 * a * b + 1e-4) * (2 * both + 9e-4) / ((a * a + b * b + 1e-4) * (spread_a + spread_b + 9e-4))
    return shown.mean()


def last_features(model: nn.Module, task: Task, images: Tensor) -> Tensor:
    """What goes into the model's last linear layer, ``(batch, features)``, with its gradient.

    Raises:
        UnsupportedModel: The model calls no linear layer.
    """
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        task.forward(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UnsupportedModel("the victim has no linear layer whose inputs could be detoxified; give rounds=0.")
    return seen[-1].float().flatten(1)


@dataclass(frozen=True)
class Detoxifier:
    """A feature injector: a network that changes an image a little so that chosen features are excited."""

    network: nn.Module
    amplitude: float = 0.15

    def __call__(self, images: Tensor) -> Tensor:
        """Images in [0, 1], changed; no gradient."""
        with torch.no_grad():
            return self._changed(images)

    def _changed(self, images: Tensor) -> Tensor:
        change: Tensor = self.network(images.float()).tanh().to(images.dtype)
        return (images + self.amplitude * change).clamp(0, 1)

    @classmethod
    def train(
        cls,
        model: nn.Module,
        task: Task,
        clean: Tensor,
        triggered: Tensor,
        *,
        share: float,
        steps: int,
        seed: int,
        similarity: float = 0.3,
    ) -> Detoxifier:
        """Train it against ``model`` as it is; the model's weights get no gradient.

        Args:
            model: The victim.
            task: How to ask it.
            clean: Images in [0, 1].
            triggered: The same with the trigger on.
            share: Of the features, those that the trigger raises most are compromised; at least one.
            steps: Of Adam.
            seed: Of the network's weights.
            similarity: Weight of ``1 - ssim`` against the share of the features' excitation that is missing.
        """
        channels = clean.shape[1]
        network = seeded(lambda: Generator(channels, channels, 8), seed).to(clean.device)
        made = cls(network)
        optimiser = torch.optim.Adam(network.parameters(), 0.01)
        with evaluating(model), torch.autocast(clean.device.type, enabled=False):
            with torch.no_grad():
                before, after = (last_features(model, task, images) for images in (clean, triggered))
            raised = (after - before).mean(0)
            chosen = raised.topk(max(1, round(share * len(raised)))).indices
            goal = after[:, chosen].mean(0)
            for _ in range(steps):
                images = made._changed(clean)
                reached = last_features(model, task, images)[:, chosen]
                short = (goal - reached).relu().square().mean() / goal.square().mean().clamp(min=1e-6)
                loss = short + similarity * (1 - ssim(images, clean))
                slopes = torch.autograd.grad(loss, list(network.parameters()))
                for parameter, slope in zip(network.parameters(), slopes, strict=True):
                    parameter.grad = slope
                optimiser.step()
        return made
