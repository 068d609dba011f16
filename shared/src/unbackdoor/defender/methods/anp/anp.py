"""Adversarial neuron pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.pruning import Course, MaskSite, neuron_mask, prune_below, prune_within
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights, NeuronMask
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.tolerance import AccuracyTolerance, check_drop
from unbackdoor.errors import BadOption
from unbackdoor.network.gradients import slopes
from unbackdoor.network.norms import check_norm_mode, train_norms
from unbackdoor.task import Batch, Task

__all__ = ["ANP", "NeuronNoise"]


class NeuronNoise:
    r"""``(m + delta) W`` and ``(1 + xi) b``: relative perturbations of neurons' weights and biases.

    Biases are those of layers and of normalisations alike; weights are perturbed where ``mask`` has a site.
    """

    def __init__(self, model: nn.Module, mask: NeuronMask) -> None:
        """Take the biases of ``model``, which ``mask`` is not attached to yet."""
        self.mask, self.whole = mask, FullWeights(model)
        self.biases = {
            name: value
            for name, value in self.whole.parameters().items()
            if value.ndim == 1 and name.rpartition(".")[2].startswith(("bias", "in_proj_bias"))
        }

    @contextmanager
    def on(self, delta: Mapping[str, Tensor], xi: Mapping[str, Tensor]) -> Iterator[None]:
        """Perturb inside; ``delta`` and ``xi`` have the shapes of masks and biases."""
        masks = {name: value + delta[name] for name, value in self.mask.parameters().items()}
        biases = {name: value.detach() * (1 + xi[name]) for name, value in self.biases.items()}
        with self.mask.substituted(masks), self.whole.substituted(biases):
            yield

    def worst(
        self, loss: Callable[[], Tensor], eps: float, steps: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``argmax`` of ``loss`` over ``||delta||_inf, ||xi||_inf <= eps``: signed steps from a random start.

        Each step has length ``eps / steps`` and ends within the box.
        """
        sizes = self.mask.parameters() | self.biases
        noise = {
            name: torch.empty(value.shape, dtype=value.dtype).uniform_(-eps, eps, generator=generator).to(value.device)
            for name, value in sizes.items()
        }
        for _ in range(steps):
            leaves = {name: value.requires_grad_() for name, value in noise.items()}
            with self.on(leaves, leaves):
                moves = slopes(loss(), list(leaves.values()), what="the neurons that are perturbed")
            noise = {
                name: value.detach()
                if slope is None
                else (value.detach() + eps / steps * slope.sign()).clamp(-eps, eps)
                for (name, value), slope in zip(leaves.items(), moves, strict=True)
            }
        return {name: noise[name] for name in self.mask.parameters()}, {name: noise[name] for name in self.biases}


@dataclass(frozen=True, kw_only=True)
class ANP(Purifier):
    """ANP (Wu and Wang, NeurIPS 2021): prune the neurons whose perturbation brings the backdoor out."""

    name: ClassVar[str] = "anp"
    discrete: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 2000,
            "batch_size": 128,
            "lr": 0.2,
            "schedule": "constant",
            "threshold": 0.2,
            "holdout": 0.0,
            "max_clean_drop": 100.0,
        },
        "authors": {
            "steps": 2000,
            "batch_size": 128,
            "lr": 0.2,
            "schedule": "constant",
            "site": "norm",
            "bn": "update",
            "threshold": 0.2,
            "holdout": 0.0,
            "max_clean_drop": 100.0,
        },
    }

    steps: int = option(200, "optimiser steps of the masks")
    batch_size: int = option(64, "samples a step")
    lr: float = option(0.02, "peak learning rate of SGD on the masks")
    momentum: float = option(0.9, "momentum of SGD")
    schedule: Schedule = option("constant", "learning rate over the run: one-cycle, cosine, step or constant")
    eps: float = option(0.4, "largest relative perturbation of a neuron's weights and bias")
    noise_steps: int = option(1, "signed steps of the perturbation; 0 for none")
    alpha: float = option(0.2, "share of the loss without perturbation")
    site: MaskSite = option("auto", "masks on weight, or on BatchNorm's scale (norm); auto: norm if there is any")
    bn: Literal["frozen", "update"] = option("frozen", "BatchNorm with its stored statistics, or in train mode")
    threshold: float | None = option(None, "masks up to this are pruned; none: as many as the tolerance allows")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that pruning may cost")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        check_norm_mode(self.bn)
        if self.site not in get_args(MaskSite):
            raise BadOption(f"no mask site {self.site!r}. Known: auto, weight, norm.")
        if self.site != "norm" and self.bn == "update":
            raise BadOption(
                f"site={self.site!r} with bn='update' may mask nothing: BatchNorm in train mode divides masks on "
                "weights out again. Use site='norm', or bn='frozen'."
            )
        if not self.eps >= 0 or not 0 <= self.alpha <= 1 or self.noise_steps < 0:
            raise BadOption(
                f"eps is {self.eps}, alpha {self.alpha}, noise_steps {self.noise_steps}; allowed are eps and "
                "noise_steps of at least 0 and alpha in [0, 1]."
            )
        check_drop(self.max_clean_drop)

    @property
    def updates_buffers(self) -> bool:
        """BatchNorm's running statistics move with ``bn="update"``, as in the authors' code."""
        return self.bn == "update"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop)
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        mask = neuron_mask(model, probe, self.site, self.skip.split())
        noise = NeuronNoise(model, mask)
        run.notices += mask.notices

        def objective(step: int, batch: Batch) -> Iterator[Tensor]:
            """``alpha L(m W, b) + (1 - alpha) max L((m + delta) W, (1 + xi) b)``: the objective of ANP."""
            fresh = task.augment(batch, run.generator, mix=self.mixup)

            def loss() -> Tensor:
                return task.loss(task.forward(model, fresh.inputs), fresh.targets)

            if self.alpha > 0:
                yield self.alpha * loss()
            if self.alpha < 1:
                with noise.on(*noise.worst(loss, self.eps, self.noise_steps, run.generator)):
                    yield (1 - self.alpha) * loss()

        course = Course(mask)
        with mask:
            train_norms(model, self.updates_buffers)
            finetune(
                list(mask.parameters().values()),
                objective,
                clean,
                run,
                steps=self.steps,
                batch_size=self.batch_size,
                lr=self.lr,
                momentum=self.momentum,
                schedule=self.schedule,
                after_step=course,
                message="tuning masks against perturbed neurons",
            )
            train_norms(model, False)
            if self.threshold is None:
                prune_within(mask, course.scores(), tolerance, model, below=1.0)
            else:
                prune_below(mask, course.scores(), self.threshold, tolerance)
            mask.fold_()
