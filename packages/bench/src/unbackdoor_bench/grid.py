"""Which cells a comparison has: every method with its controls, on every victim, with every seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from unbackdoor.attacker.victim_card import read_card
from unbackdoor.defender.purifier import Purifier
from unbackdoor.errors import BadOption
from unbackdoor.registry import method as method_of
from unbackdoor.registry import method_names
from unbackdoor_bench.cells import NONE, Cell

__all__ = ["CONTROLS", "Grid", "expand_methods", "names_of_victims"]

CONTROLS: tuple[tuple[str, Mapping[str, Any]], ...] = (("bn-only", {}), ("ft", {"mixup": 1.0}))
"""Beside every comparison: what re-estimated BatchNorm does alone, and fine-tuning with the same augmentation."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A comparison.

    Attributes:
        victims: Folders.
        methods: Names; `expand_methods` gives them.
        seeds: Each is one run of every method on every victim.
        preset: Named options, taken by the methods that have them.
        options: Hyper-parameters by ``"method.name"``, or by ``"name"`` for all methods that have it.
        trials: Further values by ``"method.name"``: variants from which only the oracle may choose.
        clean: Clean samples to draw; None for all.
        oracle: See `Cell`.
        oracle_drop: See `Cell`.
        data_path: Where the victims' data lie.
        trust: See `Cell`.
        device: Where to compute.
        threads: Of a CPU.
    """

    victims: Sequence[Path]
    methods: Sequence[str]
    seeds: Sequence[int] = (0,)
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    trials: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    clean: int | None = None
    oracle: bool = False
    oracle_drop: float = 10.0
    data_path: str | None = None
    trust: bool = False
    device: str = "cpu"
    threads: int | None = None

    def cells(self) -> list[Cell]:
        """All cells, victim by victim, the victim as it is first.

        Raises:
            UnknownName: There is no such method.
            BadOption: An option belongs to no method, or its value cannot be used.
            FileRefused: A folder holds no victim.
        """
        self._check_words()
        if self.trials and not self.oracle:
            raise BadOption("variants to try are for the oracle column alone; turn it on, or give options instead.")
        rows = list(self._rows())
        found: dict[str, Cell] = {}
        for folder, name in zip(self.victims, names_of_victims(self.victims), strict=True):
            given = Cell(
                victim=name,
                victim_hash=read_card(folder).digest,
                method=NONE,
                label=NONE,
                folder=str(folder),
                data_path=self.data_path,
                trust=self.trust,
                device=self.device,
                threads=self.threads,
            )
            found.setdefault(given.identity, given)
            for seed, (label, purifier, trial) in product(self.seeds, rows):
                cell = replace(
                    given,
                    method=purifier.name,
                    label=label,
                    options=purifier.options(),
                    seed=seed,
                    clean=self.clean,
                    oracle=self.oracle,
                    oracle_drop=self.oracle_drop,
                    trial=trial,
                )
                found.setdefault(cell.identity, cell)
        return list(found.values())

    def _rows(self) -> Iterator[tuple[str, Purifier, bool]]:
        """Label, method and whether it is a variant for the oracle alone; the controls first, nothing twice."""
        made: list[Purifier] = []
        for name, own in [*CONTROLS, *((name, {}) for name in self.methods)]:
            label, purifier = self._row(name, {key: value for key, value in own.items() if key in _options_of(name)})
            if purifier not in made:
                made.append(purifier)
                yield label, purifier, False
        for name in self.methods:
            for variant in self._variants(name):
                yield *self._row(name, {}, variant), True

    def _row(self, name: str, own: Mapping[str, Any], variant: Mapping[str, Any] | None = None) -> tuple[str, Purifier]:
        cls = method_of(name)
        known = _options_of(name)
        given = {key: value for key, value in self.options.items() if "." not in key and key in known}
        given |= {key.partition(".")[2]: v for key, v in self.options.items() if key.partition(".")[0] == name}
        given = {**own, **given, **(variant or {})}
        preset = self.preset if self.preset in cls.presets else None
        words = ([preset] if preset else []) + [f"{key}={value}" for key, value in given.items()]
        return " ".join([name, *words]), cls.make(preset, **given)

    def _variants(self, name: str) -> Iterator[dict[str, Any]]:
        mine = {key.partition(".")[2]: values for key, values in self.trials.items() if key.partition(".")[0] == name}
        if mine:
            for values in product(*mine.values()):
                yield dict(zip(mine, values, strict=True))

    def _check_words(self) -> None:
        used = {*self.methods, *(name for name, _ in CONTROLS)}
        for key in [*self.options, *self.trials]:
            owner, dot, name = key.partition(".")
            if dot and owner not in used:
                raise BadOption(f"option {key!r} is for {owner!r}, which is not compared ({', '.join(sorted(used))}).")
            if not dot and key in self.trials:
                raise BadOption(f"{key!r} names no method; write METHOD.{key}.")
            owners = [owner] if dot else sorted(used)
            wanted = name if dot else key
            if not any(wanted in _options_of(one) for one in owners):
                raise BadOption(f"no option {wanted!r} in {', '.join(owners)}.")


def expand_methods(words: str | Sequence[str]) -> list[str]:
    """Names from ``"all"`` or ``"nft,ft"``, each once.

    Raises:
        BadOption: None is named.
        UnknownName: There is no such method.
    """
    listed = words.split(",") if isinstance(words, str) else list(words)
    names = [name.strip() for name in listed if name.strip()]
    found = [one for name in names for one in (method_names() if name == "all" else [name])]
    if not found:
        raise BadOption("no method is named; give some, such as nft,f-fip, or all.")
    for name in found:
        method_of(name)
    return list(dict.fromkeys(found))


def names_of_victims(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder: its own, with as much of its parents as tells it from the others."""
    parts = [Path(folder).absolute().parts for folder in folders]
    depth = 1
    while depth < max(map(len, parts), default=1) and len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["-".join(part[-depth:]) for part in parts]


def _options_of(name: str) -> set[str]:
    return {f.name for f in fields(method_of(name))}
