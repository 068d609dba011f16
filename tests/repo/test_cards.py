"""Cards agree with their code, and the check that says so finds what it should."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from unbackdoor import registry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("card_tool", ROOT / "tools" / "card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*registry.method_names(), *registry.defence_names()])
def test_card_agrees_with_the_code(tool, name):
    assert tool.check([name]) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("## Limits\n", "## Limit\n", "headings"),
        ("| `lr` |", "| `rate` |", "'lr' has no row"),
        ("`0.01`", "`0.02`", "the default of 'lr' is 0.01"),
        ("`Task.loss`", "`Task.lss`", "'Task.lss'"),
        ("```python\n", "```python\n)", "does not compile"),
        ("# FT", "# Something", "first line"),
    ],
)
def test_card_check_finds_what_is_wrong(tool, old, new, told):
    text = registry.card("ft")
    assert old in text
    source = "class Task: def loss, FT"
    good = list(tool.problems(text, registry.method("ft"), source))
    assert good == []
    bad = list(tool.problems(text.replace(old, new, 1), registry.method("ft"), source))
    assert any(told in problem for problem in bad), bad
