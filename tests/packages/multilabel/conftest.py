"""What the multi-label tests share: one thread, label rows, composed digits and image files made on the spot."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor_multilabel.data.digits import digits


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
def rows(generator: torch.Generator) -> Tensor:
    """Sixty label rows of six classes, each shown by 30 to 70 % of the images."""
    shares = torch.linspace(0.3, 0.7, 6)
    return (torch.rand(60, 6, generator=generator) < shares).long()


@pytest.fixture(scope="session")
def data() -> Splits:
    return digits(seed=0, train_count=400, clean_count=60, test_count=80)


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """``jpeg(grey, width, height)``: the bytes of a JPEG of one grey level."""

    def make(level: int = 100, width: int = 12, height: int = 9) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.full((height, width, 3), level, dtype=np.uint8)).save(out, "JPEG")
        return out.getvalue()

    return make
