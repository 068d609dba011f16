"""``unbackdoor card``: the card of a method or a defence."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated

import typer

from unbackdoor_cli import flags


def card(
    method: Annotated[str, typer.Argument(help="Name; see: unbackdoor list.", show_default=False)],
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Show the idea, equations, options and limits of a method or a defence."""
    from rich.markdown import Markdown

    from unbackdoor import registry
    from unbackdoor_cli.console import Output

    output = Output(as_json=json)
    text = registry.card(method)
    shown = text.rstrip()
    if method in registry.method_names():
        shown += f"\n\n## Options of every method\n\n{_common()}"
    if not json and not output.out.is_terminal:
        typer.echo(shown)
        return
    options = [
        {"name": f.name, "default": None if f.default is MISSING else f.default, "help": f.metadata.get("help", "")}
        for f in fields(registry.configured(method))
    ]
    output.result({"method": method, "options": options, "card": text}, Markdown(shown))


def _common() -> str:
    from unbackdoor.defender.purifier import Purifier

    return "\n".join(f"- `{f.name}` (`{f.default}`): {f.metadata['help']}" for f in fields(Purifier))
