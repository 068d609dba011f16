"""Names of strangers are printed as plain text wherever they stand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unbackdoor_cli import tables
from unbackdoor_cli.console import Output, _Console, plain
from unbackdoor_cli.progress import stages

EVIL = "\x1b]0;evil\x1b[2J[red]x[/red][/]\u202e\u2066\x9b31m"
PLAIN = r"\x1b]0;evil\x1b[2J[red]x[/red][/]\u202e\u2066\x9b31m"


@pytest.fixture
def output() -> Output:
    """With screens that are no terminals, so that every control character on them came from a name."""
    made = Output(as_json=False)
    made.out, made.err = _Console(io.StringIO(), width=300), _Console(io.StringIO(), width=300)
    return made


def screen(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "shown",
    [
        EVIL,
        tables.figures(EVIL, {EVIL: 1.0}, EVIL),
        tables.comparison(EVIL, {EVIL: 1.0}, {EVIL: 2.0}, EVIL),
        tables.names(EVIL, {EVIL: EVIL}),
        tables.excerpt([{EVIL: EVIL}])[0],
        tables.demonstration(
            EVIL, EVIL, [[{"method": EVIL, "clean": 1.0, "asr": 1.0, "lcr": 1.0, "seconds": 1.0}] * 2], EVIL
        ),
    ],
    ids=["text", "figures", "comparison", "names", "excerpt", "demonstration"],
)
def test_result_with_an_evil_name_is_plain(output, shown):
    output.result({}, shown)
    assert PLAIN in screen(output.out)
    assert all(letter.isprintable() or letter == "\n" for letter in screen(output.out))


def test_note_with_an_evil_name_is_one_plain_line(output):
    output.note(f"{EVIL}\nerror: [bold]forged[/]")
    assert screen(output.err) == f"note: {PLAIN} error: [bold]forged[/]\n"


def test_json_with_an_evil_name_is_escaped(capsys):
    Output(as_json=True).result({"name": EVIL, EVIL: [EVIL]})
    assert capsys.readouterr().out.rstrip("\n").isprintable()


def test_progress_with_an_evil_title_is_plain():
    output, screen = Output(as_json=False), io.StringIO()
    output.err = _Console(screen, force_terminal=True, width=300)
    with stages(output) as shown:
        shown.training(EVIL)(1, 2, {EVIL: 0.25})
        with shown.short(EVIL):
            pass
        for told in shown.together([EVIL, EVIL]):
            told(1, 4, {})
    assert PLAIN in screen.getvalue()
    assert not any(evil in screen.getvalue() for evil in ("\x1b]0", "\x1b[2J", "\u202e", "\u2066", "\x9b"))


@pytest.mark.parametrize("width", ["0", "1", "nonsense"])
def test_progress_needs_no_width(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "dumb")
    output, screen = Output(as_json=False), io.StringIO()
    output.err = _Console(screen, force_terminal=True)
    with stages(output) as shown:
        shown.training("training")(1, 2, {"loss": 0.25})
    output.note("said")


def test_letters_of_all_languages_stay():
    for text in ("déjà vu", "Δ ±", "नमस्ते", "می\u200cخواهم", "👩\u200d🔬", "line\nnext\tcolumn"):
        assert plain(text) == text
