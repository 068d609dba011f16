"""``unbackdoor evaluate``: figures of a checkpoint or a victim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from unbackdoor_cli import flags
from unbackdoor_cli.named import Named, names_a_subject


@names_a_subject
def evaluate(
    named: Named,
    attack_from: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A victim whose trigger, model and test data to use.", show_default=False),
    ] = None,
    seed: flags.Seed = 0,
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
    from unbackdoor_cli.subjects import open_subject
    from unbackdoor_cli.tables import ceiling, figures, measured_by

    output = Output(as_json=json)
    named = replace(named, attack_from=attack_from)
    with stages(output) as shown:
        with shown.short(f"opening {named.source}"):
            subject = open_subject(named)
        samples = subject.held if named.data is not None or subject.test is None else subject.test
        with shown.short("measuring"):
            values = measure(subject.model, samples, subject.task, subject.attack, seed=seed)
    for notice in subject.notices:
        output.note(notice)
    asr = "measured" if subject.attack is not None else "ASR unverified: no trigger given"
    payload = {
        "source": str(named.source), "task": subject.task_name, "metric": next(iter(values)), "figures": values,
        "samples": len(samples), "asr": asr, "notices": subject.notices,
        "measured_by": subject.task.measured_by(),
    }  # fmt: skip
    caption = f"On {len(samples)} samples." + ("" if subject.attack else f"\n{asr}.")
    caption += ceiling(subject.attack, values) + measured_by(subject.task)
    output.result(payload, figures(str(named.source), values, caption))
