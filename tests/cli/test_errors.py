from __future__ import annotations

import subprocess
import sys

import pytest

import unbackdoor
from unbackdoor.errors import BadData


def test_unknown_command_is_refused_in_one_line(call):
    assert "nonsense" in call("nonsense").error


def test_unknown_flag_is_refused_in_one_line(call):
    assert "--nonsense" in call("list", "--nonsense").error


def test_missing_out_is_refused_in_one_line(call):
    assert "--out" in call("purify", "model.pt").error


def test_missing_file_is_refused_and_named(call):
    assert "model.pt" in call("purify", "model.pt", "--out", "p.safetensors").error


def test_unknown_task_lists_the_known(call):
    assert "toy" in call("attack", "--task", "tyo", "--out", "v").error


@pytest.mark.parametrize("words", [["card", "ntf"], ["demo", "--task", "toy", "--methods", "ntf"]], ids=" ".join)
def test_unknown_method_suggests_one(call, words):
    assert "'nft'" in call(*words).error


def test_wrong_hyper_parameter_lists_those_of_the_method(call, victim):
    error = call("purify", victim, "--method", "nft", "--out", "p.safetensors", "--stesp", 3).error
    assert "did you mean --steps?" in error
    assert "--mask-penalty" in error


def test_value_of_wrong_type_is_refused(call, victim):
    error = call("purify", victim, "--out", "p.safetensors", "--steps", "many").error
    assert error == "error: --steps is 'many'; it must be a whole number.\n"


def test_value_out_of_range_is_refused(call, victim):
    assert "steps is 0" in call("purify", victim, "--out", "p.safetensors", "--steps", 0).error


def test_refusal_with_json_prints_nothing_on_standard_output(call):
    assert "toy" in call("attack", "--task", "nonsense", "--out", "v", "--json").error


def test_verbose_shows_the_traceback(call):
    result = call("card", "nonsense", "-v")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("error: ")


def test_unexpected_error_is_told_apart_by_its_exit_code(call, victim, monkeypatch):
    monkeypatch.setattr(unbackdoor, "purify", lambda *a, **k: 1 / 0)
    result = call("purify", victim, "--out", "p.safetensors")
    assert result.code == 1
    assert result.err.startswith("error: unexpected ZeroDivisionError")


def test_interruption_leaves_no_file(call, victim, folder, monkeypatch):
    def interrupted(*a: object, **k: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unbackdoor, "purify", interrupted)
    before = sorted(folder.rglob("*"))
    result = call("purify", victim, "--out", "p.safetensors")
    assert result.code == 130
    assert result.err.startswith("interrupted")
    assert sorted(folder.rglob("*")) == before


def test_message_of_several_lines_becomes_one(call, monkeypatch):
    def refused(name: str) -> str:
        raise BadData("first\nsecond")

    monkeypatch.setattr("unbackdoor.registry.card", refused)
    assert call("card", "nft").error == "error: first second\n"


def test_reader_that_leaves_early_is_no_error():
    program = f"{sys.executable} -m unbackdoor_cli card ft | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
