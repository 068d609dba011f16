"""``unbackdoor evaluate``: figures of a checkpoint or a victim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unbackdoor_cli import flags


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A file of weights, or a victim's folder.", show_default=False)],
    attack_from: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A victim whose trigger, model and test data to use.", show_default=False),
    ] = None,
    task: flags.Task = "image",
    model: flags.Model = None,
    num_classes: flags.NumClasses = None,
    model_option: flags.ModelOptions = None,
    data: flags.UserData = None,
    data_option: flags.DataOptions = None,
    size: flags.Size = None,
    mean: flags.Mean = None,
    std: flags.Std = None,
    task_option: flags.TaskOptions = None,
    data_path: flags.DataPath = None,
    seed: flags.Seed = 0,
    device: flags.Device = "auto",
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Measure a model and, where a trigger is known, its ASR and LCR.

    A victim is measured on its own test data. So is a purified checkpoint
    with --attack-from VICTIM.

    Example: unbackdoor evaluate purified.safetensors --attack-from victim
    """
    from unbackdoor.evaluate import evaluate as measure
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.progress import stages
    from unbackdoor_cli.subjects import Named, open_subject
    from unbackdoor_cli.tables import figures

    output = Output(as_json=json)
    named = Named(
        source=checkpoint, task=task, model=model, num_classes=num_classes, data=data, data_path=data_path,
        attack_from=attack_from, model_options=model_option or (), data_options=data_option or (),
        task_options=task_option or (), size=size, mean=mean, std=std, device=device,
    )  # fmt: skip
    with stages(output) as shown:
        with shown.short(f"opening {checkpoint}"):
            subject = open_subject(named)
        samples = subject.held if data is not None or subject.test is None else subject.test
        with shown.short("measuring"):
            values = measure(subject.model, samples, subject.task, subject.attack, seed=seed)
    for notice in subject.notices:
        output.note(notice)
    asr = "measured" if subject.attack is not None else "ASR unverified: no trigger given"
    payload = {
        "source": str(checkpoint), "task": subject.task_name, "metric": next(iter(values)), "figures": values,
        "samples": len(samples), "asr": asr, "notices": subject.notices,
    }  # fmt: skip
    caption = f"On {len(samples)} samples." + ("" if subject.attack else f"\n{asr}.")
    output.result(payload, figures(str(checkpoint), values, caption))
