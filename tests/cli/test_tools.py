"""The tools that measure: what they write about a victim, and the command that would write it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def measured(toy: Path, tool: str, *words: str) -> Any:
    path = os.pathsep.join(filter(None, [str(toy), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(TOOLS / tool), *words, "--out", "some/where.json"]
    Path("some").mkdir()
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(Path("some/where.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_results_are_rows_of_each_method(victim: Path, toy_path: Path) -> None:
    words = ["--task", "toy", "--victim", str(victim), "--methods", "bn-only", "ft steps=4", "--seeds", "0", "1"]
    content = measured(toy_path, "results.py", *words)
    assert content["command"] == (
        "python tools/results.py --task toy --victim victims/victim --methods bn-only 'ft steps=4' --seeds 0 1 "
        "--out docs/results/where.json"
    )
    assert [(row["method"], row["seed"]) for row in content["rows"]] == [
        (method, seed) for seed in (0, 1) for method in ("none", "bn-only", "ft steps=4")
    ]
    assert all(0 <= row["asr"] <= 100 for row in content["rows"])


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_curve_begins_with_the_victim_and_ends_with_the_last_step(victim: Path, toy_path: Path) -> None:
    words = ["--victim", str(victim), "--methods", "ft", "--option", "steps", "40", "--every", "10"]
    content = measured(toy_path, "curve.py", *words)
    assert content["command"].startswith("python tools/curve.py --victim victims/victim --methods ft")
    (curve,) = content["curves"]
    assert (curve["method"], curve["options"]["steps"]) == ("ft", 40)
    assert [point["step"] for point in curve["points"]] == [0, 10, 20, 30, 40]
    figures = json.loads((victim / "card.json").read_text(encoding="utf-8"))["figures"]
    assert {name: curve["points"][0][name] for name in figures} == pytest.approx(figures, abs=0.01)
