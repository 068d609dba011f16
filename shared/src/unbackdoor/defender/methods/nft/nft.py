"""Neural mask fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import Fitted
from unbackdoor.defender.loss import label_loss
from unbackdoor.defender.purifier import Run, option
from unbackdoor.defender.reparam import NeuronMask
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


@dataclass(frozen=True, kw_only=True)
class NFT(Fitted):
    """NFT (Karim et al., ECCV 2024): one mask value per neuron, tuned on MixUp data, then folded in."""

    name: ClassVar[str] = "nft"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"epochs": 100, "lr": 0.05, "schedule": "constant"},
        "authors": {"steps": 1000, "lr": 0.05, "schedule": "cosine", "mask_penalty": 1e-3, "site": "norm"},
    }

    steps: int = option(300, "optimiser steps; epochs overrides them")
    lr: float = option(1.0, "peak learning rate of SGD on the masks")
    momentum: float = option(0.95, "momentum of SGD, first-moment decay of Adam")
    site: Literal["weight", "norm"] = option("weight", "masks on weights (BatchNorm frozen) or on BatchNorm's scale")
    gates: Literal["each", "unit"] = option("each", "recurrent layers: a mask for each gate, or one for a hidden unit")
    mask_schedule: MaskSchedule = option("exponential", "how the masks' lower bound mu(l) falls with depth")
    alpha: float = option(0.8, "alpha of mu(l) = alpha exp(-beta l); 0 for no lower bound but 0")
    beta: float = option(0.5, "beta of mu(l) = alpha exp(-beta l)")
    depth: Literal["absolute", "relative"] = option("absolute", "l counts layers, or is scaled to a depth of 20")
    mask_penalty: float = option(5e-4, "eta_c times n_c: weight of sum |1 - m|, divided by samples per class")
    mixup: float = option(1.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
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
        penalty = self.mask_penalty / task.samples_per_class(clean.samples.targets)
        mask = NeuronMask(
            model,
            partial(task.forward, model, clean.samples[slice(0, 2)].inputs),
            site=self.site,
            gates=self.gates,
            floor=mask_floor(self.mask_schedule, self.alpha, self.beta, self.depth),
            skip=self.skip.split(),
        )
        run.notices += mask.notices

        def objective(step: int, batch: Batch) -> Tensor:
            """Eq. (9): the MixUp loss of Eq. (4) plus ``eta_c ||M_0 - M||_1``."""
            mixed = task.augment(batch, run.generator, mix=self.mixup)
            return label_loss(model, task, mixed) + penalty * mask.distance()

        with mask:
            self.fit(
                mask.parameters().values(), objective, clean, run, after_step=mask.project_, message="tuning masks"
            )
            mask.fold_()
