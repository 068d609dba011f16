"""The program: its commands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unbackdoor_cli import __version__
from unbackdoor_cli.allocation import keep_freed_memory
from unbackdoor_cli.commands.attack import attack
from unbackdoor_cli.commands.card import card
from unbackdoor_cli.commands.compare import compare
from unbackdoor_cli.commands.demo import demo
from unbackdoor_cli.commands.evaluate import evaluate
from unbackdoor_cli.commands.list import list_
from unbackdoor_cli.commands.purify import purify
from unbackdoor_cli.commands.train import train
from unbackdoor_cli.console import plain, prepare
from unbackdoor_cli.ending import Ended, ended_by_signals, reader_left
from unbackdoor_cli.usage import usage_text

__all__ = ["app", "main", "run"]

BUG, REFUSED, RESULT_REFUSED, INTERRUPTED = 1, 2, 3, 130
_LONG = 2000
EXTRA_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


class _Carried(Exception):
    """Brings its cause past the command-line library, which takes the end of a file for an interruption."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt, OSError, typer.Abort) as error:
            raise _Carried from error


app = typer.Typer(
    cls=_Commands,
    name="unbackdoor",
    help="Remove backdoors from trained networks with a few clean samples.",
    epilog="Start with [bold]unbackdoor demo[/]. Every command takes [bold]--help[/] and [bold]--json[/].",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel="Look")(demo)
app.command(name="list", rich_help_panel="Look")(list_)
app.command(rich_help_panel="Look")(card)
app.command(rich_help_panel="Work", context_settings=EXTRA_FLAGS)(purify)
app.command(rich_help_panel="Work")(evaluate)
app.command(rich_help_panel="Work")(attack)
app.command(rich_help_panel="Work")(compare)
app.command(rich_help_panel="Work", context_settings=EXTRA_FLAGS)(train)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unbackdoor {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None and not version:
        typer.echo(ctx.get_help())


def main(arguments: list[str] | None = None) -> int:
    """Run one command and give its exit code.

    0: done; 1: a bug; 2: refused (bad usage, bad data); 3: the result is not fit to be used; 130: interrupted; 143:
    ended by SIGTERM.
    """
    given = sys.argv[1:] if arguments is None else arguments
    prepare()
    try:
        with ended_by_signals():
            code = app(args=given, prog_name="unbackdoor", standalone_mode=False, obj=list(given))
    except BaseException as error:  # noqa: BLE001 - the last line of defence turns it into a message
        return _end(error.__cause__ if isinstance(error, _Carried) and error.__cause__ else error, given)
    finally:
        folders = sys.modules.get("unbackdoor.files.folders")  # not imported: then --help was asked for, which is quick
        if folders is not None:
            folders.tidy()
    if code == INTERRUPTED:
        return _end(KeyboardInterrupt(), given)
    return code if isinstance(code, int) else 0


def run() -> None:
    """The entry point."""
    os.environ["PYTHONSAFEPATH"] = "1"  # processes started from here run no file of the current folder
    warnings.formatwarning = _warning  # type: ignore[assignment]
    keep_freed_memory()
    try:
        code = main()
    except KeyboardInterrupt:  # once more, while it said that it was interrupted
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done
    sys.exit(code)


def _end(error: BaseException, given: list[str]) -> int:
    """Say in one line why it ended, and give the exit code."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        return 0  # rich has seen it, and turned standard output away
    if isinstance(error, BrokenPipeError) and reader_left():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, KeyboardInterrupt | Ended):
        what = f"ended by {error.name}" if isinstance(error, Ended) else "interrupted"
        _say(f"{what}; nothing half-written was left")
        return error.code if isinstance(error, Ended) else INTERRUPTED
    if {"-v", "--verbose"} & set(given):
        _say("".join(traceback.format_exception(error)).rstrip())
    text, code = _verdict(error)
    text = " ".join(text.split())
    _say(" " + (text if len(text) <= _LONG else f"{text[:_LONG]} ..."), before="error:")
    return code


def _verdict(error: BaseException) -> tuple[str, int]:
    if hasattr(error, "format_message"):
        return usage_text(error), REFUSED
    text = _text_of(error)
    if _on_purpose(error):
        return text, RESULT_REFUSED if _on_purpose(error, "ResultRefused") else REFUSED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        reason = text.partition(". ")[0].strip() or "no memory is left"
        return f"out of memory: {reason}. Take fewer or smaller samples, or smaller batches.", REFUSED
    if type(error).__name__ == "BrokenProcessPool":
        return "a worker was ended from outside, most often for want of memory; run fewer at a time.", REFUSED
    if isinstance(error, OSError):
        if error.errno is not None and error.strerror:
            text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        return text or f"the system refused ({type(error).__name__})", REFUSED
    told = f"unexpected {type(error).__name__}" + (f": {text}" if text else "")
    return f"{told} (run again with -v for the traceback)", BUG


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error of somebody else that cannot even say what it is
        return ""


def _say(text: str, *, before: str = "") -> None:
    """On standard error, if it is still there."""
    with contextlib.suppress(OSError, ValueError):
        typer.secho(before, fg="red", bold=True, nl=False, err=True)
        typer.echo(plain(text), err=True)


def _warning(message: Warning | str, *about: Any) -> str:
    """What Python prints of a warning: one line, without where it arose."""
    return f"note: {plain(' '.join(str(message).split()))}\n"


def _on_purpose(error: BaseException, kind: str = "UnbackdoorError") -> bool:
    errors = sys.modules.get("unbackdoor.errors")  # not imported: then it cannot be one of them
    return errors is not None and isinstance(error, getattr(errors, kind))
