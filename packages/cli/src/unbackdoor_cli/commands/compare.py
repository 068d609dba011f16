"""``unbackdoor compare``: methods side by side on victims, over seeds, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unbackdoor_cli import flags
from unbackdoor_cli.named import reads_files

if TYPE_CHECKING:
    from unbackdoor_bench.cells import Cell
    from unbackdoor_bench.summary import Row

_WHAT = "What is compared"
_WHERE = "Where it runs"
_FILES = ("table.md", "table.csv", "table.html", "scatter.png")
_ORACLE = "Oracle (needs the trigger; no defender can have it)"


@reads_files
def compare(
    victims: Annotated[list[Path], typer.Argument(help="Folders that `unbackdoor attack` made.", show_default=False)],
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Methods, or all. bn-only (BatchNorm alone) and ft with MixUp run beside them, to compare with.",
        ),
    ] = "all",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the results; what is done there is not run again.")
    ] = Path("comparison"),
    seed: flags.Seed = 0,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Repeat with that many seeds, counted up from --seed.")
    ] = 1,
    clean: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Draw N clean samples, the same for every method.", rich_help_panel=_WHAT
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Named options, for the methods that have them.", rich_help_panel=_WHAT),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="K=V",
            help="METHOD.NAME=VALUE, or NAME=VALUE for all that have it; repeat.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    data_path: flags.DataPath = None,
    trust: flags.Trust = False,
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle", help="Columns of what a choice by ASR on test data would give.", rich_help_panel=_ORACLE
        ),
    ] = False,
    oracle_drop: Annotated[
        float, typer.Option(min=0, metavar="POINTS", help="Clean score that it may cost.", rich_help_panel=_ORACLE)
    ] = 10.0,
    oracle_try: Annotated[
        list[str] | None,
        typer.Option(
            metavar="K=A,B", help="METHOD.NAME=VALUES: variants that it may choose from.", rich_help_panel=_ORACLE
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="serial, processes, ray or slurm.", rich_help_panel=_WHERE)
    ] = "serial",
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Cells at a time.", rich_help_panel=_WHERE)] = 2,
    engine_option: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Option of the engine; repeat.", rich_help_panel=_WHERE)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of the CPU, for each cell.", rich_help_panel=_WHERE)
    ] = None,
    device: flags.Device = "auto",
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="End with exit code 0 even where every result is one that `unbackdoor purify` would refuse.",
            rich_help_panel="How it runs",
        ),
    ] = False,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Run methods on victims side by side, over seeds.

    Each cell (a method, a victim, a seed) is one JSON file; the same command
    goes on where it was stopped. Tables and a picture of clean score against
    attack success rate are made from those files alone. A result that
    unbackdoor purify would refuse is measured too, and marked as such.

    Exit codes: 0 done, 1 a cell broke, 2 every method refused to begin, 3 no
    method gave a result that is fit for use, 130 interrupted.

    Example: unbackdoor compare victims/badnets victims/blend
    --methods nft,f-fip --seeds 3 --out comparison
    """
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.grids import bars, exit_code, needed, of_words, shown
    from unbackdoor_cli.options import pairs
    from unbackdoor_cli.paths import check_outputs
    from unbackdoor_cli.victims import device_of

    needed()
    from unbackdoor.errors import FileRefused
    from unbackdoor_bench import Grid, Store, run, summarise
    from unbackdoor_bench import engine as engine_of
    from unbackdoor_bench.grid import CONTROLS, expand_methods
    from unbackdoor_bench.work import Limited

    output = Output(as_json=json)
    if any(victim.is_dir() and out.is_dir() and victim.samefile(out) for victim in victims):
        raise FileRefused(f"{out} is a victim's folder; give the results one of their own with --out.")
    words = (*(option or ()), *(engine_option or ()))
    kept = [folder / name for folder in victims for name in ("card.json", "model.safetensors", "attack.safetensors")]
    check_outputs([out / name for name in _FILES], [*kept, data_path], force=True, words=words)
    names = expand_methods(methods)
    compared = [*names, *(name for name, _ in CONTROLS)]
    grid = Grid(
        victims=victims,
        methods=names,
        seeds=range(seed, seed + seeds),
        preset=preset,
        options={key: value for key, (value,) in of_words(option, compared, "--option", several=False).items()},
        trials=of_words(oracle_try, compared, "--oracle-try", several=True),
        clean=clean,
        oracle=oracle,
        oracle_drop=oracle_drop,
        data_path=None if data_path is None else str(data_path),
        trust=trust,
        device=str(device_of(device)),
        threads=threads,
    )
    cells = grid.cells()
    store = Store(out)
    chosen = engine_of(engine, workers, out, pairs(engine_option, "--engine-option"))
    interrupted = False
    with bars(output, len(cells)) as tell:
        try:
            run(cells, store, None if chosen is None else Limited(chosen), tell)
        except KeyboardInterrupt:
            interrupted = True
    results = store.results(cells)
    if interrupted and not results:
        raise KeyboardInterrupt
    rows = summarise(results)
    files = _write(out, rows, cells)
    statuses = [str(content["status"]) for _, content in results]
    asked = [
        (str(content["status"]), bool(content.get("worked")), bool(content.get("overruled")))
        for cell, content in results
        if cell.method in names and not cell.trial
    ]
    payload = {
        "out": str(out),
        "cells": {status: statuses.count(status) for status in ("done", "refused", "failed")},
        "problems": [
            {"victim": row.victim, "label": row.label, "problem": problem} for row in rows for problem in row.problems
        ],
        "rows": [_payload(row) for row in rows],
        "files": [str(path) for path in files],
    }
    output.result(payload, *shown(rows, output.out.width), "Written: " + ", ".join(map(str, files)))
    if interrupted:
        raise KeyboardInterrupt
    code = 1 if "failed" in statuses else exit_code(asked, anyway=anyway)
    if code:
        raise typer.Exit(code)


def _write(out: Path, rows: Sequence[Row], cells: Sequence[Cell]) -> list[Path]:
    from functools import partial

    from unbackdoor.files.writing import write_together
    from unbackdoor.report import versions
    from unbackdoor_bench import draw_scatter, to_csv, to_html, to_markdown

    facts = {
        "victims": ", ".join(dict.fromkeys(cell.victim for cell in cells)),
        "seeds": ", ".join(map(str, dict.fromkeys(cell.seed for cell in cells if cell.method != "none"))),
        **versions(),
    }
    texts = {
        "table.md": to_markdown(rows),
        "table.csv": to_csv(rows),
        "table.html": to_html(rows, "Methods side by side", "scatter.png", facts),
    }
    writes: dict[Path, Callable[[Path], Any]] = {out / name: partial(_text, text=text) for name, text in texts.items()}
    write_together({**writes, out / "scatter.png": partial(_scatter, draw=draw_scatter, rows=rows)}, force=True)
    return [out / name for name in _FILES]


def _text(path: Path, *, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _scatter(path: Path, *, draw: Any, rows: Sequence[Row]) -> None:
    draw(path, rows)


def _payload(row: Row) -> Mapping[str, Any]:
    from dataclasses import asdict

    return asdict(row)
