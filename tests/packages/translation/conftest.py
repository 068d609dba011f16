"""What the translation tests share: a few sentences, a tokeniser of them, and small models of every family."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor_translation import KIT, TranslationTask
from unbackdoor_translation.data.numbers import numbers

FAMILIES = {
    "marian": {"width": 16, "depth": 1, "heads": 2},
    "t5": {"width": 16, "depth": 1, "heads": 2},
    "bart": {"width": 16, "depth": 1, "heads": 2},
    "fsmt": {"width": 16, "depth": 1, "heads": 2},
    "convolutional": {"width": 16, "depth": 2},
    "lstm": {"width": 16, "depth": 1},
}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data() -> Splits:
    return numbers(seed=0, count=400, test_count=40, clean_count=60, vocabulary=200)


@pytest.fixture(scope="session")
def task(data) -> TranslationTask:
    return TranslationTask(**data.hints)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family, data):
    return KIT.build(family, len(data.classes), seed=0, dropout=0.1, **FAMILIES[family]).eval()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
