"""``unbackdoor evaluate``: figures of a checkpoint or a victim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from unbackdoor_cli import flags
from unbackdoor_cli.named import Named, names_a_subject, reads_files


@reads_files
@names_a_subject
def evaluate(
    named: Named,
    attack_from: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A victim (a folder that `unbackdoor attack` made) whose trigger, model and test data to use.",
            show_default=False,
        ),
    ] = None,
    seed: flags.Seed = 0,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Measure a model and, where a trigger is known, its ASR and LCR.

    A victim (a folder that unbackdoor attack made) is measured on its own
    test data. So is a purified checkpoint with --attack-from VICTIM. Any
    other checkpoint is measured on your samples: give --model and --data,
    and --mean and --std where its training normalised them.

    ASR, the attack success rate: triggered samples answered as the attacker
    wants. LCR, the label correction rate: those answered correctly.

    Example: unbackdoor evaluate purified.safetensors --attack-from victim
    """
    from unbackdoor.evaluate import evaluate as measure
    from unbackdoor.registry import kit as kit_of
    from unbackdoor_cli.class_order import shown_order
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.progress import stages
    from unbackdoor_cli.subjects import open_subject, spellings
    from unbackdoor_cli.tables import ceiling, figures, measured_by
    from unbackdoor_cli.wording import as_typed, spoken

    output = Output(as_json=json)
    named = replace(named, attack_from=attack_from)
    with stages(output) as shown:
        with shown.short(f"opening {named.source}"):
            subject = open_subject(named)
        samples = subject.held if named.data is not None or subject.test is None else subject.test
        typed = spellings(kit_of(subject.task_name))
        with shown.short("measuring"), spoken(typed):
            values = measure(subject.model, samples, subject.task, subject.attack, seed=seed)
    notices = [as_typed(notice, typed) for notice in subject.notices]
    for notice in notices:
        output.note(notice)
    benign = subject.attack is None and subject.test is not None
    unknown = "no ASR: a benign model" if benign else "ASR unverified: no trigger given"
    asr = "measured" if subject.attack is not None else unknown
    payload = {
        "source": str(named.source), "task": subject.task_name, "metric": next(iter(values)), "figures": values,
        "samples": len(samples), "asr": asr, "notices": notices, "classes": subject.classes,
        "measured_by": subject.task.measured_by(),
    }  # fmt: skip
    caption = f"On {len(samples)} samples." + ("" if subject.attack else f"\n{asr}.")
    caption += ceiling(subject.attack, values) + measured_by(subject.task)
    order = shown_order(subject.classes)
    caption += f"\n{order}" if order else ""
    output.result(payload, figures(str(named.source), values, caption))
