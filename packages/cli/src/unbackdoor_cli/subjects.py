"""What a user names on the command line, opened: a model, samples for it and, where known, its attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from unbackdoor.attack import Attack
from unbackdoor.checkpoint import load
from unbackdoor.errors import BadOption, FileRefused
from unbackdoor.registry import kit as kit_of
from unbackdoor.scene import is_victim, open_victim, task_of_victim
from unbackdoor.task import Batch, Task
from unbackdoor_cli.named import Named
from unbackdoor_cli.options import pairs, typed
from unbackdoor_cli.victims import build, device_of

__all__ = ["Subject", "open_subject"]


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
    """

    name: str
    task: Task
    task_name: str
    model: nn.Module
    held: Batch
    test: Batch | None = None
    attack: Attack | None = None
    notices: list[str] = field(default_factory=list)


def open_subject(named: Named) -> Subject:
    """Open a victim's folder, or a checkpoint with the architecture and samples that go with it.

    Raises:
        UnbackdoorError: Something is missing, does not exist or does not fit; the message says what to give.
    """
    if not named.source.exists():
        raise FileRefused(f"no checkpoint and no victim at {named.source}.")
    if named.source.is_dir() and not is_victim(named.source):
        raise FileRefused(f"{named.source} is a folder without card.json; give a checkpoint file or a victim's folder.")
    device = device_of(named.device)
    if is_victim(named.source):
        return _of_victim(named, named.source, device)
    if named.attack_from is not None:
        return _of_victim(named, named.attack_from, device)
    return _of_checkpoint(named, device)


def _of_victim(named: Named, folder: Path, device: torch.device) -> Subject:
    data_words, task_words = named.short_forms()
    kit_task = _task_options(named, folder, task_words)
    scene = open_victim(folder, device=device, data_path=named.data_path, task_options=kit_task)
    card, model, notices = scene.victim.card, scene.victim.model, []
    if folder == named.source:
        if named.model is not None:
            raise BadOption(f"{folder} is a victim, whose card names its model ({card.model}); leave --model out.")
    else:
        name = named.model or card.model
        words = typed(scene.kit.build, pairs(named.model_options, "--model-option"), "--model-option")
        options = {**({} if named.model else card.model_options), **words}
        classes = named.num_classes or int(card.model_options["num_classes"])
        model = build(scene.kit, name, classes, {k: v for k, v in options.items() if k != "num_classes"}, device)
        notices = load(model, named.source)
    held, test = scene.data.clean, scene.data.test
    if named.data is not None:
        options = typed(scene.kit.load_clean, pairs(data_words, "--data-option"), "--data-option")
        held, _ = scene.kit.load_clean(named.data, **options)
    return Subject(str(named.source), scene.task, card.task, model, held, test, scene.victim.attack, notices)


def _task_options(named: Named, folder: Path, words: Sequence[str]) -> dict[str, object]:
    return typed(kit_of(task_of_victim(folder)).task, pairs(words, "--task-option"), "--task-option")


def _of_checkpoint(named: Named, device: torch.device) -> Subject:
    missing = [flag for flag, value in (("--model", named.model), ("--data", named.data)) if value is None]
    if named.model is None or named.data is None:
        raise BadOption(
            f"{named.source} is a checkpoint, so {' and '.join(missing)} must be given: "
            "--model names its architecture, --data your labelled clean samples."
        )
    kit = kit_of(named.task)
    data_words, task_words = named.short_forms()
    task = kit.task(**typed(kit.task, pairs(task_words, "--task-option"), "--task-option"))
    options = typed(kit.load_clean, pairs(data_words, "--data-option"), "--data-option")
    samples, classes = kit.load_clean(named.data, **options)
    notices = []
    count = named.num_classes or len(classes)
    if named.num_classes is None:
        notices.append(f"--num-classes was not given; {len(classes)} was taken from {named.data}.")
    words = typed(kit.build, pairs(named.model_options, "--model-option"), "--model-option")
    model = build(kit, named.model, count, words, device)
    notices += load(model, named.source)
    return Subject(str(named.source), task, named.task, model, samples, notices=notices)
