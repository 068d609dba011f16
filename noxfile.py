# /// script
# requires-python = ">=3.11"
# dependencies = ["nox[uv]>=2025.2"]
# ///
"""Checks and tests. ``pip install "nox[uv]" && nox`` runs all that a change must pass; ``nox -l`` lists the rest.

Sessions that need torch, which is several gigabytes, share one environment: ``.nox/torch``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).parent
PACKAGES = [
    "shared",
    *sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("packages/*/pyproject.toml")),
]
SOURCES = [f"{package}/src" for package in PACKAGES]
TORCH_ENV = ROOT / ".nox" / "torch"

LINT = ["ruff>=0.14"]
CONTRACTS = ["import-linter>=2.5"]
TYPES = ["mypy>=1.18"]
FAIRSEQ = ["fairseq==0.12.2", "torch==1.12.1", "numpy==1.23.5"]
MMDET = ["mmdet==3.3.0", "mmengine==0.10.7", "mmcv-lite==2.1.0"]
MMDET_NEEDS = [
    *("addict", "opencv-python-headless", "pycocotools", "rich", "scipy", "shapely", "six", "termcolor"),
    *("terminaltables", "torchmetrics", "tqdm", "yapf"),
]
TESTS = ["pytest>=8.4", "pytest-xdist>=3.6", *CONTRACTS]

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "contracts", "types", "cards", "tests"]


def editable(packages: list[str]) -> list[str]:
    """The arguments that install ``packages`` from this checkout, so that edits take effect at once."""
    return [argument for package in packages for argument in ("-e", package)]


def install(session: nox.Session, env: Path, *arguments: str) -> Path:
    """Make the environment ``env`` where there is none, install into it and return its interpreter."""
    python = env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not python.exists():
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        session.run(*make, str(env), external=True, silent=True)
    # compiled once, since where Python may not write bytecode each process that imports torch compiles it anew
    fast = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)] if uv else []
    pip = fast or [str(python), "-m", "pip", "install", "-q"]
    session.run(*pip, *arguments, external=True)
    return python


def torch_env(session: nox.Session) -> Path:
    """The interpreter of the environment with torch, every package of this checkout and the tools."""
    return install(session, TORCH_ENV, *editable(PACKAGES), *TESTS, *TYPES)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting of every Python file."""
    session.install(*LINT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def contracts(session: nox.Session) -> None:
    """The walls: which module may import which. Needs no torch."""
    session.install("--no-deps", *editable(PACKAGES))
    session.install(*CONTRACTS)
    session.run("lint-imports", "--no-cache")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Strict types of all library source."""
    python = torch_env(session)
    session.run(str(python), "-m", "mypy", *SOURCES, external=True)


@nox.session(venv_backend="none")
def cards(session: nox.Session) -> None:
    """Every method's card agrees with its code. ``nox -s cards -- NAME`` checks one."""
    python = torch_env(session)
    session.run(str(python), "tools/card.py", "--check", *session.posargs, external=True)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """The fast tests. Further arguments go to pytest: ``nox -s tests -- tests/cli -k demo``."""
    python = torch_env(session)
    session.run(str(python), "-m", "pytest", *(session.posargs or ["-n", "2"]), external=True)


@nox.session(venv_backend="none")
def slow(session: nox.Session) -> None:
    """The tests that train real victims; minutes rather than seconds."""
    python = torch_env(session)
    session.run(str(python), "-m", "pytest", "-m", "slow", *session.posargs, external=True)


@nox.session(venv_backend="none")
def pytorchvideo(session: nox.Session) -> None:
    """The networks of pytorchvideo, whose last release is of 2022: an environment of its own, skipped where none is."""
    try:
        python = install(session, ROOT / ".nox" / "pytorchvideo", *editable(PACKAGES), *TESTS, "pytorchvideo>=0.1.5")
    except CommandFailed:
        session.skip("pytorchvideo cannot be installed here; only the models named pytorchvideo:NAME need it")
    session.run(
        str(python), "-m", "pytest", "tests/packages/video", "-k", "pytorchvideo", *session.posargs, external=True
    )


@nox.session(venv_backend="none")
def mmdet(session: nox.Session) -> None:
    """A detector of mmdet, last released in 2024, and our metrics against torchmetrics: an environment of its own.

    It is skipped where it cannot be made.
    """
    env = ROOT / ".nox" / "mmdet"
    try:
        python = install(session, env, *editable(PACKAGES), *TESTS, *MMDET_NEEDS)
        install(session, env, "--no-deps", *MMDET)  # they ask for an OpenCV with windows, and for mmcv's compiled build
    except CommandFailed:
        session.skip("mmdet 3.3.0 cannot be installed here; only MMDetTask needs it")
    tests = [f"tests/packages/multilabel/test_{name}.py" for name in ("mmdet", "task")]
    session.run(str(python), "-m", "pytest", *tests, *session.posargs, external=True)


@nox.session(venv_backend="none")
def dist(session: nox.Session) -> None:
    """Build every wheel, install ``unbackdoor[image]`` from them alone and start the command."""
    tools = install(session, ROOT / ".nox" / "build", "build>=1.2", "twine>=6")
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    for package in PACKAGES:
        session.run(str(tools), "-m", "build", "--outdir", str(wheels), package, external=True, silent=True)
    session.run(str(tools), "-m", "twine", "check", "--strict", *map(str, sorted(wheels.iterdir())), external=True)
    env = ROOT / ".nox" / "published"
    shutil.rmtree(env, ignore_errors=True)
    python = install(session, env, "unbackdoor[image]", "--find-links", str(wheels))
    command = python.with_name("unbackdoor.exe" if os.name == "nt" else "unbackdoor")
    with session.chdir(session.create_tmp()):  # so that nothing of the checkout is on the path
        session.run(str(command), "--version", external=True)
        session.run(str(command), "list", external=True)
        session.run(str(command), "card", "nft", external=True, silent=True)
        session.run(str(command), "demo", "--force", *session.posargs, external=True)


@nox.session(venv_backend="none")
def fairseq(session: nox.Session) -> None:
    """Reads a checkpoint that fairseq itself wrote. Needs CPython 3.10; some minutes, 2 GB."""
    old = python_310()
    if old is None:
        session.skip("no CPython 3.10 here, the last that fairseq 0.12.2 imports on; uv python install 3.10 gives one.")
    env = ROOT / ".nox" / "fairseq"
    theirs = env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not theirs.exists():
        session.run(str(old), "-m", "venv", str(env), external=True)
        # its dependency omegaconf has metadata that pip refuses from 24.1 on
        session.run(str(theirs), "-m", "pip", "install", "-q", "pip<24.1", "setuptools<70", "wheel", external=True)
        session.run(str(theirs), "-m", "pip", "install", "-q", *FAIRSEQ, external=True)
    made = Path(session.create_tmp()) / "fairseq"
    shutil.rmtree(made, ignore_errors=True)
    session.run(str(theirs), str(ROOT / "tools" / "fairseq_checkpoint.py"), str(made), external=True, silent=True)
    python = torch_env(session)
    tests = "tests/packages/translation/test_fairseq.py"
    session.run(str(python), "-m", "pytest", tests, external=True, env={"UNBACKDOOR_FAIRSEQ": str(made)})


def python_310() -> str | None:
    """A CPython 3.10 that starts: on the path, of pyenv, or of uv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which("python3.10"), *map(str, sorted(pyenv.glob("3.10.*/bin/python")))]
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        asked = subprocess.run([uv, "python", "find", "3.10"], capture_output=True, text=True, check=False)
        found.append(asked.stdout.strip())
    test = "import sys; sys.exit(sys.version_info[:2] != (3, 10))"
    for one in filter(None, found):
        if subprocess.run([one, "-c", test], capture_output=True, check=False).returncode == 0:
            return one
    return None


if __name__ == "__main__":
    nox.main()
