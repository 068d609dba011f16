"""``unbackdoor demo``: train a backdoored model, purify copies of it, show what is left of the backdoor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unbackdoor_cli import flags
from unbackdoor_cli.named import reads_files

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unbackdoor.attacker.kit import TaskKit
    from unbackdoor.attacker.plan import Plan, Scene
    from unbackdoor.defender.purifier import Purifier
    from unbackdoor_cli.progress import Stages

DEFAULT_PICTURE = Path("unbackdoor-demo.png")


@reads_files
def demo(
    task: flags.Task = "image",
    attack: Annotated[
        str | None, typer.Option(metavar="NAME", help=r"Attack of the victim. \[default: the task's own]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=r"Data set, of `unbackdoor list data`. \[default: the task's own]"),
    ] = None,
    data_path: Annotated[Path | None, typer.Option(metavar="PATH", help="Where that data set lies.")] = None,
    methods: Annotated[str, typer.Option(metavar="A,B", help="Methods to compare.")] = "bn-only,ft,nft,f-fip,sdft",
    seed: flags.Seed = 0,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Repeat with that many seeds, counted up from --seed.")
    ] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help=r"Methods at a time. \[default: one a core; on a GPU 1]"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help=rf"The picture. \[default: {DEFAULT_PICTURE}, or a new name]")
    ] = None,
    device: flags.Device = "auto",
    force: flags.Force = False,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """See a backdoor trained, removed and drawn.

    Trains a backdoored model on data at hand, purifies copies of it with
    several methods and draws the result, without a download: less than
    a minute and a half on two cores for images, a few minutes for other
    tasks. The methods see the clean samples alone.
    """
    import torch

    from unbackdoor.attacker.plan import Plan
    from unbackdoor.errors import BadOption
    from unbackdoor.files.writing import write_atomically
    from unbackdoor.registry import kit as kit_of
    from unbackdoor.registry import method
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.paths import check_outputs, fresh_name
    from unbackdoor_cli.progress import stages
    from unbackdoor_cli.tables import demonstration, excerpt, measured_by
    from unbackdoor_cli.victims import checked, device_of
    from unbackdoor_cli.workers import cores

    output = Output(as_json=json)
    where = picture or (DEFAULT_PICTURE if force else fresh_name(DEFAULT_PICTURE))
    check_outputs((where,), (data_path,), force=force)
    kit = kit_of(task)
    purifiers = [method(name.strip()).make() for name in methods.split(",") if name.strip()]
    if not purifiers:
        raise BadOption("--methods names none; give at least one, such as --methods nft.")
    plan = checked(_with_data(Plan.of_demo(kit, attack), data, data_path), kit)
    if plan.attack is None:
        raise BadOption("a demo shows an attack; make a benign model with: unbackdoor attack --attack none --out DIR")
    chosen = device_of(device)
    at_once = min(jobs or cores(), len(purifiers)) if chosen.type == "cpu" else 1
    torch.set_num_threads(1)  # the demo's model is small: threads would wait for each other, and add in another order
    runs: list[list[dict[str, Any]]] = []
    examples: list[Mapping[str, str]] = []
    with stages(output) as shown:
        for number in range(seeds):
            scene, models, rows = _run(task, kit, plan, purifiers, seed + number, chosen, at_once, shown)
            runs.append(rows)
            if number == 0:
                with shown.short("drawing"):
                    if picture is None and not force:
                        where = fresh_name(where)  # another demo may have been faster
                    write_atomically(where, partial(_draw, scene=scene, models=models), force=force)
                    trigger = scene.victim.attack
                    if kit.excerpt is not None and trigger is not None:
                        examples = kit.excerpt(scene.data.test, trigger, models, scene.task, scene.data)
    metric = next(iter(scene.task.meters()))
    payload = {
        "task": task,
        "seed": seed,
        "metric": metric,
        "rows": runs[0] if seeds == 1 else _means(runs),
        "attack": plan.attack,
        "picture": str(where),
    }
    if seeds > 1:
        payload["runs"] = [{"seed": seed + number, "rows": rows} for number, rows in enumerate(runs)]
    if examples:
        payload["examples"] = examples
    count = "" if seeds == 1 else f", mean ± standard deviation of {seeds} seeds"
    title = (
        f"{task}: {plan.model} on {plan.data}, {plan.attack} attack, "
        f"purified with {len(scene.data.clean)} clean samples{count}"
    )
    output.result(
        payload,
        "",
        demonstration(title, metric, runs, measured_by(scene.task)),
        *excerpt(examples),
        f"\nPicture: {where}",
    )


def _with_data(plan: Plan, data: str | None, path: Path | None) -> Plan:
    """The plan with another data set: its own options do not fit that one, so they go."""
    from dataclasses import replace

    if data is None and path is None:
        return plan
    options = {} if path is None else {"path": str(path)}
    return replace(plan, data=data or plan.data, data_options=options)


def _run(
    task: str,
    kit: TaskKit,
    plan: Plan,
    purifiers: list[Purifier],
    seed: int,
    device: torch.device,
    jobs: int,
    shown: Stages,
) -> tuple[Scene, dict[str, nn.Module], list[dict[str, Any]]]:
    from unbackdoor.evaluate import evaluate
    from unbackdoor_cli.victims import train_victim
    from unbackdoor_cli.workers import purify_together

    scene = train_victim(task, kit, plan, seed=seed, device=device, stages=shown)
    victim = scene.victim
    if jobs > 1:
        tells = shown.together([f"purifying with {purifier.name}" for purifier in purifiers])
        made = purify_together(victim, purifiers, tells, seed=seed, jobs=jobs)
    else:
        made = [_purified(scene, purifier, seed, shown) for purifier in purifiers]
    models: dict[str, nn.Module] = {"backdoored": victim.model}
    rows = [_row("none", victim.card.figures, 0.0)]
    for purifier, (model, seconds) in zip(purifiers, made, strict=True):
        models[purifier.name] = model
        with shown.short(f"measuring {purifier.name}"):
            rows.append(_row(purifier.name, evaluate(model, scene.data.test, scene.task, victim.attack), seconds))
    return scene, models, rows


def _purified(scene: Scene, purifier: Purifier, seed: int, shown: Stages) -> tuple[nn.Module, float]:
    import unbackdoor

    watch = shown.watching(f"purifying with {purifier.name}")
    model, report = unbackdoor.purify(
        scene.victim.model, scene.data.clean, task=scene.task, method=purifier, seed=seed, watch=watch, anyway=True
    )
    return model, report.seconds


def _row(method: str, figures: Any, seconds: float) -> dict[str, Any]:
    clean = next(iter(figures.values()))
    return {"method": method, "clean": clean, "asr": figures["asr"], "lcr": figures["lcr"], "seconds": seconds}


def _means(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    numbers = ("clean", "asr", "lcr", "seconds")
    return [
        {"method": rows[0]["method"]} | {key: sum(row[key] for row in rows) / len(rows) for key in numbers}
        for rows in zip(*runs, strict=True)
    ]


def _draw(path: Path, *, scene: Scene, models: dict[str, nn.Module]) -> None:
    assert scene.victim.attack is not None
    scene.kit.picture(path, scene.data.test, scene.victim.attack, models, scene.task, scene.data)
