"""Neural mask fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.clean_loss import CleanLoss
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import NeuronMask
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.strength import Pace, attenuate_and_recover
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Task

__all__ = ["NFT", "mask_floor"]

MaskSchedule = Literal["exponential", "constant", "linear", "cosine", "logarithmic", "cubic"]
_REFERENCE_DEPTH = 20  # weight layers of the papers' ResNet-18 without its classifier


def mask_floor(
    schedule: MaskSchedule, alpha: float, beta: float, depth: Literal["absolute", "relative"]
) -> Callable[[int, int], float]:
    r"""``mu(l)``: the lower bound of masks at depth ``l`` of ``L``, Eq. (6) of NFT and its Sec. 5.3.

    ``"exponential"`` is the paper's ``alpha exp(-beta l)``; the others fall from ``alpha`` at ``l = 1`` to 0 at
    ``l = L`` (``"constant"`` does not fall). With ``depth="relative"`` the exponential's ``l`` is scaled so
    that any network is as deep as the papers' (20), since ``exp(-beta l)`` vanishes in deep ones.

    Returns:
        ``mu(l, L)``, a number in [0, 1].
    """

    def floor(layer: int, layers: int) -> float:
        at = (layer - 1) / max(layers - 1, 1)
        scaled = layer * _REFERENCE_DEPTH / layers if depth == "relative" else layer
        shape = {
            "exponential": math.exp(-beta * scaled),
            "constant": 1.0,
            "linear": 1 - at,
            "cosine": (1 + math.cos(math.pi * at)) / 2,
            "logarithmic": 1 - math.log(layer) / math.log(layers) if layers > 1 else 1.0,
            "cubic": (1 - at) ** 3,
        }
        return alpha * shape[schedule]

    return floor


# what the paper and its authors' code share: a plain optimisation from the given model
_PUBLISHED: dict[str, Any] = {
    "batch_size": 128,
    "lr": 0.05,
    "momentum": 0.95,
    "alpha": 0.8,
    "rounds": 1,
    "attenuation": 1.0,
    "holdout": 0.0,
    "clip": None,
    "mixup": 1.0,
    "distil": 0.0,
    "disturb": False,
    "embeddings": False,
    "scales": False,
}


@dataclass(frozen=True, kw_only=True)
class NFT(Purifier):
    """NFT (Karim et al., ECCV 2024): one mask value per neuron, tuned on MixUp data, then folded in."""

    name: ClassVar[str] = "nft"
    tunes_sparse: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PUBLISHED | {"steps": 400, "schedule": "constant", "mask_penalty": 5e-4},
        "authors": _PUBLISHED | {"steps": 1000, "schedule": "cosine", "mask_penalty": 1e-3, "site": "norm"},
    }

    steps: int = option(1200, "optimiser steps of all rounds together")
    batch_size: int = option(64, "samples a step")
    lr: float = option(0.3, "peak learning rate of SGD on the masks")
    momentum: float = option(0.9, "momentum of SGD")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    clip: float | None = option(None, "largest norm of the gradient of all masks together")
    site: Literal["weight", "norm"] = option("weight", "masks on weights (BatchNorm frozen) or on BatchNorm's scale")
    gates: Literal["each", "unit"] = option("each", "recurrent layers: a mask for each gate, or one for a hidden unit")
    mask_schedule: MaskSchedule = option("exponential", "how the masks' lower bound mu(l) falls with depth")
    alpha: float = option(0.0, "alpha of mu(l) = alpha exp(-beta l); 0 for no lower bound but 0")
    beta: float = option(0.5, "beta of mu(l) = alpha exp(-beta l)")
    depth: Literal["absolute", "relative"] = option("absolute", "l counts layers, or is scaled to a depth of 20")
    rounds: int = option(12, "rounds of attenuation and recovery at most; they share the steps")
    attenuation: float = option(0.7, "factor of each round on all values before they recover; 1 for none")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that the rounds may cost")
    holdout: float = option(0.2, "share of the clean samples that only judges the rounds")
    mask_penalty: float = option(0.0, "eta_c times n_c: weight of sum |1 - m|, divided by samples per class")
    mixup: float = option(0.3, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    distil: float = option(1.0, "share of the loss that asks for the given model's answers instead of labels")
    disturb: bool = option(True, "whether the model is tuned on disturbed inputs, where the task knows disturbances")
    reuse: int = option(8, "times that a mixture and the given model's answer to it are drawn; 1 for once")
    embeddings: bool = option(True, "masks on the rows of embedding tables too")
    scales: bool = option(True, "masks on the scales of GroupNorm, LayerNorm and their kind too")
    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if self.site not in ("weight", "norm"):
            raise BadOption(f"no mask site {self.site!r}. Known: weight, norm.")
        if self.gates not in ("each", "unit"):
            raise BadOption(f"no masks for gates {self.gates!r}. Known: each, unit.")
        if self.mask_schedule not in get_args(MaskSchedule):
            raise BadOption(f"no mask schedule {self.mask_schedule!r}. Known: {', '.join(get_args(MaskSchedule))}.")
        if self.depth not in ("absolute", "relative"):
            raise BadOption(f"no depth {self.depth!r}. Known: absolute, relative.")
        if not 0 <= self.alpha <= 1:
            raise BadOption(f"alpha is {self.alpha}; masks lie in [0, 1], so their lower bound must too.")

    @property
    def updates_buffers(self) -> bool:
        """Masks on BatchNorm's scale are tuned in train mode, as in the authors' code."""
        return self.site == "norm"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        clean_loss = CleanLoss.of(
            model, task, clean, run,
            distil=self.distil, mixup=self.mixup, batch_size=self.batch_size, reuse=self.reuse, disturb=self.disturb,
        )  # fmt: skip
        penalty = self.mask_penalty / task.samples_per_class(clean.samples.targets)
        floor = mask_floor(self.mask_schedule, self.alpha, self.beta, self.depth)
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        mask = NeuronMask(
            model,
            probe,
            site=self.site,
            gates=self.gates,
            floor=floor,
            skip=self.skip.split(),
            embeddings=self.embeddings,
            scales=self.scales,
        )
        run.notices += mask.notices
        pace = Pace()

        def tune(steps: int, share: float, message: str) -> None:
            samples, loss = clean_loss.prepare(steps, self.batch_size, self.mixup)

            def objective(step: int, batch: Batch) -> Tensor:
                """Eq. (9): the MixUp loss of Eq. (4) plus ``eta_c ||M_0 - M||_1``."""
                return loss(batch) + penalty * mask.distance() if penalty else loss(batch)

            finetune(
                list(mask.parameters().values()),
                objective,
                samples,
                run,
                steps=steps,
                batch_size=self.batch_size,
                lr=self.lr * pace.factor,
                momentum=self.momentum,
                schedule=self.schedule,
                clip=self.clip,
                after_step=mask.project_,
                message=f"tuning masks {message}",
            )

        with mask:
            attenuate_and_recover(
                mask,
                tune,
                model,
                task,
                clean,
                run,
                steps=self.steps,
                rounds=self.rounds,
                attenuation=self.attenuation,
                max_clean_drop=self.max_clean_drop,
                pace=pace,
            )
            mask.fold_()
