"""Names to things, and nothing imported before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from unbackdoor import registry
from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Demo, TaskKit
from unbackdoor.defender.methods.nft import NFT
from unbackdoor.defender.purifier import Purifier
from unbackdoor.errors import UnknownName
from unbackdoor.testing.classification import ClassificationTask


class Stripe(Attack):
    """Of another package."""

    name = "stripe"

    def trigger(self, inputs, generator=None):
        """As they are."""
        return inputs


class Lone(NFT):
    """A method in a file of its own.

    What it does.
    """

    name = "lone"


KIT = TaskKit(
    task=ClassificationTask,
    build=lambda name, num_classes=2, **options: None,
    models={},
    attacks={"corner": Stripe},
    data={},
    load_clean=lambda source: None,
    train=lambda *given, **options: None,
    demo=Demo("", "", ""),
    picture=lambda *given: None,
)


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
    plugins.append(EntryPoint("mine", "unbackdoor.defender.methods.nft:NFT", "unbackdoor.methods"))
    plugins.append(EntryPoint("other", f"{__name__}:KIT", "unbackdoor.tasks"))
    assert "mine" in registry.method_names()
    assert registry.method("mine") is NFT
    assert registry.task_names() == ["other"]
    assert registry.kit("other") is KIT


def test_attacks_of_other_packages_join_the_kit_of_their_task(plugins):
    plugins.append(EntryPoint("other", f"{__name__}:KIT", "unbackdoor.tasks"))
    plugins.append(EntryPoint("other.stripe", f"{__name__}:Stripe", "unbackdoor.attacks"))
    plugins.append(EntryPoint("image.stripe", "nowhere:Stripe", "unbackdoor.attacks"))
    attacks = registry.kit("other").attacks
    assert list(attacks) == ["corner", "stripe"]
    assert len(attacks) == 2
    assert "stripe" in attacks
    assert attacks["stripe"] is Stripe
    assert "blend" not in attacks


def test_a_broken_attack_of_another_package_does_no_harm_until_it_is_asked_for(plugins):
    plugins.append(EntryPoint("other", f"{__name__}:KIT", "unbackdoor.tasks"))
    plugins.append(EntryPoint("other.stripe", "nowhere_at_all:Stripe", "unbackdoor.attacks"))
    attacks = registry.kit("other").attacks
    assert attacks["corner"] is Stripe
    with pytest.raises(UnknownName, match=r"the attack 'other.stripe' .* cannot be imported \(ModuleNotFoundError"):
        attacks["stripe"]


def test_an_attack_may_not_take_the_name_of_a_kits_own(plugins):
    plugins.append(EntryPoint("other", f"{__name__}:KIT", "unbackdoor.tasks"))
    plugins.append(EntryPoint("other.corner", f"{__name__}:Stripe", "unbackdoor.attacks"))
    with pytest.raises(UnknownName, match="has one of that name itself"):
        registry.kit("other")


@pytest.mark.parametrize(
    ("group", "value", "told"),
    [
        ("unbackdoor.methods", f"{__name__}:Stripe", "is no subclass of unbackdoor.defender.purifier.Purifier"),
        ("unbackdoor.methods", "unbackdoor.tree:leaves", "is no subclass of unbackdoor.defender.purifier.Purifier"),
        ("unbackdoor.methods", "unbackdoor.tree:nothing", "cannot be imported"),
        ("unbackdoor.tasks", f"{__name__}:TaskKit", "is no unbackdoor.attacker.kit.TaskKit"),
        ("unbackdoor.tasks", "nowhere_at_all:KIT", "cannot be imported"),
    ],
)
def test_a_package_that_offers_something_else_is_named(plugins, group, value, told):
    plugins.append(EntryPoint("mine", value, group))
    with pytest.raises(UnknownName) as refused:
        (registry.method if group == "unbackdoor.methods" else registry.kit)("mine")
    assert told in str(refused.value)
    assert "'mine'" in str(refused.value)


def test_the_card_of_a_method_without_a_readme_is_made_from_its_class(plugins, monkeypatch):
    """A module without a package once gave 'Empty module name'."""
    module = ModuleType("lone_method")
    module.Lone = Lone
    monkeypatch.setitem(sys.modules, "lone_method", module)
    monkeypatch.setattr(Lone, "__module__", "lone_method")
    plugins.append(EntryPoint("lone", "lone_method:Lone", "unbackdoor.methods"))
    card = registry.card("lone")
    assert card.startswith("# lone\n\nA method in a file of its own.")
    assert "- `steps` (" in card


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


def offered(folder, name, group="unbackdoor.tasks"):
    """Files of an installed package that offers something under ``name``."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = nowhere_at_all:KIT\n")
    return str(folder)


def test_packages_are_looked_for_once(monkeypatch, tmp_path):
    registry.task_names()
    looked = []

    def counted(**given):
        looked.append(given)
        return found(**given)

    found = registry.distributions
    monkeypatch.setattr(registry, "distributions", counted)
    assert "image" in registry.task_names()
    registry.method_names()
    assert registry.kit("image").attacks
    assert looked == []
    monkeypatch.syspath_prepend(offered(tmp_path / "more", "further"))
    assert {"further", "image"} <= set(registry.task_names())
    assert len(looked) == 1


def test_of_two_packages_of_one_name_the_first_on_the_path_counts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(offered(tmp_path / "old", "further"))
    monkeypatch.syspath_prepend(offered(tmp_path / "new", "further", "unbackdoor.methods"))
    assert "further" in registry.method_names()
    assert "further" not in registry.task_names()


def test_what_lies_in_the_current_folder_is_not_installed(monkeypatch, tmp_path):
    """``python -m`` and ``python -c`` look for modules there, and a stranger's folder may be the current one."""
    folder = offered(tmp_path, "evil")
    program = [sys.executable, "-c", "from unbackdoor import registry; print(*registry.task_names())"]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
    assert "image" in done.stdout.split()
    assert "evil" not in done.stdout.split()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    assert "evil" not in registry.task_names()
    monkeypatch.chdir("/")
    assert "evil" in registry.task_names()
