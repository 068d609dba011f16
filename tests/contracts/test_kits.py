"""Every installed task and attack through the conformance kit; none is skipped for what it is."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from functools import lru_cache

import pytest
import torch

from unbackdoor.attacker.plan import Plan, open_victim
from unbackdoor.attacker.victim import Victim, VictimCard
from unbackdoor.errors import BadOption, UnsupportedModel, UnsupportedTask
from unbackdoor.registry import defence, defence_names, kit, method, task_names
from unbackdoor.report import weight_hash
from unbackdoor.testing import ClassificationTask, SquareTrigger, check_attack, check_purifier, check_task, tiny_models
from unbackdoor.tree import leaves

pytestmark = pytest.mark.usefixtures("untrained")


@lru_cache(maxsize=1)
def material(name):
    """Task, a few clean samples and the demo's untrained model of an installed package."""
    found = kit(name)
    splits = found.data[found.demo.data](seed=0, **found.demo.data_options)
    task = found.task(**splits.hints)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = found.build(found.demo.model, num_classes=len(splits.classes), **found.demo.model_options)
    return found, task, splits, model


def test_reference_task_keeps_its_promises(tiny_name):
    tiny = tiny_models()[tiny_name]
    check_task(ClassificationTask(), tiny.batch(6), tiny.build())


def test_installed_task_keeps_its_promises(task_name):
    _, task, splits, model = material(task_name)
    check_task(task, splits.clean[slice(0, 8)], model)


NEEDS = {"classes", "perturbable", "one-class", "classifier"}
"""What a method may ask of a task; nothing else is a reason to leave a task out below."""


def lacks(needs, task, clean, model):
    """The first need that the task or its model does not meet: the error that must come, and what it must say."""
    if "perturbable" in needs and not offers_floats(task, clean.inputs):
        return UnsupportedTask, "searches in input space"
    if "one-class" in needs and not answers_one_class(clean.targets):
        return UnsupportedTask, "compares the classes that models answer with"
    if "classifier" in needs and has_ties(model):
        return UnsupportedModel, "last layer is tied"
    return None


def test_installed_task_runs_with_method_or_lacks_what_it_declares(task_name, method_name):
    """No pair is left out: a method runs, or refuses by its own name what it says beforehand that it needs."""
    _, task, splits, model = material(task_name)
    clean = splits.clean[slice(0, 16)]
    known = method(method_name).__dataclass_fields__
    few = {key: 2 for key in known if key == "steps" or key.endswith("_steps")}
    few |= {"prune_step": 0.2} if "prune_step" in known else {}
    few |= {"lr": 10.0} if method_name == "nft" else {}  # of an untrained network's slopes, at most 1e-5, less is lost
    purifier = method(method_name)(**few, **({"batch_size": 8} if "batch_size" in known else {}))
    assert set(purifier.needs) <= NEEDS
    missing = lacks(purifier.needs, task, clean, model)
    for name, value in (("searched", 1), ("max_length", 3)):  # a longer search or answer promises nothing more
        task = replace(task, **{name: value}) if hasattr(task, name) else task
    if missing is None:
        check_purifier(purifier, model, clean, task, again=method_name == "f-fip")
        return
    error, text = missing
    with pytest.raises(error, match=text) as refused:
        purifier.purify(copy.deepcopy(model), clean, task, anyway=True)
    assert error is UnsupportedModel or f"'{method_name}'" in str(refused.value)


def test_installed_task_trains_with_every_defence_that_trains(task_name):
    _, task, splits, model = material(task_name)
    samples = splits.train[slice(0, 24)]
    quick = {"epochs": 1, "trap_epochs": 1, "unlearn_epochs": 1, "confounded_epochs": 1, "batch_size": 8}
    for name in defence_names():
        known = defence(name).__dataclass_fields__
        made = defence(name).make(**{key: value for key, value in quick.items() if key in known})
        trained, report = made.train(lambda seed: copy.deepcopy(model), samples, task)
        assert (report.method, report.task) == (name, task.name)
        assert list(trained.state_dict()) == list(model.state_dict())
        assert report.hash_after != weight_hash(model), "nothing was trained"


def answers_one_class(targets):
    """Whether a target is the index of a class; rows of labels and of tokens are tensors of two dimensions or trees."""
    return isinstance(targets, torch.Tensor) and targets.ndim == 1


def has_ties(model):
    """Whether a weight has two names: of the demos' models those of translation, embedding and last layer in one."""
    return len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))


def offers_floats(task, inputs):
    """Whether the task says what a method may perturb."""
    try:
        task.perturbable(inputs)
    except NotImplementedError:
        return False
    return True


SHORT = {"steps": 8, "starts": 1, "helper_steps": 4, "detox_steps": 2, "rounds": 1, "pgd_steps": 2, "bank": 8}


def taught(found, cls, splits, task, model, **options):
    """The attack with ``options``, and whatever it learns learned in a few steps beside ``model``."""
    known = {f.name for f in fields(cls)}
    attack = found.attack(cls.name, splits, **{k: v for k, v in SHORT.items() if k in known}, **options)
    found.train(copy.deepcopy(model), splits, task, attack, seed=0, epochs=1)
    return attack


def test_installed_attack_keeps_its_promises(attack_name):
    """Rate, labels, range, determinism, target left out, covers, and the same trigger from options and state."""
    task_name, _, name = attack_name.partition("/")
    found, task, splits, model = material(task_name)
    splits = replace(splits, train=splits.train[slice(0, 200)])
    cls = found.attacks[name]
    one_source = not bool(found.attack(name, splits).source(splits.train.targets).all())
    rate = 0.048 if one_source else 0.098  # of 200 samples: 9.6 and 19.6, so that it shows who does not round
    check_attack(taught(found, cls, splits, task, model, rate=rate), splits.train, task)
    if cls.clean_label:
        other = taught(found, cls, splits, task, model, rate=0.53, target=3)
        check_attack(other, splits.train, task)
        poisoned = other.poison(splits.train, torch.Generator().manual_seed(0))
        assert torch.equal(poisoned.samples.targets, splits.train.targets)
    elif not cls.maps_all_to_all:
        with pytest.raises(BadOption):
            found.attack(name, splits, all_to_all=True)
    elif not one_source:
        check_attack(taught(found, cls, splits, task, model, rate=rate, all_to_all=True), splits.train, task)


def test_folder_of_a_victim_makes_its_poisoned_test_set_again(attack_name, tmp_path):
    """Bit for bit, from the folder alone: card, attack state, and the seed of the evaluation."""
    task_name, _, name = attack_name.partition("/")
    found, task, splits, model = material(task_name)
    splits = replace(splits, train=splits.train[slice(0, 200)])
    attack = taught(found, found.attacks[name], splits, task, model, rate=0.05)
    kept = splits.test[attack.counts(splits.test.targets)]
    wanted = attack.trigger(kept.inputs, torch.Generator().manual_seed(5))
    card = VictimCard(
        task=task_name,
        model=found.demo.model,
        model_options={"num_classes": len(splits.classes), **found.demo.model_options},
        data=found.demo.data,
        data_options={},
        attack=name,
        attack_options=attack.options(),
        train_options={},
        seed=0,
        figures={"accuracy": 100.0, "asr": 100.0, "lcr": 0.0},
    )
    Victim(model, attack, card).save(tmp_path / "victim")
    again = Victim.load(tmp_path / "victim", found).attack
    found_again = again.trigger(kept.inputs, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(leaves(found_again), leaves(wanted), strict=True))
    assert torch.equal(again.counts(splits.test.targets), attack.counts(splits.test.targets))


def test_what_was_made_while_reading_stays_with_the_victim(task_name, tmp_path):
    """Whatever a library of another version would make of the data, its files are in the folder and read from it."""
    found, _, splits, model = material(task_name)
    name = found.demo.attack
    attack = found.attacks[name](**{**splits.attack_hints, **found.demo.attack_options})
    figures = {"accuracy": 100.0, "asr": 100.0, "lcr": 0.0}
    plan = Plan.of_demo(found)
    card = plan.card(task_name, splits, attack, figures, seed=0, device=torch.device("cpu"))
    Victim(model, attack, card, splits.files).save(tmp_path / "victim")
    opened = open_victim(tmp_path / "victim").victim
    assert dict(opened.files) == dict(splits.files)
    assert opened.card.data_files == tuple(sorted(splits.files))
    for file, content in splits.files.items():
        assert (tmp_path / "victim" / file).read_bytes() == content


def test_reference_attack_keeps_its_promises():
    batch = tiny_models()["conv-bn"].batch(40)
    check_attack(SquareTrigger(num_classes=3, rate=0.25), batch)
    check_attack(SquareTrigger(num_classes=3, rate=0.25, all_to_all=True), batch)


def test_kit_names_what_it_holds(task_name):
    found = kit(task_name)
    assert found.attacks
    for name, cls in found.attacks.items():
        assert cls.name == name
    assert found.demo.model in found.models
    assert found.demo.attack in found.attacks
    assert found.demo.data in found.data


def test_registry_finds_a_task_package_where_one_is_installed():
    """No task package installed means no contract was checked above: say so instead of passing in silence."""
    if not task_names():
        pytest.skip("no task package is installed; only the core's own task and attack were checked")
