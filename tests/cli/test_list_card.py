from __future__ import annotations

import pytest

from unbackdoor import registry


def test_list_without_a_word_shows_all_kinds(call):
    result = call("list")
    assert result.code == 0
    assert all(word in result.out for word in ("Methods", "Tasks", "Attacks", "Models", "Data", "corner", "blobs"))


def test_list_methods_is_what_the_registry_has(call):
    assert list(call("list", "methods", "--json").json["methods"]) == registry.method_names()


@pytest.mark.parametrize("kind", ["attacks", "models", "data"])
def test_list_of_a_kit_is_by_task(call, kind):
    assert call("list", kind, "--json").json[kind]["toy"]


def test_list_says_which_attacks_map_all_to_all_and_which_are_clean_label(call):
    """BackdoorBench issue 67: a user asks which attacks support all to all."""
    lines = call("list", "attacks", "--json").json["attacks"]["image"]
    for name, words in {
        "badnets": "(all_to_all=true)",
        "trojan-all": "(all to all)",
        "sig": "(clean label; to one class only)",
        "cba": "(to one class only; takes part in the training)",
        "bppa": "(all_to_all=true; takes part in the training)",
    }.items():
        assert lines[name].endswith(words), lines[name]
    assert "(all_to_all=true)" in " ".join(call("list", "attacks").out.split())


def test_card_when_piped_is_the_file_and_the_common_options(call):
    out = call("card", "ft").out
    assert out.startswith(registry.card("ft").rstrip())
    assert "`drop_doubtful` (`False`)" in out.removeprefix(registry.card("ft").rstrip())


def test_card_as_json_holds_the_options(call):
    card = call("card", "ft", "--json").json
    assert card["card"] == registry.card("ft")
    assert {"name": "steps", "default": 200, "help": "optimiser steps; epochs overrides them"} in card["options"]
