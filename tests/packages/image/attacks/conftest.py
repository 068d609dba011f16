"""Small images with classes, and attacks with short trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.task import Batch
from unbackdoor_image import KIT, ImageTask
from unbackdoor_image.models.small_cnn import SmallCNN

SHORT = {"steps": 5, "helper_steps": 5, "detox_steps": 2, "rounds": 1, "pgd_steps": 3, "bank": 4}


@pytest.fixture
def data(generator: torch.Generator) -> Batch:
    images = torch.rand(80, 3, 16, 16, generator=generator)
    targets = torch.arange(80) % 10
    images[:, 0] = 0.7 * images[:, 0] + 0.03 * targets[:, None, None]
    return Batch(images.clamp(0, 1), targets)


@pytest.fixture
def make() -> Callable[..., Any]:
    """``make(name, **options)``: the attack, with short trainings where it learns."""

    def made(name: str, **options: Any) -> Any:
        known = {f.name for f in fields(KIT.attacks[name])}
        return KIT.attacks[name](**{**{k: v for k, v in SHORT.items() if k in known}, **options})

    return made


@pytest.fixture
def trained(make: Callable[..., Any]) -> Callable[..., Any]:
    """``trained(name, data, **options)``: the attack after one epoch beside a victim."""

    def taught(name: str, data: Batch, **options: Any) -> Any:
        attack = make(name, **options)
        splits = Splits(data, data, data, tuple("0123456789"))
        KIT.train(SmallCNN(10, 3, 4), splits, ImageTask(), attack, seed=0, epochs=1, batch_size=40)
        return attack

    return taught
