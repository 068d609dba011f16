from __future__ import annotations

import csv
import io

import pytest

from unbackdoor_bench import Cell, draw_scatter, summarise, to_csv, to_html, to_markdown
from unbackdoor_bench.tables import columns, legend


def cell(label, seed=0, method=None, **more):
    return Cell(victim="a <b>", victim_hash="h", method=method or label.split()[0], label=label, seed=seed, **more)


def done(clean, asr, lcr, seed=0, oracle=None):
    return {
        "status": "done",
        "seed": seed,
        "figures": {"accuracy": clean, "asr": asr, "lcr": lcr},
        "seconds": 2.0,
        "steps": 10,
        "peak_bytes": 3 * 2**20,
        "report": {"trainable": 1234},
        "selection": "none, the last step",
        "oracle": oracle,
    }


@pytest.fixture
def rows():
    """One victim: a method with two seeds, one that was refused."""
    return summarise(
        [
            (cell("none"), {"status": "done", "figures": {"accuracy": 90.0, "asr": 100.0, "lcr": 0.0}}),
            (cell("nft"), done(88.0, 10.0, 80.0)),
            (cell("nft", seed=1), done(86.0, 20.0, 70.0, seed=1)),
            (cell("clp"), {"status": "refused", "error": "no | BatchNorm", "seed": 0}),
        ]
    )


def test_rows_are_means_and_drops_by_hand(rows):
    nft = rows[1]
    assert (nft.label, nft.metric, nft.seeds) == ("nft", "accuracy", (0, 1))
    assert (nft.after["accuracy"].mean, nft.after["asr"].high, nft.after["lcr"].low) == (87.0, 20.0, 70.0)
    assert nft.after["asr"].deviation == pytest.approx(50**0.5)
    assert (nft.drop("accuracy"), nft.drop("asr")) == (3.0, 85.0)
    assert rows[2].problems == ("seed 0 refused: no | BatchNorm",)


def test_markdown_has_a_line_for_each_row(rows):
    text = to_markdown(rows)
    assert (
        "| nft | 87.0 ± 1.4 | 3.0 | 15.0 ± 7.1 | 20.0 | 85.0 | 75.0 ± 7.1 | 75.0 | 2.0 | 10 | 3 | 1,234 | none" in text
    )
    assert r"seed 0 refused: no \| BatchNorm" in text
    lines = [line.replace(r"\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(columns(rows)) + 1}


def test_csv_reads_back(rows):
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["method"] for line in lines] == ["none", "nft", "clp"]
    assert float(lines[1]["asr_high"]) == 20.0
    assert float(lines[1]["accuracy_before"]) == 90.0
    assert lines[2]["problems"].endswith("BatchNorm")


def test_html_escapes_names(rows):
    text = to_html(rows, "t & t", "scatter.png", {"command": "<x>"})
    assert "a &lt;b&gt;" in text
    assert "<b>" not in text
    assert "t &amp; t" in text
    assert 'src="scatter.png"' in text


def test_oracle_columns_stand_only_where_it_was_on(rows):
    assert "oracle ASR" not in columns(rows)
    looked = {"figures": {"accuracy": 85.0, "asr": 5.0, "lcr": 50.0}}
    better = {"figures": {"accuracy": 84.0, "asr": 1.0, "lcr": 50.0}}
    found = summarise(
        [
            (cell("none"), {"status": "done", "figures": {"accuracy": 90.0, "asr": 100.0, "lcr": 0.0}}),
            (cell("nft"), done(88.0, 10.0, 80.0, oracle=looked)),
            (cell("nft lr=1", trial=True), done(88.0, 90.0, 80.0, oracle=better)),
        ]
    )
    assert [row.label for row in found] == ["none", "nft"]
    assert columns(found)[-2:] == ["oracle ACC", "oracle ASR"]
    assert found[1].oracle["asr"].mean == 1.0
    assert "| 84.0 | 1.0 |" in to_markdown(found)


def test_legend_explains_what_is_shown_and_nothing_else(rows):
    text = legend(["method", "ACC", "ACC drop", "ASR"])
    assert "drop: " in text
    assert "ASR: " in text
    assert not any(word in text for word in ("LCR", "MiB", "selection", "oracle"))
    assert legend(columns(rows)) in to_markdown(rows)


def test_scatter_is_a_picture(rows, tmp_path):
    draw_scatter(tmp_path / "s.png", rows)
    assert (tmp_path / "s.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    draw_scatter(tmp_path / "s.svg", rows)
    text = (tmp_path / "s.svg").read_text()
    assert text.count("<!-- nft -->") == 1
    assert "clp -->" not in text
