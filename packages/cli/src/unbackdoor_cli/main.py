"""The program: its commands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

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

__all__ = ["app", "main", "run"]

INTERRUPTED = 130
EXTRA_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
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
    """Run one command; give its exit code: 0 done, 2 refused (bad usage, bad data), 1 a bug, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=given, prog_name="unbackdoor", standalone_mode=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read the output has left
        return 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last line of defence turns it into a message
        return _refuse(error, verbose=bool({"-v", "--verbose"} & set(given)))
    if code == INTERRUPTED:
        typer.echo("interrupted; nothing half-written was left", err=True)
    return code if isinstance(code, int) else 0


def run() -> None:
    """The entry point."""
    keep_freed_memory()
    sys.exit(main())


def _refuse(error: Exception, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exception(error)
    usage = getattr(error, "format_message", None)
    if usage is not None:
        text, code = usage(), 2
    elif isinstance(error, OSError) or _on_purpose(error):
        text, code = str(error), 2
    else:
        text, code = f"unexpected {type(error).__name__}: {error} (run again with -v for the traceback)", 1
    typer.secho("error:", fg="red", bold=True, nl=False, err=True)
    typer.echo(" " + " ".join(text.split()), err=True)
    return code


def _on_purpose(error: Exception) -> bool:
    errors = sys.modules.get("unbackdoor.errors")  # not imported: then it cannot be one of them
    return errors is not None and isinstance(error, errors.UnbackdoorError)
