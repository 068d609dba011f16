"""Every installed task and attack through the conformance kit; none is skipped for what it is."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import BadOption
from unbackdoor.registry import kit, method, method_names, task_names
from unbackdoor.testing import ClassificationTask, SquareTrigger, check_attack, check_purifier, check_task, tiny_models


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


def test_installed_task_runs_with_every_method(task_name):
    _, task, splits, model = material(task_name)
    for name in method_names():
        purifier = method(name)(steps=2, batch_size=8)
        check_purifier(purifier, model, splits.clean[slice(0, 16)], task, again=name == "nft")


def test_installed_attack_keeps_its_promises(attack_name):
    task_name, _, name = attack_name.partition("/")
    found, task, splits, _ = material(task_name)
    cls = found.attacks[name]
    batch = splits.train[slice(0, 200)]
    check_attack(found.attack(name, splits, rate=0.1), batch, task)
    if cls.clean_label:
        check_attack(found.attack(name, splits, rate=0.5, target=3), batch, task)
    elif cls.maps_all_to_all:
        check_attack(found.attack(name, splits, rate=0.1, all_to_all=True), batch, task)
    else:
        with pytest.raises(BadOption):
            found.attack(name, splits, all_to_all=True)


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
