"""The tree is as the plan of the house says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from unbackdoor import registry

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {
    path.parent.relative_to(ROOT).as_posix(): tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    for path in [ROOT / "shared" / "pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]
}
METHODS = sorted(path.parent for path in ROOT.glob("shared/src/unbackdoor/defender/methods/*/__init__.py"))
DEFENCES = sorted(path.parent for path in ROOT.glob("shared/src/unbackdoor/defender/defences/*/__init__.py"))


def test_versions_move_in_lockstep():
    versions = {name: project["version"] for name, project in PROJECTS.items()}
    assert len(set(versions.values())) == 1, versions
    (version,) = set(versions.values())
    for folder, project in PROJECTS.items():
        extras = [one for group in project.get("optional-dependencies", {}).values() for one in group]
        ours = [one for one in project["dependencies"] + extras if one.startswith("unbackdoor")]
        assert all(one.endswith(f"=={version}") for one in ours), (folder, ours)
    for path in [*ROOT.glob("shared/src/*/__init__.py"), *ROOT.glob("packages/*/src/*/__init__.py")]:
        assert f'__version__ = "{version}"' in path.read_text(encoding="utf-8"), path


def test_changelog_tells_of_this_version():
    assert f"## [{PROJECTS['shared']['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_names_follow_the_folders():
    for folder, project in PROJECTS.items():
        name = "unbackdoor" if folder == "shared" else f"unbackdoor-{Path(folder).name}"
        assert project["name"] == name
        assert (ROOT / folder / "src" / name.replace("-", "_") / "__init__.py").is_file()
        assert project["requires-python"] == ">=3.11"


def test_core_needs_torch_safetensors_and_numpy_only():
    names = {word.split(">")[0].split("=")[0] for word in PROJECTS["shared"]["dependencies"]}
    assert names == {"torch", "safetensors", "numpy"}


def test_every_task_package_is_an_extra_of_the_core():
    extras = PROJECTS["shared"]["optional-dependencies"]
    for folder, project in PROJECTS.items():
        for task in project.get("entry-points", {}).get("unbackdoor.tasks", {}):
            assert Path(folder).name == task
            assert any(word.startswith(f"unbackdoor-{task}==") for word in extras[task])


@pytest.mark.parametrize("folder", METHODS + DEFENCES, ids=lambda folder: folder.name)
def test_method_is_one_module_and_its_card(folder):
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        "__init__.py",
        "README.md",
        f"{folder.name}.py",
    }
    assert len((folder / f"{folder.name}.py").read_text(encoding="utf-8").splitlines()) <= 230
    names = registry.method_names() if folder in METHODS else registry.defence_names()
    assert folder.name.replace("_", "-") in names


def test_every_method_folder_gives_one_method():
    assert sorted(folder.name.replace("_", "-") for folder in METHODS) == registry.method_names()
    assert sorted(folder.name.replace("_", "-") for folder in DEFENCES) == registry.defence_names()
