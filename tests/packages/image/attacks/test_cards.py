"""All attacks of the papers are there, each with its card."""

from __future__ import annotations

import pytest

from unbackdoor_image import KIT

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
