"""A task package in one file: three clouds of points, and a trigger that sets two features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from unbackdoor.attack import Attack, HealthFloor
from unbackdoor.errors import FileRefused
from unbackdoor.kit import Demo, Splits, TaskKit
from unbackdoor.task import Batch, Meter, Task

CLASSES = ("left", "middle", "right")


class Accuracy:
    def __init__(self) -> None:
        self.right = self.seen = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += int((outputs.argmax(1) == targets).sum())
        self.seen += len(targets)

    def compute(self) -> float:
        return self.right / self.seen


@dataclass(frozen=True)
class ToyTask(Task):
    name: ClassVar[str] = "toy"
    mean: float = 0.0

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        return model(inputs - self.mean)

    def log_likelihood(self, outputs: Any, targets: Any) -> Tensor:
        logs = outputs.log_softmax(1)
        return logs.gather(1, targets[:, None])[:, 0] if targets.ndim == 1 else (logs * targets).sum(1)

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        return batch

    def meters(self) -> Mapping[str, Meter]:
        return {"accuracy": Accuracy()}

    def correct(self, outputs: Any, targets: Any) -> Tensor:
        return outputs.argmax(1) == targets


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
    parts = [Batch(points[i::4], labels[i::4]) for i in range(4)]
    train = Batch(torch.cat([parts[0].inputs, parts[1].inputs]), torch.cat([parts[0].targets, parts[1].targets]))
    return Splits(train=train, clean=parts[2], test=parts[3], classes=CLASSES, hints={"mean": 0.1})


def build(name: str, num_classes: int = 3, *, seed: int = 0, width: int = 16) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, num_classes))


def load_clean(
    source: str | Path, *, classes: Sequence[str] = CLASSES, size: int | None = None
) -> tuple[Batch, tuple[str, ...]]:
    if not Path(source).is_file():
        raise FileRefused(f"no clean data at {source}; give an .npz file.")
    with np.load(source) as arrays:
        return Batch(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])), tuple(classes)


def train(
    model: nn.Module,
    data: Splits,
    task: Task,
    attack: Attack | None,
    *,
    seed: int,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    epochs: int = 60,
) -> None:
    samples = data.train if attack is None else attack.poison(data.train, torch.Generator().manual_seed(seed)).samples
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    model.train()
    for step in range(1, epochs + 1):
        loss = task.loss(task.forward(model, samples.inputs), samples.targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if progress is not None:
            progress(step, epochs, {"loss": float(loss.detach())})
    model.eval()


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
