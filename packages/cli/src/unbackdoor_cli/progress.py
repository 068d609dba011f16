"""Progress bars on standard error while something long runs; nothing where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from unbackdoor_cli.console import Output, plain

if TYPE_CHECKING:
    from unbackdoor.defender.purifier import Progress as Step

__all__ = ["Stages", "stages"]


class Stages:
    """The stages of one command, a line each."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def training(self, title: str) -> Callable[[int, int, Mapping[str, float]], None]:
        """What a trainer calls with step, steps and scalars."""
        line = self._line(title)
        return lambda step, steps, scalars: self._move(line, step, steps, scalars)

    def watching(self, title: str) -> Callable[[Step], None]:
        """What a purifier calls with its progress."""
        line = self._line(title)
        return lambda now: self._move(line, now.step, now.steps, now.scalars)

    def together(self, titles: Sequence[str]) -> list[Callable[[int, int, Mapping[str, float]], None]]:
        """What purifications that run side by side call with step, steps and scalars."""
        first, *rest = titles
        lines = [self._line(first), *(self._bars.add_task(plain(title), total=None, scalars="") for title in rest)]
        return [partial(self._move, line) for line in lines]

    @contextmanager
    def short(self, title: str) -> Iterator[None]:
        """A stage without steps."""
        line = self._line(title)
        yield
        self._bars.update(line, total=1, completed=1)

    def _line(self, title: str) -> TaskID:
        for line in self._bars.tasks:
            if not line.finished:  # its caller went on without a last step
                self._bars.update(line.id, total=line.total or 1, completed=line.total or 1)
        return self._bars.add_task(plain(title), total=None, scalars="")

    def _move(self, line: TaskID, step: int, steps: int, scalars: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.3g}" for name, value in list(scalars.items())[:2])
        self._bars.update(line, completed=step, total=steps, scalars=plain(shown))


@contextmanager
def stages(output: Output) -> Iterator[Stages]:
    """Show stages while the block runs, then wipe them off: the result says what there is to say."""
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[scalars]}", style="dim", markup=False),
    )
    with Progress(*columns, console=output.err, transient=True, disable=not output.lively) as bars:
        yield Stages(bars)
