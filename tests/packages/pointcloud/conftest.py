"""What the tests of point clouds share: one thread, a generator, a few clouds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor_pointcloud.data.shapes import shapes


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def clouds(generator: torch.Generator) -> Tensor:
    return torch.randn(6, 40, 3, generator=generator)


@pytest.fixture(scope="session")
def bodies() -> Splits:
    return shapes(seed=0, points=64, count=240)
