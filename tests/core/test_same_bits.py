"""Methods that a change of the house is not meant to change: the same weights as before, bit for bit.

The hashes were written before the change by running this file as a program. Sums of floats have another order on other
processors and in other versions of torch, so a file says which wrote it, and elsewhere nothing can be told.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from unbackdoor import purify
from unbackdoor.registry import method
from unbackdoor.testing import ClassificationTask, TinyVictim, tiny_models, tiny_victim

FILE = Path(__file__).parents[1] / "fixtures" / "same_bits.json"
CPU = Path("/proc/cpuinfo")
MODEL = (
    [line.partition(": ")[2] for line in CPU.read_text().splitlines() if "model name" in line] if CPU.exists() else []
)
HERE = [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), *MODEL[:1]]
SHORT = {
    "steps": 12, "teacher_steps": 6, "unlearn_steps": 6, "end_steps": 6, "batch_size": 16, "rounds": 2, "passes": 2,
    "ascent_steps": 2, "solver_steps": 2, "search_steps": 2, "prune_step": 0.25, "trace_samples": 8, "trace_every": 2,
}  # fmt: skip
PLAIN = {"max_clean_drop": 100.0, "holdout": 0.0}  # nothing is judged
CASES = {
    **{name: (name, None, {}) for name in (
        "anp", "awm", "bn-only", "clp", "fine-pruning", "fst", "ft", "ft-sam", "i-bau", "mcr", "nad", "rnp", "sam",
        "sau", "tsbd",
    )},
    "nft, the paper's objective": ("nft", "paper", {}),
    "f-fip, the paper's objective": ("f-fip", "paper", {}),
    "ft, with MixUp": ("ft", None, {"mixup": 1.0}),
    "anp, BatchNorm in train mode": ("anp", None, {"bn": "update", "site": "norm"}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    given = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(given)


@lru_cache(maxsize=1)
def trained() -> TinyVictim:
    return tiny_victim(steps=40)


def hash_of(case: str) -> str:
    name, preset, options = CASES[case]
    known = method(name).__dataclass_fields__
    given = {key: value for key, value in (SHORT | PLAIN | options).items() if key in known}
    _, report = purify(
        trained().model,
        trained().clean,
        task=ClassificationTask(),
        method=method(name).make(preset, **given),
        anyway=True,
    )
    return report.hash_after


def hash_on_architecture(kind: str) -> str:
    tiny = tiny_models()[kind]
    made = method("nft").make("paper", steps=4, batch_size=4, holdout=0.0)
    return purify(tiny.build(), tiny.batch(), task=ClassificationTask(), method=made, anyway=True)[1].hash_after


def known() -> dict[str, str]:
    stored = json.loads(FILE.read_text())
    if stored["on"] != HERE:
        pytest.skip(f"written on {stored['on']}, this is {HERE}")
    found: dict[str, str] = stored["hashes"]
    return found


@pytest.mark.parametrize("asked", CASES)
def test_method_gives_the_bits_that_it_gave(asked: str) -> None:
    assert known()[asked] == hash_of(asked)


@pytest.mark.parametrize("kind", tiny_models())
def test_masks_give_the_bits_that_they_gave_on_every_architecture(kind: str) -> None:
    assert known()[kind] == hash_on_architecture(kind)


if __name__ == "__main__":
    torch.set_num_threads(1)
    hashes = {case: hash_of(case) for case in CASES} | {kind: hash_on_architecture(kind) for kind in tiny_models()}
    FILE.write_text(json.dumps({"on": HERE, "hashes": hashes}, indent=1) + "\n")
    sys.stdout.write(f"{FILE}\n")
