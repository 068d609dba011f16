from __future__ import annotations

import subprocess
import sys

import pytest

import unbackdoor_cli

COMMANDS = ["demo", "list", "card", "attack", "purify", "evaluate"]


def test_help_names_every_command(call):
    result = call("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


def test_no_word_shows_the_help(call):
    result = call()
    assert result.code == 0
    assert "Usage" in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_tells_its_json_flag(call, command):
    result = call(command, "--help")
    assert result.code == 0
    assert "--json" in result.out
    assert "--verbose" in result.out


def test_version_is_that_of_the_package(call):
    assert call("--version").out == f"unbackdoor {unbackdoor_cli.__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["purify", "--help"]], ids=" ".join)
def test_help_imports_no_torch(words):
    program = f"import sys; from unbackdoor_cli.main import main; main({words}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
