"""``unbackdoor purify``: from any checkpoint to a purified one, with the evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unbackdoor_cli import flags
from unbackdoor_cli.named import Named, names_a_subject

if TYPE_CHECKING:
    from unbackdoor.report import Report
    from unbackdoor_cli.subjects import Subject

_METHOD = "Method"
_UNVERIFIED = "ASR unverified: no trigger given"


@names_a_subject
def purify(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The purified weights, a .safetensors file.")],
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help=r"The evidence. \[default: report.json beside --out]")
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="See: unbackdoor list methods.", rich_help_panel=_METHOD)
    ] = "nft",
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Named options of the method, such as paper.", rich_help_panel=_METHOD),
    ] = None,
    *,
    named: Named,
    seed: flags.Seed = 0,
    force: flags.Force = False,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Purify a checkpoint with a few clean samples.

    Writes the weights, ready to be used instead of the given ones, and a
    report of what was done. Every hyper-parameter of the method is a flag
    too, such as --lr 0.5 --steps 300: see unbackdoor card METHOD.

    Example: unbackdoor purify model.pt --model torchvision:resnet18
    --data photos --out purified.safetensors
    """
    import unbackdoor
    from unbackdoor.errors import BadOption
    from unbackdoor.evaluate import evaluate
    from unbackdoor.registry import method as method_of
    from unbackdoor.writing import write_together
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.options import hyper_parameters
    from unbackdoor_cli.paths import check_outputs
    from unbackdoor_cli.progress import stages
    from unbackdoor_cli.subjects import open_subject
    from unbackdoor_cli.tables import comparison, measured_by

    output = Output(as_json=json)
    if out.suffix != ".safetensors":
        raise BadOption(f"--out is {out}; its name must end in .safetensors.")
    evidence = report or out.with_name("report.json")
    read = (named.source, named.data, named.data_path, named.attack_from)
    words = (named.model or "", *named.model_options, *named.data_options, *named.task_options)
    check_outputs((out, evidence), read, force=force, words=words)
    cls = method_of(method)
    purifier = cls.make(preset, **hyper_parameters(ctx.args, cls))
    with stages(output) as shown:
        with shown.short(f"opening {named.source}"):
            subject = open_subject(named)
        watch = shown.watching(f"purifying with {method}")
        purified, done = unbackdoor.purify(
            subject.model, subject.held, task=subject.task, method=purifier, seed=seed, watch=watch
        )
        before, after, measured_on = dict(done.before), dict(done.after), _where(done, subject)
        if subject.test is not None:
            with shown.short("measuring"):
                before = evaluate(subject.model, subject.test, subject.task, subject.attack)
                after = evaluate(purified, subject.test, subject.task, subject.attack)
        # one entry: safetensors writes several in an order of its own, and equal runs shall give equal bytes
        origin = f"unbackdoor {unbackdoor.__version__}, {method}, seed {seed}, from sha256 {done.hash_before}"
        writes: dict[Path, Callable[[Path], Any]] = {
            out: lambda path: unbackdoor.save(purified, path, force=True, metadata={"origin": origin}),
            evidence: lambda path: path.write_text(done.to_json() + "\n", encoding="utf-8"),
        }
        write_together(writes, force=force)
    notices = [*subject.notices, *done.notices]
    for notice in notices:
        output.note(notice)
    asr = "measured" if subject.attack is not None else _UNVERIFIED
    payload = {
        "method": method, "task": subject.task_name, "seed": seed, "source": str(named.source), "out": str(out),
        "report": str(evidence), "metric": next(iter(before)), "before": before, "after": after,
        "measured_on": measured_on, "by_class": done.by_class, "asr": asr, "seconds": done.seconds,
        "notices": notices,
    }  # fmt: skip
    caption = f"Measured on {measured_on}.{_worst_class(done)}" + ("" if subject.attack else f"\n{_UNVERIFIED}.")
    caption += measured_by(subject.task)
    title = f"{named.source}: {method}, seed {seed}, {done.seconds:.1f} s"
    output.result(payload, comparison(title, before, after, caption), f"\nWeights: {out}\nReport:  {evidence}")


def _where(report: Report, subject: Subject) -> str:
    if subject.test is not None:
        return f"{len(subject.test)} test samples of the victim, which the method did not see"
    if report.measured_on == "holdout":
        return "the holdout part of your samples, which the method did not tune on"
    return f"the {len(subject.held)} samples that the method tuned on, so it is optimistic"


def _worst_class(done: Report) -> str:
    """The class that lost most, as a sentence; nothing where none lost or there are no classes."""
    losses = {name: of["before"] - of["after"] for name, of in done.by_class.items()}
    worst = max(losses, key=losses.__getitem__, default=None)
    if worst is None or losses[worst] <= 0:
        return ""
    of = done.by_class[worst]
    return (
        f"\nOn the {done.measured_on} class {worst} lost most: {of['before']:.1f} -> {of['after']:.1f} % of its "
        f"{of['samples']:.0f} samples."
    )
