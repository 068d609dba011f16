"""All attacks of the papers are there, each with its card."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from unbackdoor_image import KIT

ROOT = Path(__file__).resolve().parents[4]
FOURTEEN = {
    *("badnets", "blend", "trojan", "trojan-all", "sig", "dynamic", "dynamic-all"),
    *("clb", "cba", "fba", "wanet", "issba", "lira", "bppa"),
}


def test_all_fourteen_attacks_and_those_beyond_are_there() -> None:
    assert set(KIT.attacks) >= FOURTEEN | {"lf", "adaptive-blend", "fip-adaptive", "combined"}


@pytest.mark.parametrize("name", sorted(KIT.attacks))
def test_every_attack_has_its_card(name: str) -> None:
    import importlib

    card = importlib.import_module(KIT.attacks[name].__module__).__doc__ or ""
    for word in ("Trigger", "Labels", "Where public code goes wrong:", "Here:"):
        assert word in card or (name == "fip-adaptive" and word == "Labels"), f"{name}: no {word}"


def test_every_complaint_of_users_is_closed_by_tests_that_exist() -> None:
    """The table of the package's README names the tests that close the complaints about attacks."""
    rows = [
        line
        for line in (ROOT / "packages" / "image" / "README.md").read_text(encoding="utf-8").splitlines()
        if re.search(r"\| .*(BackdoorBench|BackdoorBox) \d", line)
    ]
    issues = {int(number) for row in rows for number in re.findall(r"\d+", row.split("|")[1])}
    assert issues >= {43, 39, 18, 67, 9, 113, 85, 94}
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert all(f"def {name}(" in code for name in named), row


def test_figures_of_the_adaptive_attackers_card_are_those_of_its_file() -> None:
    """And they say what the paper says: the larger the weight, the smoother the model."""
    from unbackdoor_image.attacks import fip_adaptive

    rows = json.loads((ROOT / "docs" / "results" / "fip_adaptive_digits.json").read_text(encoding="utf-8"))["rows"]
    means = {}
    for weight in sorted({row["eta_f"] for row in rows}):
        own = [row for row in rows if row["eta_f"] == weight]
        means[weight] = [sum(row[key] for row in own) / len(own) for key in ("trace", "ACC", "ASR")]
    traces = [trace for trace, _, _ in means.values()]
    assert all(less < 0.9 * more for more, less in itertools.pairwise(traces)), traces
    card = " ".join((fip_adaptive.__doc__ or "").split())
    for weight, figures in means.items():
        assert f"{weight:g}: " + ", ".join(f"{figure:.1f}" for figure in figures) in card
