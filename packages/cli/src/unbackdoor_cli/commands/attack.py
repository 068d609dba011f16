"""``unbackdoor attack``: train a backdoored model to experiment with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unbackdoor_cli import flags
from unbackdoor_cli.named import reads_files

if TYPE_CHECKING:
    import torch

    from unbackdoor.attacker.attack import Attack
    from unbackdoor.attacker.kit import TaskKit
    from unbackdoor.attacker.plan import Plan
    from unbackdoor.task import Batch
    from unbackdoor_cli.progress import Stages

_ATTACK = "Attack and training"
_FILES = ("model.safetensors", "attack.safetensors", "card.json")


@reads_files
def attack(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the victim: model, attack and card.")
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="Draw what triggers do: clean, triggered, difference x 10. Without --out and --attack: of all.",
        ),
    ] = None,
    task: flags.Task = "image",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=r"Data set, of `unbackdoor list data`. \[default: the demo's]",
            rich_help_panel="Model and data",
        ),
    ] = None,
    data_path: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where it lies.", rich_help_panel="Model and data")
    ] = None,
    data_option: flags.DataOptions = None,
    model: flags.Model = None,
    model_option: flags.ModelOptions = None,
    attack: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=r"Of `unbackdoor list attacks`, or none for a benign model. \[default: the demo's]",
            rich_help_panel=_ATTACK,
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of poisoned samples, 0 to 1.", rich_help_panel=_ATTACK)
    ] = None,
    attack_option: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Option of the attack; repeat.", rich_help_panel=_ATTACK)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Passes over the data.", rich_help_panel=_ATTACK)
    ] = None,
    train_option: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Option of the trainer; repeat.", rich_help_panel=_ATTACK)
    ] = None,
    seed: flags.Seed = 0,
    device: flags.Device = "auto",
    force: flags.Force = False,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Train a backdoored model to experiment with.

    Trains on poisoned data and saves a victim: the model, its attack and a
    card that tells where it comes from. A victim whose attack did not take
    is refused: nothing could be shown with it. With --attack none it trains a
    benign model, to see that a purification does it no harm.

    Example: unbackdoor attack --data cifar10 --data-path data
    --model preactresnet18 --attack blend --out victim

    To see the triggers alone: unbackdoor attack --preview triggers.png
    """
    from unbackdoor.attacker.victim_card import NO_ATTACK
    from unbackdoor.errors import BadOption
    from unbackdoor.files.writing import write_atomically
    from unbackdoor.registry import kit as kit_of
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.options import pairs
    from unbackdoor_cli.paths import check_outputs
    from unbackdoor_cli.progress import stages
    from unbackdoor_cli.tables import ceiling, figures, measured_by
    from unbackdoor_cli.victims import device_of, train_victim

    output = Output(as_json=json)
    if out is None and preview is None:
        raise BadOption("give --out DIR for a victim, or --preview PNG to see what triggers do.")
    outputs = ([out / name for name in _FILES] if out else []) + ([preview] if preview else [])
    words = (model or "", *(model_option or ()), *(data_option or ()), *(attack_option or ()), *(train_option or ()))
    check_outputs(outputs, (data_path,), force=force, words=words)
    kit = kit_of(task)
    draw = kit.preview
    if preview is not None and draw is None:
        raise BadOption(f"the task {task!r} draws no previews; leave --preview out.")
    if attack == NO_ATTACK and (preview is not None or attack_option or rate is not None):
        raise BadOption("--attack none has no trigger; leave --preview, --rate and --attack-option out.")
    given: dict[str, Mapping[str, object]] = {
        "data_options": {**pairs(data_option, "--data-option"), **_given(path=data_path and str(data_path.absolute()))},
        "model_options": pairs(model_option, "--model-option"),
        "attack_options": {**pairs(attack_option, "--attack-option"), **_given(rate=rate)},
        "train_options": {**pairs(train_option, "--train-option"), **_given(epochs=epochs)},
    }
    if out is None:
        names = [attack] if attack else sorted(kit.attacks)
        plans = [_plan(kit, data, model, name, given) for name in names]
        with stages(output) as shown:
            learned, samples = _taught(kit, plans, seed=seed, device=device_of(device), stages=shown)
            assert preview is not None
            assert draw is not None
            write_atomically(preview, lambda path: draw(path, learned, samples), force=force)
        output.result({"preview": str(preview), "task": task, "attacks": names}, f"Drawn: {preview}")
        return
    plan = _plan(kit, data, model, attack, given)
    with stages(output) as shown:
        scene = train_victim(task, kit, plan, seed=seed, device=device_of(device), stages=shown)
        outputs += [out / name for name in scene.victim.files]
        check_outputs(outputs, (data_path,), force=force, words=words)
        trigger = scene.victim.attack
        if preview is not None and draw is not None and trigger is not None:
            write_atomically(preview, lambda path: draw(path, [trigger], scene.data.test), force=force)
        scene.victim.save(out, force=force)
    card = scene.victim.card
    lies = card.data_options.get("path")
    there = f" --data-path {lies}" if lies else ""
    caption = f"On {len(scene.data.test)} test samples. Saved in {out}; next: unbackdoor purify {out}{there} --out FILE"
    caption += ceiling(scene.victim.attack, card.figures) + measured_by(scene.task)
    output.result(
        {"out": str(out), "task": task, "seed": seed, "model": card.model, "data": card.data, "attack": card.attack}
        | {"metric": next(iter(card.figures)), "figures": card.figures},
        figures(f"{card.model} on {card.data}, {card.attack} attack, seed {seed}", card.figures, caption),
    )


def _taught(
    kit: TaskKit, plans: list[Plan], *, seed: int, device: torch.device, stages: Stages
) -> tuple[list[Attack], Batch]:
    """Each attack with its trigger learned, in a short training where it needs a victim for that, and samples."""
    from unbackdoor_cli.victims import teach

    learned, data = [], None
    for plan in plans:
        attack, data = teach(kit, plan, seed=seed, device=device, stages=stages, data=data)
        learned.append(attack)
    assert data is not None
    return learned, data.test


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _plan(
    kit: TaskKit, data: str | None, model: str | None, attack: str | None, given: dict[str, Mapping[str, object]]
) -> Plan:
    from unbackdoor.attacker.plan import Plan
    from unbackdoor.attacker.victim_card import NO_ATTACK
    from unbackdoor.errors import BadOption
    from unbackdoor_cli.victims import checked

    base = Plan.of_demo(kit, attack)
    if (data is None) != (model is None):
        raise BadOption("--data and --model go together: give both, or neither for the demo's.")
    if data is not None and model is not None:
        base = Plan(data, model, None if attack == NO_ATTACK else attack or kit.demo.attack)
    plan = Plan(
        base.data,
        base.model,
        base.attack,
        data_options={**base.data_options, **given["data_options"]},
        model_options={**base.model_options, **given["model_options"]},
        attack_options={**base.attack_options, **given["attack_options"]},
        train_options={**base.train_options, **given["train_options"]},
    )
    return checked(plan, kit)
