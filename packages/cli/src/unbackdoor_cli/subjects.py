"""What a user names on the command line, opened: a model, samples for it and, where known, its attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import TaskKit
from unbackdoor.attacker.plan import is_victim, open_victim, task_of_victim
from unbackdoor.checkpoint import files_of, load, read
from unbackdoor.defender.preflight.check import misfit
from unbackdoor.defender.preflight.standing import standing
from unbackdoor.errors import BadData, BadOption, CheckpointMismatch, FileRefused, UnbackdoorError
from unbackdoor.evaluate import evaluate
from unbackdoor.registry import kit as kit_of
from unbackdoor.task import Batch, Task
from unbackdoor_cli.class_order import check_count, outputs_of
from unbackdoor_cli.named import Named
from unbackdoor_cli.options import pairs, takes, typed
from unbackdoor_cli.provenance import digest
from unbackdoor_cli.victims import build, device_of
from unbackdoor_cli.wording import Spelling, as_flag, as_key, spoken

__all__ = ["Subject", "has_classes", "make_task", "model_words", "open_subject", "read_samples", "spellings"]

_SHORT = ("size", "classes", "mean", "std")


@dataclass(frozen=True)
class Subject:
    """A model with samples.

    Attributes:
        name: How to call it in a table.
        task: Its task.
        task_name: The name under which the task is installed.
        model: The model, on its device, in eval mode.
        held: Clean samples that a defender may use.
        test: Samples to measure on that no defender sees, where the model is a victim or is compared with one.
        attack: The attack, where it is known.
        notices: What the user should know.
        classes: Names of the model's outputs, in their order; None for tasks without classes.
        facts: Where model and samples come from, for the report.
    """

    name: str
    task: Task
    task_name: str
    model: nn.Module
    held: Batch
    test: Batch | None = None
    attack: Attack | None = None
    notices: list[str] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def open_subject(named: Named) -> Subject:
    """Open a victim's folder, or a checkpoint with the architecture and samples that go with it.

    Raises:
        UnbackdoorError: Something is missing, does not exist or does not fit; the message says what to give.
    """
    if not named.source.exists():
        raise FileRefused(f"no checkpoint and no victim at {named.source}.")
    device = device_of(named.device)
    if is_victim(named.source):
        return _of_victim(named, named.source, device)
    files_of(named.source)  # a wrong file is called what it is before anything else is read
    if named.attack_from is not None:
        return _of_victim(named, named.attack_from, device)
    return _of_checkpoint(named, device)


def has_classes(kit: TaskKit) -> bool:
    """Whether the outputs of the kit's models stand for classes that samples are read with; sentences have none."""
    return "classes" in takes(kit.load_clean)


def spellings(kit: TaskKit) -> dict[str, Spelling]:
    """How options of the kit's reader and task, which messages name, are typed."""
    return {**_spelt(kit.task, "--task-option"), **_spelt(kit.load_clean, "--data-option"), "num_classes": as_flag}


def make_task(kit: TaskKit, words: Sequence[str]) -> Task:
    """The kit's task with the options of ``--task-option``.

    Raises:
        BadOption: It has no such option.
    """
    with spoken(_spelt(kit.task, "--task-option")):
        return kit.task(**_typed(kit, kit.task, words, "--task-option"))


def model_words(kit: TaskKit, words: Sequence[str]) -> dict[str, Any]:
    """Options of ``--model-option``.

    Raises:
        BadOption: The kit's models have no such option.
    """
    return _typed(kit, kit.build, words, "--model-option")


def read_samples(
    kit: TaskKit, source: Path, words: Sequence[str], classes: Sequence[str] | None = None
) -> tuple[Batch, tuple[str, ...], dict[str, Any]]:
    """The user's own samples, the names of their classes, and the options that they were read with.

    Args:
        kit: Of the task.
        source: Where they lie.
        words: Of ``--data-option``.
        classes: Names of all classes, where they are known and the user gives none.

    Raises:
        BadData: They cannot be used.
        BadOption: The reader has no such option.
    """
    options = _typed(kit, kit.load_clean, words, "--data-option")
    known = {} if classes is None or options.keys() & {"classes", "order"} else {"classes": tuple(classes)}
    with spoken(_spelt(kit.load_clean, "--data-option")):
        samples, found = kit.load_clean(source, **known, **options)
    return samples, found, options


def _typed(kit: TaskKit, owner: Any, words: Sequence[str], flag: str) -> dict[str, Any]:
    owners = {"--data-option": kit.load_clean, "--task-option": kit.task, "--model-option": kit.build}
    return typed(owner, pairs(words, flag), flag, {other: of for other, of in owners.items() if other != flag})


def _spelt(owner: Any, flag: str) -> dict[str, Spelling]:
    return {name: as_flag if name in _SHORT else as_key(flag) for name in takes(owner)}


def _of_victim(named: Named, folder: Path, device: torch.device) -> Subject:
    data_words, task_words = named.short_forms()
    kit = kit_of(task_of_victim(folder))
    given = _typed(kit, kit.task, task_words, "--task-option")
    with spoken(_spelt(kit.task, "--task-option")):
        scene = open_victim(folder, device=device, data_path=named.data_path, task_options=given, trust=named.trust)
    card, model, notices = scene.victim.card, scene.victim.model, []
    name, options = card.model, dict(card.model_options)
    weights = folder / "model.safetensors"
    if folder == named.source:
        if named.model is not None:
            raise BadOption(f"{folder} is a victim, whose card names its model ({card.model}); leave --model out.")
    else:
        options = {**({} if named.model else options), **model_words(kit, named.model_options)}
        options["num_classes"] = named.num_classes or int(options.get("num_classes", card.model_options["num_classes"]))
        name, weights = named.model or card.model, named.source
        if named.model is None:
            model = scene.build(**options).to(device).eval()
        else:
            model = build(scene.kit, name, options["num_classes"], options, device)
        notices += load(model, named.source, entry=named.entry)
    held, test, classes = scene.data.clean, scene.data.test, scene.data.classes
    facts: dict[str, Any] = {"data": card.data, "data_options": dict(card.data_options)}
    if named.data is not None:
        held, classes, words = read_samples(kit, named.data, data_words, classes if has_classes(kit) else None)
        notices += held.notices
        if has_classes(kit):
            check_count(classes, int(options["num_classes"]), named.data, named="classes" in words)
        facts = {"data": str(named.data), "data_options": words}
    facts |= {"model": name, "model_options": options, "source": str(named.source), "sha256": digest(weights)}
    return Subject(
        str(named.source), scene.task, card.task, model, held, test, scene.victim.attack, notices,
        tuple(classes) if has_classes(kit) else None, facts,
    )  # fmt: skip


def _of_checkpoint(named: Named, device: torch.device) -> Subject:
    missing = [flag for flag, value in (("--model", named.model), ("--data", named.data)) if value is None]
    if named.model is None or named.data is None:
        raise BadOption(
            f"{named.source} is a checkpoint, so {' and '.join(missing)} must be given: "
            "--model names its architecture, --data your labelled clean samples."
        )
    kit = kit_of(named.task)
    data_words, task_words = named.short_forms()
    task = make_task(kit, task_words)
    samples, classes, words = read_samples(kit, named.data, data_words)
    notices = list(samples.notices)
    options = model_words(kit, named.model_options)
    given = options.pop("num_classes", named.num_classes)
    count = len(classes) if given is None else int(given)
    model = build(kit, named.model, count, options, device)
    try:
        notices += load(model, named.source, entry=named.entry)
    except CheckpointMismatch:
        outputs = _outputs(kit, named, count, options, device)
        if outputs is None or outputs == count:
            raise
        if given is not None:
            raise BadData(
                f"the last layer in {named.source} has {outputs} outputs, but --num-classes is {given}; give "
                f"--num-classes {outputs}."
            ) from None
        count = outputs
        model = build(kit, named.model, count, options, device)
        notices += load(model, named.source, entry=named.entry)
    if has_classes(kit):
        one_label = isinstance(samples.targets, torch.Tensor) and samples.targets.ndim == 1
        tell = partial(_meaning, model, samples, task) if one_label else None
        check_count(classes, count, named.data, named="classes" in words, tell=tell)
    facts = {
        "source": str(named.source), "sha256": digest(named.source), "model": named.model,
        "model_options": {"num_classes": count, **options}, "data": str(named.data), "data_options": words,
    }  # fmt: skip
    if given is None:
        notices.append(f"--num-classes was not given; {count} fits the weights in {named.source} and was taken.")
    return Subject(
        str(named.source), task, named.task, model, samples, notices=notices,
        classes=tuple(classes) if has_classes(kit) else None, facts=facts,
    )  # fmt: skip


def _meaning(model: nn.Module, samples: Batch, task: Task) -> str | None:
    """Which outputs the labels mean, by what the model answers; None where it does not tell."""
    evaluate(model, samples, task)  # refuses samples that the model cannot take
    return misfit(standing(model, samples, task), model, samples, task, labelled=True)


def _outputs(kit: TaskKit, named: Named, count: int, options: Mapping[str, Any], device: torch.device) -> int | None:
    """How many outputs the model of the checkpoint has; None where that cannot be seen."""
    try:
        tensors, _ = read(named.source, entry=named.entry)
        shapes = [(name, tuple(value.shape)) for name, value in tensors.items()]
        return outputs_of(lambda number: build(kit, str(named.model), number, options, device), count, shapes)
    except UnbackdoorError:
        return None
