"""Check that the card of every method and every defence agrees with its code.

``python tools/card.py --check`` checks all cards, ``--check NAME`` one. A card is the README.md in its folder.
It fails where a heading is missing, an option lacks a row, a default differs, an equation names a symbol that does
not exist, or a Python block does not compile.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from unbackdoor import registry
from unbackdoor.defender.purifier import Purifier
from unbackdoor.options import Configured

SOURCE = Path(__file__).resolve().parent.parent / "shared" / "src" / "unbackdoor"
HEADINGS = [
    "Idea", "Equations and code", "Options", "Use", "Differences", "Limits", "Results", "Citation",
]  # fmt: skip
LONGEST = 120


def problems(text: str, method: type[Configured], source: str) -> Iterator[str]:
    """What is wrong with the card ``text`` of ``method``; ``source`` is all code that its symbols may stand in."""
    lines = text.splitlines()
    if not lines or not re.fullmatch(rf"# .*\b{re.escape(method.name)}\b.*", lines[0], re.IGNORECASE):
        yield f"the first line must be '# {method.name}: what it is', not {lines[0] if lines else 'nothing'!r}"
    if len(lines) > LONGEST:
        yield f"it has {len(lines)} lines; a card has {LONGEST} at most"
    found = [match[1].strip() for match in re.finditer(r"^## (.*)$", _without_code(text), re.MULTILINE)]
    if found != HEADINGS:
        yield f"its headings are {', '.join(found) or 'none'}; they must be {', '.join(HEADINGS)}, in this order"
    for heading in HEADINGS:
        if heading in found and not section(text, heading).strip():
            yield f"the section {heading} is empty"
    yield from _option_problems(table(section(text, "Options")), method)
    for row in table(section(text, "Equations and code")):
        for symbol in re.findall(r"`([^`]+)`", row.get("symbol", "")):
            if not _exists(symbol, source):
                yield f"the symbol {symbol!r} of {row.get('equation', 'an equation')} does not exist"
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL), start=1):
        try:
            compile(block, "card", "exec")
        except SyntaxError as error:
            yield f"Python block {number} does not compile: {error}"


def section(text: str, heading: str) -> str:
    """What stands under ``## heading``."""
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def table(text: str) -> list[dict[str, str]]:
    """Rows of the first Markdown table in ``text``, by column."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        for line in text.splitlines()
        if line.strip().startswith("|")
    ]
    return [dict(zip(rows[0], row, strict=False)) for row in rows[2:]] if len(rows) > 2 else []


def _option_problems(rows: list[dict[str, str]], method: type[Configured]) -> Iterator[str]:
    given = {row.get("option", "").strip("`"): row.get("default", "").strip("`") for row in rows}
    common = {f.name for f in fields(Purifier)}  # every method has them; `unbackdoor card` appends them
    wanted = {f.name: f.default for f in fields(method) if f.name not in common}
    for name in wanted.keys() - given.keys():
        yield f"the option {name!r} has no row"
    for name in given.keys() - wanted.keys():
        yield f"the row {name!r} is no option of the method"
    for name in sorted(given.keys() & wanted.keys()):
        if _value(given[name]) != wanted[name]:
            yield f"the default of {name!r} is {wanted[name]!r}, the card says {given[name]!r}"


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"none": None, "true": True, "false": False}.get(text, text)


def _exists(symbol: str, source: str) -> bool:
    """Whether each part of ``Task.loss`` or ``nft.py`` occurs in the source as a word."""
    name = symbol.removesuffix("()")
    if name.endswith(".py"):
        return any(SOURCE.rglob(name))
    return all(re.search(rf"\b{re.escape(part)}\b", source) for part in re.findall(r"\w+", name))


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def check(names: list[str]) -> list[str]:
    """Problems of the cards of ``names``, one line each."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py")))
    found = []
    for name in names:
        try:
            text = registry.card(name)
        except LookupError as error:
            found.append(str(error))
            continue
        found += [f"{name}: {problem}" for problem in problems(text, registry.configured(name), source)]
    return found


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="*", metavar="NAME", required=True, help="names; none means all")
    names = parser.parse_args().check or [*registry.method_names(), *registry.defence_names()]
    found = check(names)
    for line in found:
        print(line, file=sys.stderr)
    print(f"{len(names)} cards checked, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
