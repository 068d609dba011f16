"""Names to things, and nothing imported before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from unbackdoor import registry
from unbackdoor.errors import UnknownName
from unbackdoor.methods.nft import NFT
from unbackdoor.purifier import Purifier


def test_registry_finds_the_methods_of_the_papers_by_name():
    assert {"nft", "fip", "f-fip", "ft", "bn-only"} <= set(registry.method_names())
    assert registry.method_names() == sorted(registry.method_names())
    for name in registry.method_names():
        assert registry.method(name).name == name
        assert issubclass(registry.method(name), Purifier)


def test_registry_folders_are_named_after_their_method():
    for name in registry.method_names():
        package = registry.method(name).__module__.split(".")
        assert package[:2] != ["unbackdoor", "methods"] or package[2] == name.replace("-", "_")


@pytest.fixture
def plugins(monkeypatch):
    points = []
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    return points


def test_registry_takes_methods_and_tasks_of_other_packages(plugins):
    plugins.append(EntryPoint("mine", "unbackdoor.methods.nft:NFT", "unbackdoor.methods"))
    plugins.append(EntryPoint("other", "unbackdoor.testing:tiny_models", "unbackdoor.tasks"))
    assert "mine" in registry.method_names()
    assert registry.method("mine") is NFT
    assert registry.task_names() == ["other"]
    assert callable(registry.kit("other"))


def test_registry_refuses_two_owners_of_one_name(plugins):
    plugins.append(EntryPoint("mine", "one:A", "unbackdoor.tasks"))
    plugins.append(EntryPoint("mine", "two:B", "unbackdoor.tasks"))
    with pytest.raises(UnknownName, match="claimed by"):
        registry.task_names()


def test_registry_says_what_there_is(plugins):
    with pytest.raises(UnknownName, match=r"no task 'image'. Known: none.*pip install"):
        registry.kit("image")
    with pytest.raises(UnknownName, match=r"no method 'ntf'. Known: .*Did you mean 'nft'"):
        registry.method("ntf")


def test_import_is_light_and_quiet():
    """No task package, plotting or vision library comes with ``import unbackdoor``, and nothing is printed."""
    code = (
        "import sys, unbackdoor; "
        "heavy = {'torchvision', 'timm', 'transformers', 'sklearn', 'pandas', 'matplotlib', 'unbackdoor_image'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
