"""Victims as the command line makes them: words turned into options, and progress shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.attacker.kit import Splits, TaskKit
from unbackdoor.attacker.plan import Plan, Scene
from unbackdoor.attacker.victim import Victim
from unbackdoor.errors import BadOption
from unbackdoor.evaluate import evaluate
from unbackdoor.spelling import did_you_mean
from unbackdoor_cli.options import takes, typed
from unbackdoor_cli.progress import Stages
from unbackdoor_cli.wording import Spelling, as_flag, as_key, spoken

__all__ = ["build", "checked", "device_of", "teach", "train_victim"]

_DEVICES = ("cpu", "cuda", "mps")


def checked(plan: Plan, kit: TaskKit) -> Plan:
    """``plan``, whose options may be words, with every name known and every option typed.

    Raises:
        UnknownName: The kit has no such data set or attack.
        BadOption: An option is unknown or of the wrong type.
    """
    plan.check(kit)
    attack = kit.attacks[plan.attack or kit.demo.attack]
    return replace(
        plan,
        data_options=_typed(kit.data[plan.data], plan.data_options, "--data-option"),
        model_options=_typed(kit.build, plan.model_options, "--model-option"),
        attack_options=_typed(attack, plan.attack_options, "--attack-option"),
        train_options=_typed(kit.train, plan.train_options, "--train-option"),
    )


def _typed(owner: Any, given: Mapping[str, Any], flag: str) -> dict[str, Any]:
    words = {name: value for name, value in given.items() if isinstance(value, str)}
    return dict(given) | typed(owner, words, flag)


def _spelt(plan: Plan, kit: TaskKit) -> dict[str, Spelling]:
    """How options of the plan, which messages name, are typed."""
    attack = kit.attacks[plan.attack or kit.demo.attack]
    return {
        **dict.fromkeys(("epochs", "batch_size", "lr"), as_key("--train-option")),
        **dict.fromkeys(takes(kit.data[plan.data]), as_key("--data-option")),
        **dict.fromkeys((f.name for f in fields(attack)), as_key("--attack-option")),
        "path": lambda name, value: f"--data-path {value}",
        "rate": as_flag,
    }


def device_of(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU where there is one.

    Raises:
        BadOption: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        hint = did_you_mean(name, ("auto", "cpu", "cuda", "mps")) if name.partition(":")[0] not in _DEVICES else ""
        raise BadOption(f"no device {name!r} here; give cpu, or auto for whatever there is.{hint}") from error
    return torch.device(name)


def build(kit: TaskKit, name: str, classes: int, options: Mapping[str, Any], device: torch.device) -> torch.nn.Module:
    """The architecture ``name`` on ``device``, in eval mode."""
    words = {"num_classes": classes, **options}
    return kit.build(name, **words).to(device).eval()


def train_victim(task_name: str, kit: TaskKit, plan: Plan, *, seed: int, device: torch.device, stages: Stages) -> Scene:
    """Train a model on poisoned data, or a benign one where the plan has no attack, and measure it.

    Raises:
        UnknownName: A name of the plan is not known.
        BadOption: An option cannot be used.
        UnhealthyAttack: The attack did not take, so that nothing can be shown with this victim.
    """
    plan = checked(plan, kit)
    with spoken(_spelt(plan, kit)):
        return _trained(task_name, kit, plan, seed=seed, device=device, stages=stages)


def _trained(task_name: str, kit: TaskKit, plan: Plan, *, seed: int, device: torch.device, stages: Stages) -> Scene:
    with stages.short(f"reading {plan.data}"):
        data = plan.read(kit, seed=seed)
    attack = plan.make_attack(kit, data)
    shown = stages.training(
        f"training {plan.model} " + ("without an attack" if attack is None else f"with the {plan.attack} attack")
    )
    model, task = plan.train(kit, data, attack, seed=seed, device=device, progress=shown)
    with stages.short("measuring the victim"):
        figures = evaluate(model, data.test, task, attack)
    victim = Victim(model, attack, plan.card(task_name, data, attack, figures, seed=seed, device=device), data.files)
    floor = HealthFloor(kit.attacks[kit.demo.attack].health.clean, 0.0) if attack is None else None
    victim.check_health(floor)
    return Scene(kit, task, data, victim)


def teach(
    kit: TaskKit, plan: Plan, *, seed: int, device: torch.device, stages: Stages, data: Splits | None = None
) -> tuple[Attack, Splits]:
    """The plan's attack with its trigger learned, for a look at it; nothing is measured or saved.

    An attack whose trigger is learned beside a victim gets a short training of the plan's model, all others learn from
    the data alone.

    Args:
        kit: Of the task.
        plan: What to train where a victim is needed.
        seed: Of every draw.
        device: Where to train.
        stages: Shows progress.
        data: Read already, by an earlier call with the same data set.
    """
    plan = checked(plan, kit)
    if data is None:
        with stages.short(f"reading {plan.data}"):
            data = plan.read(kit, seed=seed)
    attack = plan.make_attack(kit, data)
    assert attack is not None
    if attack.needs_training:
        shown = stages.training(f"learning the trigger of {plan.attack} beside {plan.model}")
        plan.train(kit, data, attack, seed=seed, device=device, progress=shown)
    else:
        with stages.short(f"preparing {plan.attack}"):
            attack.prepare(data.train.to(device), torch.Generator().manual_seed(seed))
    return attack, data
