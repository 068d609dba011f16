"""The command line with a toy task package, found as any other: by its entry point on the path."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unbackdoor_cli.main import main

TOY = Path(__file__).parent / "toy"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON object and nothing else."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of a refusal."""
        assert (self.code, self.out) == (2, ""), (self.code, self.out, self.err)
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err


@pytest.fixture
def toy_path(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(TOY)
    return TOY


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(toy_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command in an empty folder; words that are not text are made so."""

    def run(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return run


@pytest.fixture
def victim(call: Callable[..., Result], folder: Path) -> Path:
    assert call("attack", "--task", "toy", "--out", "victim").code == 0
    return folder / "victim"


@pytest.fixture
def samples(call: Callable[..., Result], folder: Path) -> Path:
    """The user's own labelled samples."""
    import unbackdoor_toy

    clean = unbackdoor_toy.blobs(seed=7).clean
    np.savez(folder / "clean.npz", x=clean.inputs.numpy(), y=clean.targets.numpy())
    return folder / "clean.npz"
