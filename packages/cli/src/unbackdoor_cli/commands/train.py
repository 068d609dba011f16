"""``unbackdoor train``: from data that may be poisoned to a model, by a defence that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unbackdoor_cli import flags
from unbackdoor_cli.named import Named, reads_files

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unbackdoor.attacker.attack import Attack
    from unbackdoor.task import Batch, Task

_DEFENCE = "Defence"
_UNVERIFIED = "ASR unverified: no trigger given"


@dataclass(frozen=True)
class _Subject:
    """What is trained on, by whom it can be measured."""

    task: Task
    task_name: str
    samples: Batch
    build: Callable[[int], nn.Module]
    test: Batch | None = None
    attack: Attack | None = None
    classes: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@reads_files
def train(
    ctx: typer.Context,
    defence: Annotated[
        str, typer.Option(metavar="NAME", help="See: unbackdoor list defences.", rich_help_panel=_DEFENCE)
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The trained weights: a .safetensors file, or .pt, .pth, .bin, .ckpt.")
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=r"What was done and measured. \[default: NAME.report.json beside --out]"),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A victim (a folder that `unbackdoor attack` made): train its model on its poisoned data, made again, "
            "and measure.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Draw so many of the training samples; all if left out.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Named options of the defence, such as paper.", rich_help_panel=_DEFENCE),
    ] = None,
    task: flags.Task = "image",
    model: flags.Model = None,
    num_classes: flags.NumClasses = None,
    model_option: flags.ModelOptions = None,
    data: flags.UserData = None,
    data_option: flags.DataOptions = None,
    size: flags.Size = None,
    classes: flags.Classes = None,
    mean: flags.Mean = None,
    std: flags.Std = None,
    task_option: flags.TaskOptions = None,
    data_path: flags.DataPath = None,
    trust: flags.Trust = False,
    seed: flags.Seed = 0,
    device: flags.Device = "auto",
    anyway: flags.Anyway = False,
    force: flags.Force = False,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Train a model on data that may be poisoned.

    The defence sees samples and labels alone, and trusts none of them. Every
    hyper-parameter is a flag too, such as --epochs 30: see unbackdoor card
    NAME.

    Example: unbackdoor train --defence abl --model torchvision:resnet18
    --data photos --out model.safetensors

    To see what it does to an attack: unbackdoor train --defence abl
    --like victim --out model.safetensors
    """
    from dataclasses import fields, replace

    import unbackdoor
    from unbackdoor.errors import BadOption
    from unbackdoor.evaluate import evaluate
    from unbackdoor.files.writing import write_together
    from unbackdoor.registry import defence as defence_of
    from unbackdoor.registry import kit as kit_of
    from unbackdoor_cli.class_order import shown_order
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.options import hyper_parameters
    from unbackdoor_cli.paths import check_outputs, report_of
    from unbackdoor_cli.progress import stages
    from unbackdoor_cli.provenance import subject_facts
    from unbackdoor_cli.subjects import spellings
    from unbackdoor_cli.tables import figures
    from unbackdoor_cli.usage import flags_of, keys_of
    from unbackdoor_cli.victims import device_of
    from unbackdoor_cli.wording import as_flag, as_typed, spoken

    output = Output(as_json=json)
    evidence = report_of(out, report)
    words = (model or "", *(model_option or ()), *(data_option or ()), *(task_option or ()))
    check_outputs((out, evidence), (like, data, data_path), force=force, words=words)
    cls = defence_of(defence)
    own = dict.fromkeys([*(f.name for f in fields(cls)), "seed", "anyway"], as_flag)
    with spoken(own):
        chosen = cls.make(preset, **hyper_parameters(ctx.args, cls, flags_of(ctx), lambda: keys_of(task)))
    where = device_of(device)
    if (like is None) == (data is None):
        raise BadOption("give either --data, your own samples, or --like, a victim whose poisoned data to make again.")
    with stages(output) as shown:
        with shown.short("reading"):
            if like is not None:
                subject = _of_victim(like, data_path, where, trust=trust)
            else:
                named = Named(
                    Path(), task, model, num_classes, data, model_options=model_option or (),
                    data_options=data_option or (), task_options=task_option or (), size=size, classes=classes,
                    mean=mean, std=std,
                )  # fmt: skip
                subject = _of_files(named, where)
        typed = {**spellings(kit_of(subject.task_name)), **own}
        batch = subject.samples
        if samples is not None and samples < len(batch):
            batch = _drawn(batch, samples, seed)
        with spoken(typed):
            trained, done = chosen.train(
                subject.build, batch, subject.task, seed=seed, watch=shown.watching(f"training with {defence}")
            )
            overruled = _judged(trained, batch, subject.task, anyway=anyway)
        values, on = dict(done.after), f"the {len(batch)} samples that it was trained on, poisoned ones among them"
        if subject.test is not None:
            with shown.short("measuring"):
                values = evaluate(trained, subject.test, subject.task, subject.attack)
            on = f"{len(subject.test)} test samples of the victim, which the defence did not see"
        facts = subject_facts(
            task=subject.task, task_name=subject.task_name, samples=batch, classes=subject.classes, ctx=ctx,
            **subject.facts,
        )  # fmt: skip
        notices = [as_typed(notice, typed) for notice in (*batch.notices, *overruled, *done.notices)]
        done = replace(done, subject=facts, notices=tuple(notices), overruled=overruled)
        origin = f"unbackdoor {unbackdoor.__version__}, {defence}, seed {seed}"
        writes: dict[Path, Callable[[Path], Any]] = {
            out: lambda path: unbackdoor.save(trained, path, force=True, metadata={"origin": origin}),
            evidence: lambda path: path.write_text(done.to_json() + "\n", encoding="utf-8"),
        }
        write_together(writes, force=force)
    for notice in notices:
        output.note(notice)
    asr = "measured" if subject.attack is not None else _UNVERIFIED
    payload: dict[str, Any] = {
        "defence": defence, "task": subject.task_name, "seed": seed, "out": str(out), "report": str(evidence),
        "samples": len(batch), "metric": next(iter(values)), "figures": values, "measured_on": on,
        "optimistic": subject.test is None, "overruled": list(overruled), "classes": facts["classes"], "asr": asr,
        "seconds": done.seconds, "subject": facts, "notices": notices,
    }  # fmt: skip
    caption = f"On {on}." + ("" if subject.attack else f"\n{_UNVERIFIED}.")
    order = shown_order(subject.classes)
    title = f"{defence}, seed {seed}, {done.seconds:.1f} s"
    table = figures(
        title, values, f"{caption}\n{order}" if order else caption, optimistic="" if subject.test else "optimistic"
    )
    output.result(payload, table, f"\nWeights: {out}\nReport:  {evidence}")


def _judged(model: nn.Module, samples: Batch, task: Task, *, anyway: bool) -> tuple[str, ...]:
    """What speaks against the trained model: that it knows nothing even of the samples that it was trained on.

    Raises:
        ResultRefused: Something does, and the user did not ask to go on anyway.
    """
    from unbackdoor.defender.preflight.standing import standing
    from unbackdoor.errors import ResultRefused

    found = standing(model, samples, task)
    if not found.at_chance:
        return ()
    reason = (
        f"the trained model is right on {found.count} of the {len(samples)} samples that it was trained on, no better "
        "than one that does not look at them"
    )
    if not anyway:
        raise ResultRefused(f"{reason}. Nothing was written: train longer, change lr=..., or keep it with --anyway.")
    return (f"{reason}. It was written all the same, as asked.",)


def _of_victim(folder: Path, data_path: Path | None, device: torch.device, *, trust: bool) -> _Subject:
    """The training data of a victim with its attack's poison in them, drawn as the attack draws it."""
    import torch

    from unbackdoor.attacker.plan import open_victim
    from unbackdoor.errors import BadOption
    from unbackdoor_cli.provenance import digest
    from unbackdoor_cli.subjects import has_classes

    scene = open_victim(folder, device=device, data_path=data_path, trust=trust)
    card = scene.victim.card
    if scene.victim.attack is None:
        raise BadOption(f"{folder} is a benign model without an attack, so there is nothing poisoned to train on.")
    poisoned = scene.victim.attack.poison(scene.data.train, torch.Generator().manual_seed(card.seed))

    def build(seed: int) -> nn.Module:
        return scene.build(seed=seed).to(device)

    facts = {
        "source": str(folder), "sha256": digest(folder / "model.safetensors"), "model": card.model,
        "model_options": dict(card.model_options), "data": card.data, "data_options": dict(card.data_options),
    }  # fmt: skip
    return _Subject(
        scene.task, card.task, poisoned.samples, build, scene.data.test, scene.victim.attack,
        scene.data.classes if has_classes(scene.kit) else None, facts,
    )  # fmt: skip


def _of_files(named: Named, device: torch.device) -> _Subject:
    """The user's own labelled files."""
    from unbackdoor.errors import BadOption
    from unbackdoor.registry import kit as kit_of
    from unbackdoor_cli.class_order import check_count
    from unbackdoor_cli.subjects import has_classes, make_task, model_words, read_samples

    if named.model is None or named.data is None:
        raise BadOption("--model names the architecture to train, such as --model torchvision:resnet18; give it.")
    kit, model = kit_of(named.task), named.model
    data_words, task_words = named.short_forms()
    task = make_task(kit, task_words)
    samples, classes, read = read_samples(kit, named.data, data_words)
    given = {"num_classes": named.num_classes or len(classes), **model_words(kit, named.model_options)}
    if has_classes(kit):
        check_count(classes, int(given["num_classes"]), named.data, named="classes" in read)

    def build(seed: int) -> nn.Module:
        return kit.build(model, **{**given, "seed": seed}).to(device)

    facts = {"model": model, "model_options": given, "data": str(named.data), "data_options": read}
    return _Subject(task, named.task, samples, build, classes=tuple(classes) if has_classes(kit) else None, facts=facts)


def _drawn(batch: Batch, count: int, seed: int) -> Batch:
    import torch

    return batch[torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))[:count].sort().values]
