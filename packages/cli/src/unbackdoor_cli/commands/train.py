"""``unbackdoor train``: from data that may be poisoned to a model, by a defence that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unbackdoor_cli import flags

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unbackdoor.attack import Attack
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


def train(
    ctx: typer.Context,
    defence: Annotated[
        str, typer.Option(metavar="NAME", help="See: unbackdoor list defences.", rich_help_panel=_DEFENCE)
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The trained weights, a .safetensors file.")],
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help=r"The evidence. \[default: report.json beside --out]")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A victim: train its model on its poisoned data, made again, and measure."),
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
    task_option: flags.TaskOptions = None,
    data_path: flags.DataPath = None,
    seed: flags.Seed = 0,
    device: flags.Device = "auto",
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
    import unbackdoor
    from unbackdoor.errors import BadOption
    from unbackdoor.evaluate import evaluate
    from unbackdoor.registry import defence as defence_of
    from unbackdoor.writing import write_together
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.options import hyper_parameters
    from unbackdoor_cli.paths import check_outputs
    from unbackdoor_cli.progress import stages
    from unbackdoor_cli.tables import figures
    from unbackdoor_cli.victims import device_of

    output = Output(as_json=json)
    if out.suffix != ".safetensors":
        raise BadOption(f"--out is {out}; its name must end in .safetensors.")
    evidence = report or out.with_name("report.json")
    words = (model or "", *(model_option or ()), *(data_option or ()), *(task_option or ()))
    check_outputs((out, evidence), (like, data, data_path), force=force, words=words)
    cls = defence_of(defence)
    chosen = cls.make(preset, **hyper_parameters(ctx.args, cls))
    where = device_of(device)
    if (like is None) == (data is None):
        raise BadOption("give either --data, your own samples, or --like, a victim whose poisoned data to make again.")
    with stages(output) as shown:
        with shown.short("reading"):
            if like is not None:
                subject = _of_victim(like, data_path, where)
            else:
                words = (model_option, data_option, task_option)
                subject = _of_files(task, model, num_classes, data, words, where)
        batch = subject.samples
        if samples is not None and samples < len(batch):
            batch = _drawn(batch, samples, seed)
        trained, done = chosen.train(
            subject.build, batch, subject.task, seed=seed, watch=shown.watching(f"training with {defence}")
        )
        values, on = dict(done.after), f"the {len(batch)} samples that it was trained on, poisoned ones among them"
        if subject.test is not None:
            with shown.short("measuring"):
                values = evaluate(trained, subject.test, subject.task, subject.attack)
            on = f"{len(subject.test)} test samples of the victim, which the defence did not see"
        origin = f"unbackdoor {unbackdoor.__version__}, {defence}, seed {seed}"
        writes: dict[Path, Callable[[Path], Any]] = {
            out: lambda path: unbackdoor.save(trained, path, force=True, metadata={"origin": origin}),
            evidence: lambda path: path.write_text(done.to_json() + "\n", encoding="utf-8"),
        }
        write_together(writes, force=force)
    for notice in done.notices:
        output.note(notice)
    asr = "measured" if subject.attack is not None else _UNVERIFIED
    payload: dict[str, Any] = {
        "defence": defence, "task": subject.task_name, "seed": seed, "out": str(out), "report": str(evidence),
        "samples": len(batch), "metric": next(iter(values)), "figures": values, "measured_on": on, "asr": asr,
        "seconds": done.seconds, "notices": list(done.notices),
    }  # fmt: skip
    caption = f"On {on}." + ("" if subject.attack else f"\n{_UNVERIFIED}.")
    title = f"{defence}, seed {seed}, {done.seconds:.1f} s"
    output.result(payload, figures(title, values, caption), f"\nWeights: {out}\nReport:  {evidence}")


def _of_victim(folder: Path, data_path: Path | None, device: torch.device) -> _Subject:
    """The training data of a victim with its attack's poison in them, drawn as the attack draws it."""
    import torch

    from unbackdoor.scene import open_victim

    scene = open_victim(folder, device=device, data_path=data_path)
    card = scene.victim.card
    poisoned = scene.victim.attack.poison(scene.data.train, torch.Generator().manual_seed(card.seed))

    def build(seed: int) -> nn.Module:
        return scene.kit.build(card.model, **{**card.model_options, "seed": seed}).to(device)

    return _Subject(scene.task, card.task, poisoned.samples, build, scene.data.test, scene.victim.attack)


def _of_files(
    task_name: str,
    model: str | None,
    num_classes: int | None,
    data: Path | None,
    words: tuple[list[str] | None, list[str] | None, list[str] | None],
    device: torch.device,
) -> _Subject:
    """The user's own labelled files."""
    from unbackdoor.errors import BadOption
    from unbackdoor.registry import kit as kit_of
    from unbackdoor_cli.options import pairs, typed

    if model is None:
        raise BadOption("--model names the architecture to train, such as --model torchvision:resnet18; give it.")
    kit = kit_of(task_name)
    model_words, data_words, task_words = words
    task = kit.task(**typed(kit.task, pairs(task_words, "--task-option"), "--task-option"))
    options = typed(kit.load_clean, pairs(data_words, "--data-option"), "--data-option")
    samples, classes = kit.load_clean(data, **options)
    given = typed(kit.build, pairs(model_words, "--model-option"), "--model-option")

    def build(seed: int) -> nn.Module:
        return kit.build(model, **{"num_classes": num_classes or len(classes), **given, "seed": seed}).to(device)

    return _Subject(task, task_name, samples, build)


def _drawn(batch: Batch, count: int, seed: int) -> Batch:
    import torch

    return batch[torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))[:count].sort().values]
