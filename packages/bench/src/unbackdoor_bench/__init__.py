"""The benchmark of `unbackdoor`: cells of methods, victims and seeds, kept as JSON, shown as tables and a figure.

Here, and nowhere in a method, attack success rates are known while methods run.
"""

from __future__ import annotations

from unbackdoor_bench.cells import Cell
from unbackdoor_bench.engines import ENGINES, engine
from unbackdoor_bench.figure import draw_scatter
from unbackdoor_bench.grid import Grid
from unbackdoor_bench.runner import Beat, run
from unbackdoor_bench.store import Store
from unbackdoor_bench.summary import Row, summarise
from unbackdoor_bench.tables import to_csv, to_html, to_markdown

__all__ = [
    "ENGINES",
    "Beat",
    "Cell",
    "Grid",
    "Row",
    "Store",
    "draw_scatter",
    "engine",
    "run",
    "summarise",
    "to_csv",
    "to_html",
    "to_markdown",
]
__version__ = "0.1.0"
