"""However a command ends: one line, the right exit code, and nothing of a stranger reaches the terminal as it is."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile

import pytest
import typer

from unbackdoor.errors import BadData, FileRefused, ResultRefused
from unbackdoor.files.folders import OwnFolder
from unbackdoor_cli.main import main

EVIL = "\x1b]0;evil\x07\x1b[2J[red]x[/red][/]\u202e\u2066\x9b31m\r"


@pytest.fixture
def ends(call, monkeypatch):
    """What the program says and gives where its work raises ``error``."""

    def run(error, *words):
        def work(name):
            if callable(error) and not isinstance(error, type):
                error()
            raise error

        monkeypatch.setattr("unbackdoor.registry.card", work)
        return call("card", "nft", *words)

    return run


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (BadData("bad"), 2, "error: bad"),
        (FileRefused("bad"), 2, "error: bad"),
        (ResultRefused("bad"), 3, "error: bad"),
        (EOFError("no data left"), 1, "error: unexpected EOFError: no data left (run again"),
        (EOFError(), 1, "error: unexpected EOFError (run again"),
        (typer.Abort(), 1, "error: unexpected Abort (run again"),
        (SystemExit(0), 1, "error: unexpected SystemExit: 0 (run again"),
        (SystemExit("bad"), 1, "error: unexpected SystemExit: bad (run again"),
        (GeneratorExit(), 1, "error: unexpected GeneratorExit (run again"),
        (MemoryError(), 2, "error: out of memory: no memory is left."),
        (RuntimeError("DefaultCPUAllocator: can't allocate 9 bytes"), 2, "error: out of memory: DefaultCPU"),
        (RecursionError("too deep"), 1, "error: unexpected RecursionError: too deep"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), 1, "error: unexpected UnicodeEncodeError"),
        (OSError(), 2, "error: the system refused (OSError)"),
        (OSError("cannot identify image"), 2, "error: cannot identify image"),
        (OSError(28, "No space left on device", "p.png"), 2, "error: p.png: No space left on device"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: Broken pipe"),
        (Speechless(), 1, "error: unexpected Speechless (run again"),
        (RuntimeError("a\nb\n" * 9000), 1, "error: unexpected RuntimeError: a b"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_ends_in_one_line_and_its_exit_code(ends, error, code, told):
    result = ends(error)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(told)
    assert result.err.count("\n") == 1
    assert len(result.err) < 2200


def test_only_the_user_interrupts(ends):
    result = ends(KeyboardInterrupt())
    assert (result.code, result.err) == (130, "interrupted; nothing half-written was left\n")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signal_unwinds_and_gives_its_exit_code(ends, name, code):
    number, unwound = getattr(signal, name), []

    def work():
        try:
            os.kill(os.getpid(), number)
        finally:
            unwound.append(True)

    before = signal.getsignal(number)
    result = ends(work)
    assert (result.code, result.err) == (code, f"ended by {name}; nothing half-written was left\n")
    assert unwound
    assert signal.getsignal(number) == before


def test_ignored_signal_stays_ignored(ends):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert ends(lambda: os.kill(os.getpid(), signal.SIGHUP)).code == 1  # went on, to an error that is none
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("flag", [(), ("-v",)])
@pytest.mark.parametrize("kind", [BadData, RuntimeError, OSError, SystemExit, FileRefused])
def test_error_with_an_evil_name_is_plain(ends, kind, flag):
    result = ends(kind(f"no tensor {EVIL!s} here"), *flag)
    said = result.err.splitlines()[-1]
    assert printable(result.err)
    assert r"\x1b]0;evil\x07\x1b[2J[red]x[/red][/]\u202e\u2066\x9b31m" in said


@pytest.mark.parametrize("words", [(EVIL,), ("card", EVIL), ("list", EVIL), ("purify", EVIL, "--out", "p.safetensors")])
def test_evil_word_is_plain(call, words):
    result = call(*words)
    assert result.code == 2
    assert printable(result.err)


def printable(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


class Broken(io.StringIO):
    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [Broken(), None], ids=["broken", "none"])
def test_command_works_without_standard_error(call, folder, monkeypatch, stream, capsys):
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["card", "nft"]) == 0
    assert "nft" in capsys.readouterr().out
    if stream is None:
        sys.stderr.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["card", "ntf"]) == 2
    if stream is None:
        sys.stderr.close()


@pytest.mark.parametrize("words", [["list", "tasks"], ["list", "methods"]], ids=" ".join)
def test_terminal_with_few_letters_stops_nothing(call, monkeypatch, words):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    assert main(words) == 0
    sys.stdout.flush()
    assert screen.getvalue()
    assert screen.getvalue().isascii()


def test_reader_that_leaves_is_no_error(call, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["card", "nft"]) == 0
        assert main(["purify", "--help"]) == 0


def test_evil_names_in_a_checkpoint_are_plain(call, folder):
    """Names of tensors and files, in what a command refuses and in what it notes."""
    import torch
    import unbackdoor_toy
    from safetensors.torch import save_file

    state = unbackdoor_toy.KIT.build("mlp", num_classes=4).state_dict()
    samples = unbackdoor_toy.blobs(seed=7).clean
    place = folder / "[red]\x1b[2J[bold].safetensors"
    save_file({"x": samples.inputs, "y": samples.targets}, folder / "clean.safetensors")
    words = ["--task", "toy", "--model", "mlp", "--data", "clean.safetensors", "--steps", 2, "--out", "p.safetensors"]
    for tensors in ({**state, EVIL: torch.zeros(3)}, {f"{EVIL}{name}": value for name, value in state.items()}):
        save_file(tensors, place)
        for command in (["purify", place, *words, "--force"], ["evaluate", place, *words[:6]]):
            result = call(*command)
            assert printable(result.err + result.out), command
            assert r"[red]\x1b[2J[bold]" in result.err + result.out or "evil" in result.err


@pytest.mark.parametrize("name", ["empty.npz", "empty.npy", "empty.pt", "empty.safetensors", "empty.csv", "empty"])
def test_empty_file_is_refused_and_no_interruption(call, folder, name):
    (folder / name).write_bytes(b"")
    (folder / "x.pt").write_bytes(b"")
    words = ["--task", "toy", "--model", "mlp", "--data", name]
    for source in (name, "x.pt"):
        assert "interrupted" not in call("evaluate", source, *words).error


def test_any_command_removes_what_a_killed_one_left(call, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = OwnFolder.make(tmp_path, "unbackdoor-")
    left.release()
    assert call("list", "tasks").code == 0
    assert list(tmp_path.iterdir()) == []
