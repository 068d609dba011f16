"""One measurement: a method with its options on a victim with a seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import unbackdoor

__all__ = ["NONE", "Cell"]

NONE = "none"
"""The method of the cell that measures the victim as it is."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is to be measured, where it lies and how it is called.

    Attributes:
        victim: Name of the victim in tables.
        victim_hash: SHA-256 of its card, which has those of its weights, its attack and its data.
        method: Name of the method, or `NONE`.
        label: Name of the row in tables: the method and what of its options was set.
        options: All hyper-parameters of the method.
        seed: Of the method and of the draw of clean samples.
        clean: Number of clean samples drawn; None for all that the victim's data offer.
        oracle: Whether models are looked at with the trigger while the method runs (see `unbackdoor_bench.oracle`).
        oracle_drop: How many points of clean accuracy the oracle's choice may cost.
        trial: A variant that only the oracle may choose; it has no row of its own.
        folder: Where the victim lies.
        data_path: Where its data lie, if not where its card says.
        trust: Whether the victim's card may name the user's own code and files.
        device: Where to compute.
        threads: Of a CPU; None leaves torch's own choice.
    """

    victim: str
    victim_hash: str
    method: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    clean: int | None = None
    oracle: bool = False
    oracle_drop: float = 10.0
    trial: bool = False
    folder: str = ""
    data_path: str | None = None
    trust: bool = False
    device: str = "cpu"
    threads: int | None = None

    def depends_on(self) -> dict[str, Any]:
        """Everything that the result depends on, but for the machine: no folder, no device, no name."""
        found: dict[str, Any] = {
            "victim_hash": self.victim_hash,
            "method": self.method,
            "options": dict(self.options),
            "seed": self.seed,
            "clean": self.clean,
            "version": unbackdoor.__version__,
        }
        return found | ({"oracle_drop": self.oracle_drop} if self.oracle else {})

    @property
    def identity(self) -> str:
        """16 hexadecimal digits of the SHA-256 of `depends_on`."""
        text = json.dumps(self.depends_on(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def file_name(self) -> str:
        """A name for people with the identity at its end."""
        word = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.victim}-{self.method}-s{self.seed}")
        return f"{word}-{self.identity}.json"
