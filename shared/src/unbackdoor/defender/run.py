"""What accompanies one purification: its random draws, its log, what the user should know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from unbackdoor.data import CleanSet
from unbackdoor.errors import UnbackdoorError

__all__ = ["Progress", "Run", "Watch"]

_LONG = 10.0


@dataclass(frozen=True)
class Progress:
    """What a `Watch` is told: ``step`` of ``steps``, scalars of that step, the model as it is then.

    A run that takes more than some seconds tells at step 0 how long it will take, by the scalar ``expected_seconds``.
    """

    step: int
    steps: int
    message: str
    scalars: Mapping[str, float]
    model: nn.Module


Watch = Callable[[Progress], None]
"""Called now and then during a purification; it returns nothing, so no method can stop by what it sees."""


@dataclass
class Run:
    """What a method gets beside model, clean samples and task; nothing of it knows an attack."""

    generator: torch.Generator
    device: torch.device
    model: nn.Module
    watch: Watch | None = None
    log: list[dict[str, float]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    trainable: int = 0
    holdout: CleanSet | None = None
    """Clean samples to choose by, which nothing is tuned on; None where nothing is chosen or none could be held out.
    Those that figures are reported on are not among them, and no method sees them."""
    anyway: bool = False
    """Whether to go on, and return the result, where the checks before and after would stop."""
    allow_drop: bool = False
    """Whether a result may cost more clean accuracy than the method's ``max_clean_drop``."""
    overruled: list[str] = field(default_factory=list)

    def record(self, step: int, steps: int, message: str, **scalars: float) -> None:
        """Append scalars to the log and tell the watcher; what is not finite is left out."""
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self.log.append({"step": float(step), **scalars})
        if self.watch is not None:
            self.watch(Progress(step, steps, message, scalars, self.model))

    def stop(self, reason: str | None, error: type[UnbackdoorError]) -> None:
        """Raise ``error`` where there is a reason, unless the run goes on anyway: then the report tells it.

        Raises:
            UnbackdoorError: As said.
        """
        if reason is None:
            return
        if not self.anyway:
            raise error(f"{reason}, or go on as it is with anyway=True (--anyway).")
        self.overruled.append(f"{reason}.")
        self.notice(f"{reason}. Gone on all the same, as asked.")

    def expect(self, seconds: float, steps: int) -> None:
        """Tell the watcher before the first step how long a run will take that takes more than some seconds."""
        if self.watch is not None and seconds >= _LONG:
            about = f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"
            self.watch(Progress(0, steps, about, {"expected_seconds": seconds}, self.model))

    def notice(self, text: str) -> None:
        """Something that the user should know; it ends up in the report."""
        if text not in self.notices:
            self.notices.append(text)
