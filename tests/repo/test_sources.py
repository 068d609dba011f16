"""What no source file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted([*ROOT.glob("shared/src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")])
SEEDS = {"torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "random.seed"} | {
    "np.random.seed",
    "numpy.random.seed",
}
UNPICKLES = {"pickle.load", "pickle.loads", "joblib.load", "dill.load", "cloudpickle.load"}


def tracked() -> list[Path]:
    """Files that are committed or staged, not a user's own, such as an environment; all files where there is no git."""
    words = ["git", "ls-files", "--cached", "-z"]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        skipped = {".git", ".nox", ".venv"}
        return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.parts)]
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


FILES = tracked()


def forked(tree: ast.AST) -> set[int]:
    """Lines in which the global generator's state is put aside by ``fork_rng``."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    inside = [block for block in blocks if any("fork_rng" in ast.unparse(item) for item in block.items)]
    return {line for block in inside for line in range(block.lineno, (block.end_lineno or block.lineno) + 1)}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@pytest.mark.parametrize("path", sorted(ROOT.glob("shared/src/**/*.*")), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_names_no_kind_of_data(path):
    """Methods serve any task; the toys in `unbackdoor.testing` and the names of packages in examples are free."""
    if path.suffix not in (".py", ".md") or "testing" in path.parts:
        return
    free = r"""task="image"|``"image"``|such as 'image'|"token"|unbackdoor\[image\]|\bpixels(?=[:=])|paper-\w+"""
    found = re.sub(free, "", text_of(path))
    words = re.findall(r"\b(images?|pixels?|videos?|tokens?|sentences?|point clouds?)\b", found, re.IGNORECASE)
    assert words == []


def test_there_is_something_to_look_at():
    assert len(LIBRARY) > 20
    assert len(FILES) > len(LIBRARY)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_library_never_seeds_globally_unpickles_or_prints(path):
    lines = forked(ast.parse(path.read_text(encoding="utf-8")))
    for name, call in calls(path):
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        assert name not in SEEDS or call.lineno in lines, f"{where} seeds globally; pass a torch.Generator"
        if name in ("torch.default_generator.manual_seed", "torch.cuda.manual_seed"):  # initialisers know no other
            assert call.lineno in lines, f"{where} seeds globally outside of fork_rng"
        assert name not in UNPICKLES, f"{where} unpickles"
        assert name != "print", f"{where} prints"
        if name == "torch.load":
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("weights_only") == "True", f"{where} loads without weights_only=True"
        if name.endswith(("np.load", "numpy.load")):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("allow_pickle", "False") == "False", f"{where} allows pickles"


def test_no_file_is_large():
    large = [path.relative_to(ROOT).as_posix() for path in FILES if path.stat().st_size > 2 * 2**20]
    assert large == []


def test_no_file_holds_a_path_of_one_machine():
    places = re.compile(r"(?<![\w./-])/" + r"(home|root|Users|work|opt|mnt|tmp)/\w")
    found = [path.relative_to(ROOT).as_posix() for path in FILES if places.search(text_of(path))]
    assert found == []


def test_no_module_is_long():
    long = {p.relative_to(ROOT).as_posix(): n for p in LIBRARY if (n := len(text_of(p).splitlines())) > 400}
    assert long == {}


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "misc"])
def test_no_module_has_a_name_that_says_nothing(word):
    assert [path for path in LIBRARY if word in (path.stem, path.parent.name)] == []


def test_every_task_package_is_typed_and_licensed():
    for package in [ROOT / "shared", *(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))]:
        assert list(package.glob("src/*/py.typed")), f"{package.name} has no py.typed"
        licence = package / "LICENSE"
        assert licence.is_file(), f"{package.name} has no LICENSE"
        assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()
