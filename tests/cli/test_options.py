from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from unbackdoor.errors import BadOption
from unbackdoor_cli.options import convert, hyper_parameters, literal, pairs, typed


@dataclass(frozen=True, kw_only=True)
class Method:
    name = "method"
    steps: int = 1
    lr: float = 0.1
    clip: float | None = None
    bn: Literal["update", "frozen"] = "update"
    relative: bool = True


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("1e-3", 1e-3), ("true", True), ("None", None), ("1,2", (1, 2)), ("a,b", ("a", "b")),
     ("plain", "plain"), ("'1'", "1")],
)  # fmt: skip
def test_literal_reads_what_a_word_looks_like(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [("3", int, 3), ("3", float, 3.0), ("no", bool, False), ("none", float | None, None), ("2", float | None, 2.0),
     ("0.1,0.2", tuple[float, ...], (0.1, 0.2)), ("a, b", Sequence[str], ("a", "b")), ("12", str, "12")],
)  # fmt: skip
def test_convert_follows_the_type(text, wanted, value):
    assert convert(text, wanted, "--x") == value
    assert type(convert(text, wanted, "--x")) is type(value)


@pytest.mark.parametrize(
    ("text", "wanted"), [("3.5", int), ("many", float), ("perhaps", bool), ("other", Literal["update", "frozen"])]
)
def test_convert_refuses_what_does_not_fit(text, wanted):
    with pytest.raises(BadOption, match=r"--x is '.*'; it must be"):
        convert(text, wanted, "--x")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--lr", "0.5", "--steps=3"], {"lr": 0.5, "steps": 3}),
        (["--relative"], {"relative": True}),
        (["--no-relative", "--lr", "1"], {"relative": False, "lr": 1.0}),
        (["--relative", "false"], {"relative": False}),
        (["--clip", "none", "--bn", "frozen"], {"clip": None, "bn": "frozen"}),
    ],
)
def test_hyper_parameters_are_flags(words, found):
    assert hyper_parameters(words, Method) == found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sptes", "3"], "did you mean --steps"),
        (["stray"], "a stray word: stray"),
        (["--lr"], "--lr needs a value"),
        (["--lr", "1", "--lr", "2"], "given twice"),
        (["--no-lr"], "no such flag: --no-lr"),
    ],
)
def test_hyper_parameters_refuse_with_the_list(words, told):
    with pytest.raises(BadOption, match=told):
        hyper_parameters(words, Method)


def test_pairs_refuse_a_name_given_twice():
    with pytest.raises(BadOption, match="given twice"):
        pairs(["a=1", "a=2"], "--data-option")


def test_typed_keeps_the_words_of_an_open_signature_as_literals():
    def build(name: str, num_classes: int = 10, **options: object) -> None:
        """Takes anything."""

    assert typed(build, {"num_classes": "3", "width": "16"}, "--model-option") == {"num_classes": 3, "width": 16}
