"""Vanilla fine-tuning: the baseline of both papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import Fitted
from unbackdoor.defender.loss import label_loss
from unbackdoor.defender.purifier import Run, option
from unbackdoor.network.norms import check_norm_mode, train_norms
from unbackdoor.task import Batch, Task

__all__ = ["FT"]


@dataclass(frozen=True, kw_only=True)
class FT(Fitted):
    """Fine-tune all trainable weights on the clean samples; the control beside every defence."""

    name: ClassVar[str] = "ft"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"epochs": 125, "schedule": "constant", "weight_decay": 0.0},
    }

    weight_decay: float = option(5e-4, "L2 penalty inside the optimiser")
    bn: Literal["update", "frozen"] = option("update", "BatchNorm in train mode, or with its stored statistics")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    strong: bool = option(False, "whether the model reads strongly augmented samples (Task.strong_augment)")
    without: str = option("", "families of strong changes to leave out, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        check_norm_mode(self.bn)

    @property
    def updates_buffers(self) -> bool:
        """BatchNorm's running statistics move with ``bn="update"``."""
        return self.bn == "update"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        train_norms(model, self.updates_buffers)
        without = self.without.split()

        def objective(step: int, batch: Batch) -> Tensor:
            """Eq. (1) of NFT, Eq. (4) of FIP, on augmented samples."""
            fresh = task.augment(batch, run.generator, mix=self.mixup)
            if self.strong:
                fresh = Batch(task.strong_augment(fresh.inputs, run.generator, without=without), fresh.targets)
            return label_loss(model, task, fresh)

        tuned = [p for p in model.parameters() if p.requires_grad]
        self.fit(tuned, objective, clean, run, message="fine-tuning")
        model.eval()
