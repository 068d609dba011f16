from __future__ import annotations

import pytest

import unbackdoor_bench

QUICK = ["--methods", "nft", "--option", "steps=3", "--option", "batch_size=8", "--device", "cpu", "--threads", "1"]


def test_compare_writes_tables_and_a_picture(call, victim, folder):
    payload = call("compare", victim, *QUICK, "--seeds", 2, "--out", "c", "--json").json
    assert payload["cells"] == {"done": 7, "refused": 0, "failed": 0}
    assert [row["label"].split()[0] for row in payload["rows"]] == ["none", "bn-only", "ft", "nft"]
    assert payload["rows"][3]["seeds"] == [0, 1]
    assert {path.name for path in (folder / "c").iterdir()} >= {"table.md", "table.csv", "table.html", "scatter.png"}
    assert "victim" in (folder / "c" / "table.md").read_text()


def test_compare_goes_on_where_it_was(call, victim, folder):
    first = call("compare", victim, *QUICK, "--out", "c")
    assert first.err.count(": done") == 4
    again = call("compare", victim, *QUICK, "--out", "c", "--seeds", 2)
    assert (again.err.count("kept from before"), again.err.count(": done")) == (4, 3)
    assert "bn-only" in again.out
    assert "selection" in again.out.partition("In the files")[2], "columns without room must be named"


def test_compare_names_its_oracle(call, victim):
    payload = call("compare", victim, *QUICK, "--out", "c", "--oracle", "--oracle-try", "nft.lr=0.1,0.5", "--json").json
    assert payload["cells"]["done"] == 6
    assert payload["rows"][3]["oracle"] is not None
    assert "oracle ASR" in call("compare", victim, *QUICK, "--out", "c", "--oracle").out


def test_compare_shows_what_is_done_when_it_is_interrupted(call, victim, folder, monkeypatch):
    plain = unbackdoor_bench.run

    def interrupted(cells, *given):
        plain(cells[:2], *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(unbackdoor_bench, "run", interrupted)
    result = call("compare", victim, *QUICK, "--out", "c")
    assert result.code == 130
    assert "bn-only" in result.out
    assert "interrupted" in result.err
    assert (folder / "c" / "table.md").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--engine", "seriel"], "serial"),
        (["--option", "nonsense=1"], "nonsense"),
        (["--option", "nft.lr=fast"], "number"),
        (["--option", "nft.lr"], "METHOD.NAME=VALUE"),
        (["--methods", "nfft"], "nft"),
        (["--oracle-try", "nft.lr=1,2"], "oracle"),
    ],
)
def test_compare_refuses_in_one_line(call, victim, words, told):
    assert told in call("compare", victim, *QUICK, *words, "--out", "c").error


def test_compare_wants_victims(call, folder):
    (folder / "empty").mkdir()
    assert "no victim" in call("compare", "empty", *QUICK).error
