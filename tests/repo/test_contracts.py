"""The walls hold, and every one of them falls over when somebody climbs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
PACKAGES = {path.name: path for path in [*ROOT.glob("shared/src/*"), *ROOT.glob("packages/*/src/*")] if path.is_dir()}

BREACHES = [
    ("defender", "unbackdoor/defender/methods/ft/ft.py", "from unbackdoor.attacker.attack import Attack"),
    ("defender", "unbackdoor/defender/fit.py", "import unbackdoor.attacker.kit"),
    ("defender", "unbackdoor/defender/defences/abl/abl.py", "from unbackdoor.evaluate import evaluate"),
    ("defender", "unbackdoor/measure.py", "def late():\n    from unbackdoor import evaluate"),
    ("defender", "unbackdoor/classes.py", "def late():\n    from unbackdoor.attacker.training import fit"),
    ("registry", "unbackdoor_cli/main.py", "import unbackdoor_image"),
    ("registry", "unbackdoor_cli/commands/demo.py", "def late():\n    from unbackdoor_image import KIT"),
    ("registry", "unbackdoor_bench/work.py", "def late():\n    from unbackdoor_image import KIT"),
    ("defender", "unbackdoor/defender/methods/ft/ft.py", "import unbackdoor.attacker.plan"),
    ("tasks", "unbackdoor_image/train.py", "from unbackdoor.defender.methods.nft import NFT"),
    ("siblings", "unbackdoor_translation/train.py", "import unbackdoor_image"),
    ("core", "unbackdoor/data.py", "import torchvision"),
    ("core", "unbackdoor/registry.py", "import unbackdoor_image"),
    ("core", "unbackdoor/mixing.py", "import unbackdoor_pixels"),
    ("pixels", "unbackdoor_pixels/task.py", "from unbackdoor.attacker.attack import Attack"),
    ("layers", "unbackdoor/task.py", "import unbackdoor.data"),
    ("rooms", "unbackdoor/defender/schedule.py", "import unbackdoor.defender.purifier"),
]


def lint(folder: Path, contract: str | None = None) -> subprocess.CompletedProcess[str]:
    words = ["--no-cache", "--config", str(ROOT / "pyproject.toml")] + (["--contract", contract] if contract else [])
    program = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    for name, path in PACKAGES.items():
        shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_walls_hold(copies):
    done = lint(copies)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("contract", "module", "line"), BREACHES)
def test_wall_falls_when_it_is_climbed(copies, contract, module, line):
    path = copies / module
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(f"{text}\n\n{line}\n", encoding="utf-8")
        done = lint(copies, contract)
    finally:
        path.write_text(text, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_every_contract_has_a_breach():
    assert {contract["id"] for contract in CONFIG["contracts"]} == {contract for contract, _, _ in BREACHES}


def test_every_package_is_walled():
    assert set(CONFIG["root_packages"]) == set(PACKAGES)
    contracts = {contract["id"]: contract for contract in CONFIG["contracts"]}
    tasks = set(PACKAGES) - {"unbackdoor", "unbackdoor_cli", "unbackdoor_bench", "unbackdoor_pixels"}
    assert set(contracts["registry"]["forbidden_modules"]) == tasks
    assert set(contracts["tasks"]["source_modules"]) == tasks
    assert set(contracts["siblings"]["modules"]) == tasks
    for contract in ("core", "pixels"):
        others = tasks | {"unbackdoor_pixels"} - set(contracts[contract]["source_modules"])
        assert others < set(contracts[contract]["forbidden_modules"])


def test_every_module_of_the_core_has_a_layer():
    names = {path.stem for path in PACKAGES["unbackdoor"].glob("*.py")} | {
        path.parent.name for path in PACKAGES["unbackdoor"].glob("*/__init__.py")
    }
    layers = next(contract for contract in CONFIG["contracts"] if contract["id"] == "layers")["layers"]
    placed = {name.strip(" ()") for layer in layers for name in layer.replace("|", ":").split(":")}
    assert names - {"__init__"} <= placed


def test_every_module_that_purifies_is_behind_the_wall():
    contract = next(contract for contract in CONFIG["contracts"] if contract["id"] == "defender")
    attackers = {*contract["forbidden_modules"], "unbackdoor.testing"}
    neutral = {"unbackdoor.errors", "unbackdoor.tree"}
    names = {f"unbackdoor.{path.stem}" for path in PACKAGES["unbackdoor"].glob("*.py") if path.stem != "__init__"}
    names |= {f"unbackdoor.{path.parent.name}" for path in PACKAGES["unbackdoor"].glob("*/__init__.py")}
    assert names - attackers - neutral <= set(contract["source_modules"])
