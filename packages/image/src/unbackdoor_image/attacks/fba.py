"""FBA: the image is redrawn in another style (Cheng, Liu, Ma and Zhang 2021, AAAI, "DFST", arXiv 2012.11212).

Trigger: ``clip(x + amplitude tanh(g(x)))``, where ``g`` is trained to give every image the style of a few others: the
warmest of the training set, as at sunset (the brightest where images are grey). Style means mean and deviation of each
channel, of the pixels and of two layers of a small network; content means the deepest features of the same network.
Labels: all to one by default, ``all_to_all``; dirty label. 10 % of the training set.
Training-time, by controlled detoxification: ``rounds`` times during training the victim's features are compared on
clean and triggered images; a shallow network learns to excite the ``compromised`` share of them that differs most while
hardly changing the image; its images then are covers that keep their label, so the victim cannot rely on these
features.
Original: style by CycleGAN (sunrise pictures), 5 % poison, 200 epochs, top 1 % of neurons of layer4, 10 detox epochs.
Where public code goes wrong: the published `train_feature_injector` asks the victim under ``no_grad``, so that only the
similarity loss trains it and nothing is detoxified; the style network is a stored TensorFlow model.
Here: both networks are really trained, on the data at hand, and the style network lies in the victim's folder. It is no
CycleGAN: matching statistics gives a tint with some texture, no new content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.attack import Campaign, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.detoxification import Detoxifier
from unbackdoor_image.attacks.learned import Learned, batches, draws, named, seeded, straight_through, train_helper
from unbackdoor_image.attacks.networks import Generator
from unbackdoor_image.attacks.pixels import on_pixels
from unbackdoor_image.models.small_cnn import SmallCNN
from unbackdoor_image.task import as_floats

__all__ = ["FBA"]


@dataclass(frozen=True, kw_only=True)
class FBA(Learned):
    """A learned style, with controlled detoxification during training.

    Attributes:
        amplitude: Largest change of a pixel, of [0, 1].
        content: Weight of the content loss against the style loss.
        styles: Number of images whose style is taken.
        width: Channels of the style network, a multiple of 4.
        helper_steps: Training steps of the network that gives the features.
        steps: Training steps of the style network.
        rounds: Of detoxification; 0 leaves it out.
        compromised: Share of the victim's last features that are detoxified.
        detox_steps: Training steps of the shallow network in each round.
        detox: Covers for each poisoned sample.
    """

    name: ClassVar[str] = "fba"
    needs_training: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    amplitude: float = 0.4
    content: float = 1.0
    styles: int = 64
    width: int = 16
    helper_steps: int = 300
    steps: int = 400
    rounds: int = 3
    compromised: float = 0.05
    detox_steps: int = 30
    detox: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not 0 < self.amplitude <= 1 or not 0 < self.compromised <= 1 or min(self.content, self.detox) < 0:
            raise BadOption(
                f"amplitude is {self.amplitude}, compromised {self.compromised}, content {self.content}, detox "
                f"{self.detox}; the first two must lie in (0, 1], the others must not be negative."
            )
        if self.width < 4 or self.width % 4 or self.rounds < 0:
            raise BadOption(f"width is {self.width}, rounds {self.rounds}; a multiple of 4 and at least 0 are needed.")
        if min(self.styles, self.helper_steps, self.steps, self.detox_steps) < 1:
            raise BadOption("styles, helper_steps, steps and detox_steps must be at least 1.")

    @property
    def cover_ratio(self) -> float:
        """Detoxifying samples for each poisoned one."""
        return self.detox if self.rounds else 0.0

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train the network that gives features, choose the style images and train the style network."""
        if self.ready:
            return
        helper = train_helper(data, self.num_classes, generator, steps=self.helper_steps)
        channels = data.inputs.shape[1]
        means = as_floats(data.inputs).mean(dim=(2, 3))
        warmth = means[:, 0] - means[:, 2] if channels >= 3 else means.mean(1)
        chosen = warmth.topk(min(self.styles, len(data))).indices
        wanted = [part.detach().mean(0, keepdim=True) for part in _style(helper, as_floats(data.inputs[chosen]))]
        made = seeded(lambda: Generator(channels, channels, self.width), draws(generator)).to(data.inputs.device)
        made.train()
        optimiser = torch.optim.Adam(made.parameters(), 2e-3)
        for batch in batches(data, 64, self.steps, generator):
            shown = straight_through(_styled(batch.inputs, made, self.amplitude), data.inputs)
            style = torch.stack([(a - b).square().mean() for a, b in zip(_style(helper, shown), wanted, strict=True)])
            kept = (_layers(helper, shown)[-1] - _layers(helper, batch.inputs)[-1]).square().mean()
            detail = _details(shown) - _details(batch.inputs)
            loss = style.sum() + self.content * (kept + 10 * detail.square().mean())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        self.keep(named("generator", made))

    @torch.no_grad()
    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images in the other style."""

        def restyle(images: Tensor) -> Tensor:
            channels = images.shape[1]
            made = self.network("generator", lambda: Generator(channels, channels, self.width), images.device)
            return torch.cat([_styled(some, made, self.amplitude) for some in images.split(1000)])

        return on_pixels(inputs, restyle)

    def join(self, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> Campaign:
        """Poison, and detoxification at even distances."""
        return _Detoxified(self, model, task, steps=steps, generator=generator)


class _Detoxified(Campaign):
    def __init__(self, attack: FBA, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> None:
        super().__init__(attack, model, task, steps=steps, generator=generator)
        self.at = {round(steps * (place + 1) / (attack.rounds + 2)) for place in range(attack.rounds)}
        self.detoxifier: Detoxifier | None = None

    def loss(self, batch: Batch, poisoned: Tensor, covers: Tensor, step: int) -> Tensor:
        attack = self.attack
        assert isinstance(attack, FBA)
        if step in self.at:
            clean = as_floats(batch.inputs)
            self.detoxifier = Detoxifier.train(
                self.model,
                self.task,
                clean,
                attack.trigger(clean),
                share=attack.compromised,
                steps=attack.detox_steps,
                seed=draws(self.generator),
            )
        dressed = attack.dress(batch, poisoned, covers[:0], self.generator)
        if self.detoxifier is None or len(covers) == 0:
            return self.task.loss(self.task.forward(self.model, dressed.inputs), dressed.targets)
        images = as_floats(dressed.inputs).index_copy(0, covers, self.detoxifier(as_floats(batch.inputs[covers])))
        return self.task.loss(self.task.forward(self.model, images), dressed.targets)


def _styled(images: Tensor, made: nn.Module, amplitude: float) -> Tensor:
    change: Tensor = made(images.float()).tanh().to(images.dtype)
    return (images + amplitude * change).clamp(0, 1)


def _layers(helper: SmallCNN, images: Tensor) -> list[Tensor]:
    first = helper.bn1(helper.conv1(images)).relu()
    second = helper.halve(helper.bn2(helper.conv2(first)).relu())
    return [first, second, helper.bn3(helper.conv3(second)).relu()]


def _style(helper: SmallCNN, images: Tensor) -> list[Tensor]:
    """Mean and deviation of each channel: of the pixels and of two layers, each ``(batch, 2 * channels)``."""
    found = []
    for maps in (3 * images, *_layers(helper, images)[:2]):
        spread = maps.flatten(2).var(2, unbiased=False).add(1e-6).sqrt()
        found.append(torch.cat([maps.mean(dim=(2, 3)), spread], dim=1))
    return found


def _details(images: Tensor) -> Tensor:
    """Differences of neighbours: what stays when colours change."""
    down, right = images[..., 1:, :-1] - images[..., :-1, :-1], images[..., :-1, 1:] - images[..., :-1, :-1]
    return torch.cat([down, right], dim=1)
