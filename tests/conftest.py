"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and the same sum has the same order everywhere


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """For networks that nobody trained: that they are at chance is said, but no cause of it is searched for."""
    monkeypatch.setattr("unbackdoor.defender.preflight.check.misreading", lambda *_: None)


@pytest.fixture(scope="session")
def root() -> Path:
    """Top of the checkout."""
    return Path(__file__).resolve().parent.parent
