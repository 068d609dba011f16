"""What the documents promise can be typed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from unbackdoor_cli.main import main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md",
    *sorted(ROOT.glob("shared/README.md")), *sorted(ROOT.glob("packages/*/README.md")),
]  # fmt: skip
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def blocks(path: Path, *languages: str) -> list[str]:
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """Each ``unbackdoor`` command in the shell blocks of a document, as words."""
    text = "\n".join(blocks(path, "sh", "bash", "shell", "console")).replace("\\\n", " ")
    parts = [part.strip().removeprefix("$ ") for line in text.splitlines() for part in line.split("&&")]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("unbackdoor ")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_python_blocks_compile(path):
    for block in blocks(path, "python", "py"):
        compile(block, str(path), "exec")


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_commands_are_known(path, capsys):
    for words in commands(path):
        assert main([words[0], "--help"]) == 0, words
        shown = capsys.readouterr().out
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        unknown = {flag for flag in flags if flag not in shown and flag not in ("--version", "--help")}
        assert not unknown or words[0] == "purify", (words, unknown)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_readme_promises_what_ci_runs():
    readme, script = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    assert "nox -s tests" in readme
    assert "nox -s tests" in script


def test_readme_tables_are_those_of_the_result_files() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "tools/tables.py", "--check"], cwd=root, check=False)
    assert done.returncode == 0, "run: python tools/tables.py"


def test_tables_of_packages_hold_each_seed_and_the_mean_of_the_file() -> None:
    result = json.loads((ROOT / "docs" / "results" / "video_utd_badnets.json").read_text(encoding="utf-8"))
    text = (ROOT / "packages" / "video" / "README.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| `video_utd_badnets` |") and "`nft`" in line)
    each = [f"{row['asr']:.1f}" for row in result["rows"] if row["method"] == "nft"]
    assert line.split("|")[6].strip() == f"{', '.join(each)} (**{result['mean']['nft']['asr']:.1f}**)"
    assert f"(**{result['mean']['nft']['drop']:.1f}**)" in line.split("|")[5]


def test_comparison_is_that_of_its_result_file() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "tools/comparison.py", "--check"], cwd=root, check=False)
    assert done.returncode == 0, "run: python tools/comparison.py FOLDER VICTIM..."
