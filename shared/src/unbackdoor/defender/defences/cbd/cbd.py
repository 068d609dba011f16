"""Causality-inspired backdoor defence: a second network learns what a hastily trained one does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.defence import Build, TrainingDefence, train_plainly
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.schedule import Schedule, marks
from unbackdoor.errors import BadOption
from unbackdoor.measure import evaluating
from unbackdoor.network.last_layer import representation
from unbackdoor.network.readiness import fast_layout, inner_model
from unbackdoor.options import option
from unbackdoor.task import Batch, Task

__all__ = ["CBD", "Critic", "dependence", "sample_weights"]


def sample_weights(confounded: Tensor, deconfounded: Tensor) -> Tensor:
    """``w_n = l_B / (l_B + l_C)``, scaled to mean 1: float of shape ``(batch,)``, without a graph.

    Near 0 where the confounded network is sure of the label, which it is of poisoned samples first.

    Args:
        confounded: Losses ``l_B`` of the hastily trained network, shape ``(batch,)``.
        deconfounded: Losses ``l_C`` of the network in training.
    """
    first, second = confounded.detach(), deconfounded.detach()
    weights = first / (first + second).clamp(min=1e-8)
    return weights / weights.mean().clamp(min=1e-8)


class Critic(nn.Module):
    """A function of two vectors with Lipschitz constant 1 at most, after `project_`."""

    def __init__(self, first: int, second: int, generator: torch.Generator) -> None:
        """Two layers over the vectors side by side; ``second`` hidden units."""
        super().__init__()
        self.hidden, self.out = nn.Linear(first + second, second), nn.Linear(second, 1)
        with torch.no_grad():
            for layer in (self.hidden, self.out):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
                layer.bias.zero_()
        self.project_()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores of shape ``(batch,)``."""
        hidden = nn.functional.leaky_relu(self.hidden(torch.cat([first, second], dim=1)))
        scores: Tensor = self.out(hidden)
        return scores.squeeze(1)

    @torch.no_grad()
    def project_(self) -> None:
        """Divide each weight matrix by its largest singular value where that is above 1."""
        for layer in (self.hidden, self.out):
            layer.weight.div_(torch.linalg.matrix_norm(layer.weight, 2).clamp(min=1.0))


def dependence(critic: nn.Module, first: Tensor, second: Tensor, order: Tensor) -> Tensor:
    """``E D(z, r) - E D(z, r')`` with ``r' = r[order]``: a scalar.

    Its largest value over 1-Lipschitz ``D`` is the Wasserstein distance between the joint distribution of the pair and
    the product of its margins: 0 where they are independent.
    """
    difference: Tensor = critic(first, second).mean() - critic(first, second[order]).mean()
    return difference


_PUBLISHED = {
    "batch_size": 64,
    "lr": 0.1,
    "weight_decay": 1e-4,
    "schedule": "milestones",
    "milestones": "20 70",
}


@dataclass(frozen=True, kw_only=True)
class CBD(TrainingDefence):
    """Train one network hastily, so that it knows the trigger, then another that learns what the first does not."""

    name: ClassVar[str] = "cbd"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PUBLISHED,
        "authors": _PUBLISHED | {"dependence_weight": 0.0, "bottleneck": 0.0},
    }

    confounded_epochs: int = option(5, "passes of the hastily trained network")
    epochs: int = option(100, "passes of the network that is returned")
    dependence_weight: float = option(0.01, "weight of the dependence between both networks' representations")
    bottleneck: float = option(1e-4, "weight of half the mean square of the representation")
    critic_lr: float = option(1e-2, "learning rate of the critic (Adam)")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.03, "peak learning rate of SGD")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(5e-4, "L2 penalty of SGD")
    schedule: Schedule = option(
        "one-cycle", "learning rate of the second network: one-cycle, cosine, step, milestones or constant"
    )
    milestones: str = option("", "epochs after which its lr falls to a tenth, for schedule milestones")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        for name in ("dependence_weight", "bottleneck"):
            if getattr(self, name) < 0:
                raise BadOption(f"{name} is {getattr(self, name)}; a weight in the loss must be at least 0.")
        marks(self.milestones)
        if not self.critic_lr > 0:
            raise BadOption(f"critic_lr is {self.critic_lr}; it must be above 0.")

    def _train(self, build: Build, data: CleanSet, task: Task, run: Run) -> nn.Module:
        confounded, model = run.model, inner_model(build(run.generator.initial_seed() + 1))
        train_plainly(
            confounded,
            data,
            task,
            run,
            Tensor.mean,
            steps=self._steps(self.confounded_epochs, len(data), self.batch_size),
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="constant",
            message="training the confounded network",
        )
        run.model = model.train()
        with evaluating(confounded), fast_layout(model), fast_layout(confounded):
            self._deconfound(model, confounded, data, task, run)
        return model

    def _deconfound(self, model: nn.Module, confounded: nn.Module, data: CleanSet, task: Task, run: Run) -> None:
        critic: Critic | None = None
        optimiser: torch.optim.Adam | None = None
        with representation(model) as mine, representation(confounded) as other:

            def objective(step: int, batch: Batch) -> Tensor:
                """Weighted likelihood, independence of the other representation, little information in the own."""
                nonlocal critic, optimiser
                fresh = task.augment(batch, run.generator, mix=0.0)
                values = -task.log_likelihood(task.forward(model, fresh.inputs), fresh.targets)
                with torch.no_grad():
                    known = -task.log_likelihood(task.forward(confounded, fresh.inputs), fresh.targets)
                loss = (sample_weights(known, values) * values).mean()
                if self.bottleneck:
                    loss = loss + self.bottleneck * mine.vectors.square().sum(dim=1).mean() / 2
                if self.dependence_weight:
                    z, r = mine.vectors, other.vectors.detach()
                    if critic is None or optimiser is None:
                        critic = Critic(z.shape[1], r.shape[1], run.generator).to(z)
                        optimiser = torch.optim.Adam(critic.parameters(), lr=self.critic_lr)
                    order = torch.randperm(len(r), generator=run.generator).to(r.device)
                    _sharpen(critic, optimiser, z.detach(), r, order)
                    loss = loss + self.dependence_weight * dependence(critic, z, r, order)
                return loss

            finetune(
                [p for p in model.parameters() if p.requires_grad],
                objective,
                data,
                run,
                steps=self._steps(self.epochs, len(data), self.batch_size),
                batch_size=min(self.batch_size, len(data)),
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                schedule=self.schedule,
                milestones=marks(self.milestones),
                message="training the deconfounded network",
            )


def _sharpen(critic: Critic, optimiser: torch.optim.Optimizer, z: Tensor, r: Tensor, order: Tensor) -> None:
    """One step of the critic up its own objective, then back among the 1-Lipschitz functions."""
    optimiser.zero_grad(set_to_none=True)
    (-dependence(critic, z, r, order)).backward()
    optimiser.step()
    critic.project_()
