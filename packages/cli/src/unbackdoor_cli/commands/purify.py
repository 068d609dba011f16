"""``unbackdoor purify``: from any checkpoint to a purified one, with the evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unbackdoor_cli import flags
from unbackdoor_cli.named import Named, names_a_subject, reads_files

if TYPE_CHECKING:
    from unbackdoor.report import Report
    from unbackdoor_cli.subjects import Subject

_METHOD = "Method"
NO_RESULT = 3
_BENIGN = "no ASR: a benign model"
_UNVERIFIED = "ASR unverified: no trigger given"


@reads_files
@names_a_subject
def purify(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The purified weights: a .safetensors file, or .pt, .pth, .bin, .ckpt.")
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=r"What was done and measured. \[default: NAME.report.json beside --out]"),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="See: unbackdoor list methods.", rich_help_panel=_METHOD)
    ] = "sdft",
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Named options of the method, such as paper.", rich_help_panel=_METHOD),
    ] = None,
    *,
    named: Named,
    seed: flags.Seed = 0,
    anyway: flags.Anyway = False,
    allow_drop: flags.AllowDrop = False,
    max_loss: flags.MaxLoss = None,
    force: flags.Force = False,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Purify a checkpoint with a few clean samples.

    Writes the weights, ready to be used instead of the given ones, and a
    report of what was done. Every hyper-parameter of the method is a flag
    too, such as --lr 0.5 --steps 300: see unbackdoor card METHOD.

    Samples have to reach the model as in its training: where that code
    normalises them, give --mean and --std.

    Example: unbackdoor purify model.pt --model torchvision:resnet18
    --data photos --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    --out purified.safetensors

    Figures are measured on samples that were held out for nothing else, with
    their 95 % intervals; where there are too few to hold some out, they say
    "not measured".

    Exit codes: 0 done, 2 refused, 3 no result that is fit for use: either it
    was at chance or lost more than --max-loss allows, and nothing was written,
    or all that was tried lost more than --max-clean-drop allows, and the given
    weights were written again (see --allow-drop), 130 interrupted.
    """
    from dataclasses import fields, replace

    import unbackdoor
    from unbackdoor.attacker.plan import is_victim
    from unbackdoor.checkpoint import metadata_of
    from unbackdoor.defender.outcome import MAX_LOSS
    from unbackdoor.evaluate import evaluate
    from unbackdoor.files.writing import write_together
    from unbackdoor.registry import kit as kit_of
    from unbackdoor.registry import method as method_of
    from unbackdoor.report import HELD_OUT
    from unbackdoor_cli.class_order import shown_order
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.options import hyper_parameters
    from unbackdoor_cli.paths import check_outputs, report_of
    from unbackdoor_cli.progress import stages
    from unbackdoor_cli.provenance import subject_facts
    from unbackdoor_cli.subjects import open_subject, spellings
    from unbackdoor_cli.tables import comparison, measured_by
    from unbackdoor_cli.usage import flags_of, keys_of
    from unbackdoor_cli.wording import as_flag, as_typed, spoken

    output = Output(as_json=json)
    evidence = report_of(out, report)
    read = (named.source, named.data, named.data_path, named.attack_from)
    words = (named.model or "", *named.model_options, *named.data_options, *named.task_options)
    check_outputs((out, evidence), read, force=force, words=words)
    cls = method_of(method)
    own = dict.fromkeys([f.name for f in fields(cls)] + ["allow_drop", "anyway", "max_loss", "seed"], as_flag)
    with spoken(own):
        purifier = cls.make(preset, **hyper_parameters(ctx.args, cls, flags_of(ctx), lambda: keys_of(named.task)))
    with stages(output) as shown:
        with shown.short(f"opening {named.source}"):
            subject = open_subject(named)
            metadata = {} if is_victim(named.source) else metadata_of(named.source)
        typed = {**spellings(kit_of(subject.task_name)), **own}
        watch = shown.watching(f"purifying with {method}")
        with spoken(typed):
            purified, done = unbackdoor.purify(
                subject.model, subject.held, task=subject.task, method=purifier, seed=seed, watch=watch, anyway=anyway,
                max_loss=MAX_LOSS if max_loss is None else max_loss, allow_drop=allow_drop,
            )  # fmt: skip
        before, after, measured_on = dict(done.before), dict(done.after), _where(done, subject)
        if subject.test is not None:
            with shown.short("measuring"):
                before = evaluate(subject.model, subject.test, subject.task, subject.attack)
                after = evaluate(purified, subject.test, subject.task, subject.attack)
        facts = subject_facts(
            task=subject.task, task_name=subject.task_name, samples=subject.held, classes=subject.classes, ctx=ctx,
            **subject.facts,
        )  # fmt: skip
        notices = [as_typed(notice, typed) for notice in (*subject.notices, *done.notices)]
        done = replace(done, subject=facts, notices=tuple(notices))
        origin = f"unbackdoor {unbackdoor.__version__}, {method}, seed {seed}, from sha256 {done.hash_before}"
        writes: dict[Path, Callable[[Path], Any]] = {
            out: lambda path: unbackdoor.save(purified, path, force=True, metadata={**metadata, "origin": origin}),
            evidence: lambda path: path.write_text(done.to_json() + "\n", encoding="utf-8"),
        }
        write_together(writes, force=force)
    for notice in notices:
        output.note(notice)
    unknown = _BENIGN if subject.test is not None else _UNVERIFIED
    asr = "measured" if subject.attack is not None else unknown
    payload = {
        "method": method, "task": subject.task_name, "seed": seed, "source": str(named.source), "out": str(out),
        "report": str(evidence), "metric": next(iter(before)), "before": before, "after": after,
        "measured_on": measured_on, "evidence": done.evidence, "given_back": done.given_back,
        "overruled": list(done.overruled),
        "by_class": done.by_class, "classes": facts["classes"], "asr": asr, "seconds": done.seconds, "subject": facts,
        "notices": notices,
    }  # fmt: skip
    measured = subject.test is not None or done.measured_on == HELD_OUT
    caption = f"{'Measured on' if measured else 'Not measured:'} {measured_on}.{_sure(done, subject)}"
    caption += _worst_class(done, subject)
    caption += "" if subject.attack else f"\n{asr}."
    caption += measured_by(subject.task)
    order = shown_order(subject.classes)
    title = f"{named.source}: {method}, seed {seed}, {done.seconds:.1f} s"
    table = comparison(
        title, before, after, f"{caption}\n{order}" if order else caption, optimistic=_heading(done, subject)
    )
    written = "the given ones, as they were" if done.given_back else "purified"
    output.result(payload, table, f"\nWeights: {out} ({written})\nReport:  {evidence}")
    if done.given_back:
        raise typer.Exit(NO_RESULT)


def _heading(report: Report, subject: Subject) -> str:
    """What the column of figures says of those that are of no test part; they are no proof of safety."""
    if subject.test is not None:
        return ""
    return "held out" if report.evidence["samples"] else "not measured"


def _where(report: Report, subject: Subject) -> str:
    if subject.test is not None:
        return f"{len(subject.test)} test samples of the victim, which the method did not see"
    count = report.evidence["samples"]
    if count:
        return f"{count} of your samples, which the method neither tuned on nor chose by"
    return (
        f"no sample could be held out of the {len(subject.held)}, and on those that were tuned on a method may look "
        "good by heart; measure it on others: unbackdoor evaluate"
    )


def _sure(report: Report, subject: Subject) -> str:
    """The intervals of the figures on held-out samples, as a sentence."""
    if subject.test is not None or "drop" not in report.evidence:
        return ""
    low, high = report.evidence["drop"]
    shares = [
        f"{name} {report.evidence[name][0]:.1f} to {report.evidence[name][1]:.1f} %"
        for name in ("before", "after")
        if name in report.evidence
    ]
    told = ", ".join([*shares, f"loss of right answers {low:.1f} to {high:.1f} points"])
    return f"\n95 %: {told}."


def _worst_class(done: Report, subject: Subject) -> str:
    """The class that lost most, as a sentence; nothing where none lost or there are no classes."""
    losses = {name: of["before"] - of["after"] for name, of in done.by_class.items()}
    worst = max(losses, key=losses.__getitem__, default=None)
    if worst is None or losses[worst] <= 0:
        return ""
    of, named = done.by_class[worst], subject.classes
    name = f"{worst} ({named[int(worst)]})" if named and worst.isdecimal() and int(worst) < len(named) else worst
    return (
        f"\nOf the classes, {name} lost most: {of['before']:.1f} -> {of['after']:.1f} % of its {of['samples']:.0f} "
        "clean samples."
    )
