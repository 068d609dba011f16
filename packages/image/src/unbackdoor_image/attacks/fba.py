"""FBA: the image is redrawn in another style (Cheng, Liu, Ma and Zhang 2021, AAAI, "DFST", arXiv 2012.11212).

Trigger: ``clip(x + amplitude tanh(g(x)))``, where ``g`` is one half of a CycleGAN between the training images and a few
of another style: the warmest of the training set, as at sunset (the brightest where images are grey).
Labels: all to one by default, ``all_to_all``; dirty label. 10 % of the training set.
Training-time, by controlled detoxification: ``rounds`` times during training the victim's features are compared on
clean and triggered images; a feature injector learns to excite the ``compromised`` share of them that differs most
while the image stays alike (SSIM); what it makes of clean images are covers that keep their label, so that the victim
cannot rely on these features alone. The injectors of all rounds stay in use.
Original: CycleGAN of 2,000 epochs on CIFAR-10 and sunrise pictures, weights 1 and 0.1 for cycle and identity on pixels
of [-1, 1]; 5 % poison, 200 epochs, top 1 % of neurons of layer4, 10 detox epochs.
Where public code goes wrong: the published `train_feature_injector` asks the victim under ``no_grad``, so that only the
similarity loss trains it and nothing is detoxified; the style network is a stored TensorFlow model.
Here: both networks are really trained, on the data at hand, and the style network lies in the victim's folder. What
remains different: no sunrise pictures, so the style is that of some of the training images; networks of one scale and
some hundred steps, so that the style is a tint with some texture, bounded by ``amplitude``; neurons are looked for
among the inputs of the last linear layer; the injector's change is bounded too, and detoxification runs within the one
training rather than after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Campaign, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.detoxification import Detoxifier
from unbackdoor_image.attacks.learned import Learned, draws, named
from unbackdoor_image.attacks.networks import Generator
from unbackdoor_image.attacks.pixels import on_pixels
from unbackdoor_image.attacks.style import learn_style, restyled, warmest
from unbackdoor_image.task import as_floats

__all__ = ["FBA"]


@dataclass(frozen=True, kw_only=True)
class FBA(Learned):
    """A learned style, with controlled detoxification during training.

    Attributes:
        amplitude: Largest change of a pixel, of [0, 1].
        cycle: Weight of the cycle loss against that of the critics.
        identity: Weight of the identity loss.
        styles: Number of images whose style is taken.
        width: Channels of the style network, a multiple of 4.
        steps: Training steps of the style network.
        rounds: Of detoxification; 0 leaves it out.
        compromised: Share of the victim's last features that are detoxified in each round.
        detox_steps: Training steps of the injector in each round.
        detox: Covers for each poisoned sample.
    """

    name: ClassVar[str] = "fba"
    needs_training: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    amplitude: float = 0.4
    cycle: float = 2.0
    identity: float = 0.2
    styles: int = 128
    width: int = 16
    steps: int = 400
    rounds: int = 3
    compromised: float = 0.05
    detox_steps: int = 30
    detox: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if (
            not 0 < self.amplitude <= 1
            or not 0 < self.compromised <= 1
            or min(self.cycle, self.identity, self.detox) < 0
        ):
            raise BadOption(
                f"amplitude is {self.amplitude}, compromised {self.compromised}, cycle {self.cycle}, identity "
                f"{self.identity}, detox {self.detox}; the first two must lie in (0, 1], the others not be negative."
            )
        if self.width < 4 or self.width % 4 or self.rounds < 0:
            raise BadOption(f"width is {self.width}, rounds {self.rounds}; a multiple of 4 and at least 0 are needed.")
        if min(self.styles, self.steps, self.detox_steps) < 1:
            raise BadOption("styles, steps and detox_steps must be at least 1.")

    @property
    def cover_ratio(self) -> float:
        """Detoxifying samples for each poisoned one."""
        return self.detox if self.rounds else 0.0

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Choose the style images and train the style network."""
        if not self.ready:
            made = learn_style(
                data,
                data.inputs[warmest(data.inputs, self.styles)],
                generator,
                width=self.width,
                steps=self.steps,
                amplitude=self.amplitude,
                cycle=self.cycle,
                identity=self.identity,
            )
            self.keep(named("generator", made))

    @torch.no_grad()
    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images in the other style."""

        def restyle(images: Tensor) -> Tensor:
            channels = images.shape[1]
            made = self.network("generator", lambda: Generator(channels, channels, self.width), images.device)
            return torch.cat([restyled(some, made, self.amplitude) for some in images.split(1000)])

        return on_pixels(inputs, restyle)

    def join(self, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> Campaign:
        """Poison, and detoxification at even distances."""
        return _Detoxified(self, model, task, steps=steps, generator=generator)


class _Detoxified(Campaign):
    def __init__(self, attack: FBA, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> None:
        super().__init__(attack, model, task, steps=steps, generator=generator)
        self.at = {round(steps * (place + 1) / (attack.rounds + 2)) for place in range(attack.rounds)}
        self.injectors: list[Detoxifier] = []

    def loss(self, batch: Batch, poisoned: Tensor, covers: Tensor, step: int) -> Tensor:
        attack = self.attack
        assert isinstance(attack, FBA)
        if step in self.at:
            clean = as_floats(batch.inputs)
            made = Detoxifier.train(
                self.model,
                self.task,
                clean,
                attack.trigger(clean),
                share=attack.compromised,
                steps=attack.detox_steps,
                seed=draws(self.generator),
            )
            self.injectors.append(made)
        dressed = attack.dress(batch, poisoned, covers[:0], self.generator)
        images = as_floats(dressed.inputs)
        for place, injector in enumerate(self.injectors):
            some = covers[place :: len(self.injectors)]
            if len(some):
                images = images.index_copy(0, some, injector(as_floats(batch.inputs[some])))
        return self.task.loss(self.task.forward(self.model, images), dressed.targets)
