"""Every way into the program for a file that nobody vouches for, each tried in a process of its own that is watched."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hostile.traps import RAN
from hostile.watching import watched

__all__ = ["Outcome", "Way", "checkpoint_ways", "data_ways", "tried", "victim_ways"]

_SECONDS = 60
_PRELOADED = (
    "torch", "matplotlib.backends.backend_agg", "matplotlib.figure", "rich.progress", "rich.table", "rich.traceback",
    "sklearn.datasets", "typer.rich_utils", "unbackdoor_bench", "unbackdoor_bench.figure", "unbackdoor_cli.console",
    "unbackdoor_cli.grids", "unbackdoor_cli.main", "unbackdoor_cli.progress", "unbackdoor_cli.subjects",
    "unbackdoor_cli.tables", "unbackdoor_image", "unbackdoor_multilabel", "unbackdoor_pointcloud", "unbackdoor_video",
    "unbackdoor_translation", "hostile.cards", "hostile.entrances", "timm", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way in: a command line, or a call from Python."""

    name: str
    command: Sequence[str] = ()
    call: Callable[[], Any] | None = None


@dataclass
class Outcome:
    """What one way in led to.

    Attributes:
        way: Its name.
        code: The exit code of a command; for a call 2 where it raised an error of ours, 0 where none, 1 for any other.
        said: What was printed, or the error.
        did: Connections, commands and writes that must not happen.
    """

    way: str
    code: int
    said: str
    did: list[str] = field(default_factory=list)


def victim_ways(folder: Path, out: Path, given: Path, *, compared: bool = True) -> list[Way]:
    """All ways in for a victim's folder.

    Args:
        folder: The victim.
        out: Where results would go.
        given: An honest checkpoint.
        compared: Whether ``compare`` is among them, which takes longer than all others.
    """
    from unbackdoor.attacker.plan import open_victim, task_of_victim

    place = str(folder)
    compare = Way("compare", ["compare", place, "--methods", "bn-only", "--out", str(out / "comparison")])
    return [
        Way("purify", ["purify", place, "--method", "bn-only", "--out", str(out / "purified.safetensors")]),
        Way("evaluate", ["evaluate", place]),
        Way("train --like", ["train", "--defence", "abl", "--like", place, "--out", str(out / "trained.safetensors")]),
        Way("evaluate --attack-from", ["evaluate", str(given), "--attack-from", place]),
        Way("open_victim", call=lambda: (task_of_victim(folder), open_victim(folder))),
        *([compare] if compared else []),
    ]


def checkpoint_ways(path: Path, out: Path, data: Path, given: Path) -> list[Way]:
    """All ways in for a file of weights; ``data`` is an honest folder of images, ``given`` an honest checkpoint."""
    import unbackdoor
    from unbackdoor_image import KIT

    model = ["--model", "smallcnn", "--data", str(data)]
    other = ["--model", "smallcnn", "--data", str(path)]
    return [
        Way("purify", ["purify", str(path), *model, "--method", "bn-only", "--out", str(out / "p.safetensors")]),
        Way("evaluate", ["evaluate", str(path), *model]),
        Way(
            "purify --data", ["purify", str(given), *other, "--method", "bn-only", "--out", str(out / "p.safetensors")]
        ),
        Way("load", call=lambda: unbackdoor.load(KIT.build("smallcnn", num_classes=2), path)),
        Way("load_clean", call=lambda: KIT.load_clean(path)),
    ]


def data_ways(source: Path | str, options: Mapping[str, Any], task: str, out: Path, given: Path) -> list[Way]:
    """All ways in for clean samples of a task; ``given`` is an honest checkpoint of the kit's demo."""
    from unbackdoor.registry import kit

    found = kit(task)
    words = [f"--data={source}", "--task", task, "--model", found.demo.model]
    words += [f"--data-option={name}={_typed(value)}" for name, value in options.items()]
    words += [f"--model-option={name}={_typed(value)}" for name, value in found.demo.model_options.items()]
    return [
        Way("purify", ["purify", str(given), *words, "--method", "bn-only", "--out", str(out / "p.safetensors")]),
        Way("evaluate", ["evaluate", str(given), *words]),
        Way("train", ["train", "--defence", "abl", *words, "--epochs", "1", "--out", str(out / "t.safetensors")]),
        Way("load_clean", call=lambda: found.load_clean(source, **options)),
    ]


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def tried(ways: Callable[[], Iterable[Way]], place: Path) -> list[Outcome]:
    """The outcome of each way, tried one after the other in a new process whose current folder is ``place / here``.

    Args:
        ways: Called in the new process; a function of a module, or a ``functools.partial`` of one.
        place: Where `hostile.traps.lay` was; ``place / outside`` must not be opened.
    """
    receiver, sender = _server().Pipe(duplex=False)
    process = _server().Process(target=_try, args=(ways, place, sender))
    process.start()
    sender.close()
    outcomes: list[Outcome] = []
    with contextlib.suppress(EOFError):
        while receiver.poll(_SECONDS):
            outcomes.append(receiver.recv())
    if process.is_alive():
        process.join(1)
    if process.is_alive():
        process.kill()
        outcomes.append(Outcome("the next", 1, f"it took more than {_SECONDS} s"))
    process.join()
    if process.exitcode:
        outcomes.append(Outcome("the process", 1, f"it ended with {process.exitcode}"))
    return outcomes


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _try(ways: Callable[[], Iterable[Way]], place: Path, sender: Any) -> None:
    signal.alarm(_SECONDS)
    os.chdir(place / "here")
    for way in ways():
        said = io.StringIO()
        with watched(place / "outside") as did:
            code = _command(way.command, said) if way.call is None else _call(way.call, said)
        if (place / RAN).exists():
            did.append(f"hostile code ran: {(place / RAN).read_text()}")
            (place / RAN).unlink()
        sender.send(Outcome(way.name, code, said.getvalue(), did))
    sender.close()


def _command(words: Sequence[str], said: io.StringIO) -> int:
    from unbackdoor_cli.main import main

    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return main(list(words))


def _call(call: Callable[[], Any], said: io.StringIO) -> int:
    from unbackdoor.errors import UnbackdoorError

    try:
        call()
    except UnbackdoorError as error:
        said.write(f"error: {error}")
        return 2
    except BaseException:  # noqa: BLE001 - it is what is looked for
        said.write(traceback.format_exc())
        return 1
    return 0


def faults(outcomes: Sequence[Outcome], *, codes: Mapping[str, Sequence[int]] | Sequence[int] = (2,)) -> list[str]:
    """What is wrong with ``outcomes``: harm done, an exit code that is not allowed, or no line that explains it."""
    found = []
    for outcome in outcomes:
        allowed = codes.get(outcome.way, (2,)) if isinstance(codes, Mapping) else codes
        found += [f"{outcome.way}: {what}" for what in outcome.did]
        if outcome.code not in allowed:
            found.append(f"{outcome.way}: ended with {outcome.code}: {outcome.said[-600:]}")
        elif outcome.code == 2 and "error:" not in outcome.said and "refused" not in outcome.said:
            found.append(f"{outcome.way}: says nothing: {outcome.said[-300:]}")
        if "Traceback" in outcome.said or "error: unexpected " in outcome.said:
            found.append(f"{outcome.way}: raw: {outcome.said[-600:]}")
    return found
