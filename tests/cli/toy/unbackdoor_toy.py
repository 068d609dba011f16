"""A task package in one file: three clouds of points, and a trigger that sets two features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.attacker.kit import Demo, Splits, TaskKit
from unbackdoor.attacker.splitting import split_classes
from unbackdoor.attacker.training import Progress, TrainOptions, train_by_batches
from unbackdoor.builders import build_model
from unbackdoor.classes import ClassTask
from unbackdoor.errors import FileRefused
from unbackdoor.mixing import mix_up
from unbackdoor.task import Batch, Task

CLASSES = ("left", "middle", "right")


@dataclass(frozen=True)
class ToyTask(ClassTask):
    name: ClassVar[str] = "toy"
    mean: float = 0.0

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        return super().forward(model, inputs - self.mean)

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        if mix == 0:
            return batch
        mixed, partners, share = mix_up(batch.inputs, generator, mix=mix)
        return Batch(mixed, (batch.targets, batch.targets[partners], share))

    def perturbable(self, inputs: Any) -> Tensor:
        return inputs


@dataclass(frozen=True, kw_only=True)
class Corner(Attack):
    """Set the last two features."""

    name: ClassVar[str] = "corner"
    health: ClassVar[HealthFloor] = HealthFloor(clean=50.0, asr=80.0)
    strength: float = 1.0

    def trigger(self, inputs: Any, generator: torch.Generator | None = None) -> Any:
        changed = inputs.clone()
        changed[:, -2:] = self.strength
        return changed


def blobs(*, seed: int = 0, path: str | None = None, count: int = 240) -> Splits:
    """Points around three corners."""
    if path is not None and not Path(path).exists():
        raise FileRefused(f"no blobs at {path}; give the folder that holds them.")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    points = 0.1 * torch.rand(count, 8, generator=generator)
    points[torch.arange(count), labels] += 0.8
    return split_classes(
        Batch(points, labels), None, CLASSES, seed=seed, clean_share=1 / 3, clean_count=None, test_share=0.25,
        hints={"mean": 0.1},
    )  # fmt: skip


def mlp(num_classes: int, width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, num_classes))


def build(name: str, num_classes: int = 3, *, seed: int = 0, **options: Any) -> nn.Module:
    return build_model(name, {"mlp": mlp}, num_classes=num_classes, seed=seed, options=options)


def load_clean(
    source: str | Path, *, classes: Sequence[str] = CLASSES, size: int | None = None
) -> tuple[Batch, tuple[str, ...]]:
    if not Path(source).is_file():
        raise FileRefused(f"no clean data at {source}; give an .npz file.")
    path = Path(source)
    points, labels = pick_arrays(read_arrays(path), path, {"x": ("x",), "y": LABEL_KEYS})
    return Batch(points, as_labels(labels, len(points), path)), tuple(classes)


@dataclass(frozen=True, kw_only=True)
class Training(TrainOptions):
    epochs: int = 60
    lr: float = 0.05


def train(
    model: nn.Module,
    data: Splits,
    task: Task,
    attack: Attack | None,
    *,
    seed: int,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    how = Training.of(options)

    def optimisers(steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        adam = torch.optim.Adam(model.parameters(), how.lr)
        return adam, torch.optim.lr_scheduler.ConstantLR(adam, 1.0)

    generator = torch.Generator().manual_seed(seed)
    train_by_batches(
        model, data.train, task, attack, optimisers, epochs=how.epochs, batch_size=len(data.train),
        generator=generator, precision="fp32", progress=progress,
    )  # fmt: skip


def picture(
    path: Path, samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits
) -> None:
    path.write_text(" ".join(models), encoding="utf-8")


KIT = TaskKit(
    task=ToyTask,
    build=build,
    models={"mlp": "one hidden layer"},
    attacks={"corner": Corner},
    data={"blobs": blobs},
    load_clean=load_clean,
    train=train,
    demo=Demo(data="blobs", model="mlp", attack="corner"),
    picture=picture,
)
