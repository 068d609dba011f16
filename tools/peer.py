"""Our methods beside those of BackdoorBench: the same victim, weights, clean samples, options and steps in one process.

Give a checkout of github.com/SCLBD/BackdoorBench; none of its code is here. Its step functions run as they are, on
batches that this file hands them: `mask_train` and `pruning` of its ANP, `_train_sam` of its FT-SAM, `train_epoch` of
its NAD. Ours runs twice: with the peer's options, as far as they can be said (``matched``), and with its own defaults.

    python tools/peer.py BACKDOORBENCH --steps 200 --out docs/results/peer.json --page docs/peer.md

What is set from outside, without a change to its files: the module variable ``args`` that `reset` of its ANP reads and
that only exists when it runs as a script; the victim's BatchNorm layers become its noisy ones by class; its NAD is told
that the victim is its ``preactresnet18``, whose children it strings together.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.evaluate import evaluate
from unbackdoor.kit import Splits
from unbackdoor.purifier import Progress
from unbackdoor.registry import kit, method
from unbackdoor.report import versions
from unbackdoor.scene import Plan
from unbackdoor.task import Batch, Task

PLAN = Plan(
    "digits",
    "preactresnet18",
    "blend",
    model_options={"width": 8, "in_channels": 1},
    train_options={"epochs": 15, "batch_size": 64, "precision": "fp32"},
)
ACC_RATIO = 0.1  # of its ANP: how much of the test accuracy a threshold may cost
ITS_STEPS = {"anp": 2000, "ft-sam": 1000, "nad": 1000}
"""Steps of the peer's own configuration: 2,000 of ANP, 100 epochs of 2,500 images in batches of 256 for the others."""
MATCHED = {
    "anp": {
        "lr": 0.2, "momentum": 0.9, "schedule": "constant", "eps": 0.4, "noise_steps": 1, "alpha": 0.2,
        "site": "norm", "bn": "update", "threshold": 0.2, "holdout": 0.0, "mixup": 0.0,
    },
    "ft-sam": {
        "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "clip": None, "radius": 2.0,
        "adaptive": True, "rounds": 1, "holdout": 0.0, "bn": "update", "mixup": 0.0,
    },
    "nad": {
        "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "constant", "clip": None, "points": 3,
        "power": 2.0, "bn": "update", "mixup": 0.0,
    },
}  # fmt: skip
"""Our options that say what the peer's step functions do here."""
UNLIKE = {
    "anp": "its threshold is chosen by test ASR; the rows at 0.2, the paper's, are the comparable ones",
    "ft-sam": "label smoothing is set to 0 on both sides, its cosine runs over all steps instead of 100 batches",
    "nad": "its distance of attention maps is a mean square over samples and places times 500 to 1000, ours that of "
    "the paper's Eq. (2) times 5: no number makes the two equal; both teachers are ours, each fine-tuned "
    "for its own side",
}
WHY_NOT = {
    "i-bau": "not run: its outer loss names `device='cuda'`, so it cannot run on a CPU without a change",
    "fine-pruning": "not run: pruning and fine-tuning are one method that reads its own record of an attack from disk, "
    "and prunes by test accuracy",
}


def main() -> None:
    """Train the victim, run both sides in turns, write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path, help="a checkout of BackdoorBench")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="of the timing; the smallest counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(PAIRS))
    parser.add_argument("--also", nargs="*", default=["nft", "f-fip"], help="methods of ours with their defaults")
    parser.add_argument("--epochs", type=int, default=15, help="of the victim's training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    package = kit("image")
    plan = replace(PLAN, train_options={**PLAN.train_options, "epochs": arguments.epochs})
    data = plan.read(package, seed=arguments.seed)
    attack = plan.make_attack(package, data)
    assert attack is not None
    model, task = plan.train(package, data, attack, seed=arguments.seed)

    def measured(one: nn.Module) -> dict[str, float]:
        return {name: round(value, 2) for name, value in evaluate(one, data.test, task, attack).items()}

    rows: list[dict[str, Any]] = [{"method": "none", "side": "", **measured(model)}]
    say(rows[-1])
    for name in arguments.only:
        case = Case(model, data, task, arguments, measured)
        new = PAIRS[name](case)
        rows += new
        for row in new:
            say(row)
        for name_of_ours in arguments.also if name == arguments.only[-1] else ():
            rows.append(ours(case, name_of_ours, name_of_ours))
            say(rows[-1])
        content = {
            "command": f"python tools/peer.py BackdoorBench {' '.join(sys.argv[2:])}",
            "peer": "github.com/SCLBD/BackdoorBench",
            "commit": commit(arguments.peer),
            "victim": {"model": "preactresnet18, width 8", "data": "digits", "attack": "blend", "seed": arguments.seed},
            "clean": len(data.clean),
            "test": len(data.test),
            "steps": arguments.steps,
            "batch_size": arguments.batch_size,
            "clock": "processor time of the process, so that other programs do not count",
            "rows": rows,
            "its_steps": ITS_STEPS,
            "unlike": UNLIKE,
            "not_run": WHY_NOT,
            "versions": versions(torch.device("cpu")),
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if arguments.page:
            arguments.page.write_text(page(content, arguments.out.name), encoding="utf-8")


class Case:
    """What both sides get."""

    def __init__(
        self,
        model: nn.Module,
        data: Splits,
        task: Task,
        arguments: argparse.Namespace,
        measured: Callable[[nn.Module], dict[str, float]],
    ) -> None:
        """Nothing is copied yet."""
        self.model, self.data, self.task, self.measured = model, data, task, measured
        self.steps, self.size, self.seed = arguments.steps, arguments.batch_size, arguments.seed
        self.repeats, self.folder = arguments.repeats, arguments.peer

    def loader(self, steps: int) -> list[tuple[Tensor, ...]]:
        """Batches in the form that the peer unpacks: images, labels, indices, flags of poison, labels again."""
        generator = torch.Generator().manual_seed(self.seed)
        batches = CleanSet(self.data.clean).batches(self.size, generator)
        found: list[tuple[Tensor, ...]] = []
        for _ in range(steps):
            batch: Batch = self.task.augment(next(batches), generator, mix=0.0)
            index = torch.arange(len(batch))
            found.append((batch.inputs, batch.targets, index, torch.zeros_like(index), batch.targets))
        return found

    def clock(self, work: Callable[[int], object]) -> float:
        """Seconds of processor time a step: the smallest over the repeats of 20 steps, after 3 to warm up."""
        work(3)
        best = float("inf")
        for _ in range(self.repeats):
            start = time.process_time()
            work(20)
            best = min(best, (time.process_time() - start) / 20)
        return best


def ours(case: Case, name: str, title: str, **options: Any) -> dict[str, Any]:
    """A row of our method; its step time is that of the steps alone, between two reports of its progress."""
    known = method(name).__dataclass_fields__
    given = {key: value for key, value in options.items() if key in known}
    if options:
        given["batch_size"] = case.size
    times: list[tuple[int, float]] = []

    def watch(now: Progress) -> None:
        times.append((now.step, time.process_time()))

    start = time.process_time()
    purified, report = unbackdoor.purify(
        case.model, case.data.clean, task=case.task, method=name, seed=case.seed, watch=watch, **given
    )
    whole = time.process_time() - start
    pieces = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(times) if b[0] > a[0]]
    return {
        "method": title,
        "side": "ours",
        "step_ms": round(1000 * min(pieces), 2) if pieces else None,
        "seconds": round(whole, 2),
        "options": dict(report.options),
        **case.measured(purified),
    }


def peer_module(case: Case, name: str) -> ModuleType:
    """A defence of the peer by its file's name."""
    if str(case.folder) not in sys.path:
        sys.path.insert(0, str(case.folder))
    path = case.folder / "defense" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"peer_{name.replace('-', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anp(case: Case) -> list[dict[str, Any]]:
    """Masks on BatchNorm's scale in train mode, one signed step of noise, thresholds by steps of 0.05."""
    module = peer_module(case, "anp")
    given = SimpleNamespace(anp_eps=0.4, anp_steps=1, anp_alpha=0.2, device="cpu")
    module.args = given  # type: ignore[attr-defined]
    net = copy.deepcopy(case.model)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, module.anp_model.NoisyBatchNorm2d(child.num_features))
    module.load_state_dict(net, orig_state_dict=case.model.state_dict())
    criterion = nn.CrossEntropyLoss()

    def trained(one: nn.Module) -> Callable[[int], object]:
        masks = [value for name, value in one.named_parameters() if "neuron_mask" in name]
        noise = [value for name, value in one.named_parameters() if "neuron_noise" in name]
        mask_opt = torch.optim.SGD(masks, lr=0.2, momentum=0.9)
        noise_opt = torch.optim.SGD(noise, lr=given.anp_eps / given.anp_steps)
        return lambda steps: module.mask_train(given, one, criterion, mask_opt, noise_opt, case.loader(steps))

    step = case.clock(trained(copy.deepcopy(net)))
    start = time.process_time()
    trained(net)(case.steps)
    seconds = time.process_time() - start
    scores = sorted(
        (float(value), name.rpartition(".")[0], place)
        for name, mask in net.state_dict().items()
        if "neuron_mask" in name
        for place, value in enumerate(mask)
    )
    pruned = copy.deepcopy(case.model)
    before, best, chosen = case.measured(case.model), None, {}
    waiting = iter(scores)
    score: tuple[float, str, int] | None = next(waiting)
    for number in range(20):
        threshold = 0.05 * number
        while score is not None and score[0] <= threshold:
            module.pruning(pruned, (score[1], score[2], score[0]))
            score = next(waiting, None)
        figures = case.measured(pruned)
        if number == 4:
            at_paper = figures
        lost = abs(figures["accuracy"] - before["accuracy"]) / before["accuracy"]
        if lost < ACC_RATIO and (best is None or figures["asr"] < best):
            best, chosen = figures["asr"], {**figures, "threshold": round(threshold, 2)}
    row = {"method": "anp", "side": "peer", "step_ms": round(1000 * step, 2), "seconds": round(seconds, 2)}
    oracle = row | {"selection": "lowest test ASR (oracle), its own rule", **chosen}
    return [row | {"selection": "threshold 0.2", **at_paper}, oracle, *ours_twice(case, "anp")]


def ft_sam(case: Case) -> list[dict[str, Any]]:
    """Adaptive SAM with radius 2."""
    module = peer_module(case, "ft-sam")
    given = SimpleNamespace(device="cpu", label_smoothing=0.0, print_freq=10**9, lr=0.01)

    def trained(one: nn.Module) -> Callable[[int], object]:
        base = torch.optim.SGD(one.parameters(), lr=given.lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, T_max=case.steps)
        radius = module.ProportionScheduler(schedule, max_lr=given.lr, min_lr=0.0, max_value=2.0, min_value=2.0)
        optimiser = module.SAM(one.parameters(), base, one, 0.0, radius, adaptive=True)
        return lambda steps: module.dsam._train_sam(
            None, given, case.loader(steps), one, optimiser, schedule, nn.CrossEntropyLoss(), 1
        )

    return both(case, "ft-sam", trained)


def nad(case: Case) -> list[dict[str, Any]]:
    """Attention distillation from a fine-tuned copy; the teacher is fine-tuned by this file, alike for its student."""
    module = peer_module(case, "nad")
    given = SimpleNamespace(device="cpu", model="preactresnet18", lr=0.01, beta1=500, beta2=1000, beta3=1000)
    teacher, _ = unbackdoor.purify(
        case.model, case.data.clean, task=case.task, method="ft", seed=case.seed, steps=case.steps,
        batch_size=case.size, disturb=False,
    )  # fmt: skip

    def trained(one: nn.Module) -> Callable[[int], object]:
        trainer = module.NADModelTrainer.__new__(module.NADModelTrainer)
        trainer.non_blocking = False
        optimiser = torch.optim.SGD(one.parameters(), lr=given.lr, momentum=0.9, weight_decay=1e-4)
        parts = {"criterionCls": nn.CrossEntropyLoss(), "criterionAT": module.AT(2.0)}
        nets = {"student": one, "teacher": teacher.eval()}
        return lambda steps: trainer.train_epoch(given, case.loader(steps), nets, optimiser, None, parts, 1)

    return both(case, "nad", trained)


def both(case: Case, name: str, trained: Callable[[nn.Module], Callable[[int], object]]) -> list[dict[str, Any]]:
    """The peer's row, whose model is the one after the last step, and ours."""
    step = case.clock(trained(copy.deepcopy(case.model)))
    model = copy.deepcopy(case.model)
    start = time.process_time()
    trained(model)(case.steps)
    seconds = time.process_time() - start
    row = {"method": name, "side": "peer", "step_ms": round(1000 * step, 2), "seconds": round(seconds, 2)}
    return [row | {"selection": "last step", **case.measured(model.eval())}, *ours_twice(case, name)]


def ours_twice(case: Case, name: str) -> list[dict[str, Any]]:
    """With the peer's options and steps, then with our defaults."""
    options = {"steps": case.steps, "teacher_steps": case.steps, **MATCHED[name]}
    matched = ours(case, name, name, **options) | {"side": "ours, matched"}
    return [matched, ours(case, name, name)]


PAIRS: dict[str, Callable[[Case], list[dict[str, Any]]]] = {"anp": anp, "ft-sam": ft_sam, "nad": nad}


def page(content: dict[str, Any], source: str) -> str:
    """The page, made from the JSON alone."""
    victim = content["victim"]
    made = (
        f"Made by `tools/peer.py` from `docs/results/{source}`: {victim['model']} on {victim['data']}, "
        f"{victim['attack']} attack, {content['clean']} clean and {content['test']} test samples, {content['steps']} "
        f"steps of {content['batch_size']} samples, one seed ({victim['seed']}). The peer is commit "
        f"`{content['commit'][:12]}` of `{content['peer']}`; its step functions ran as they are. Times are "
        f"{content['clock']}."
    )
    lines = [
        "# Beside BackdoorBench",
        "",
        made,
        "",
        "| method | side | ACC | ASR | LCR | ms a step | seconds in all | chosen by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        figures = " | ".join(f"{row[key]:.1f}" if key in row else "" for key in ("accuracy", "asr", "lcr"))
        step, whole = (str(row.get(key) or "") for key in ("step_ms", "seconds"))
        chosen = row.get("selection", "clean samples" if row["side"] == "ours" else "")
        lines.append(f"| {row['method']} | {row['side']} | {figures} | {step} | {whole} | {chosen} |")
    lines += ["", "Step times, peer's over ours with the peer's options; above 1 ours is quicker:", ""]
    for peer, mine in pairs(content["rows"], "ours, matched"):
        lines.append(f"- {peer['method']}: {peer['step_ms'] / mine['step_ms']:.2f}")
    lines += ["", LENGTH, "", "| method | its steps | seconds of the peer | nft | f-fip |", "|---|---|---|---|---|"]
    own = {row["method"]: row["seconds"] for row in content["rows"] if row["side"] == "ours"}
    for peer, _ in pairs(content["rows"], "ours"):
        steps = content["its_steps"][peer["method"]]
        whole = peer["step_ms"] * steps / 1000
        shares = [f"{whole / own[name]:.1f} times" if name in own else "" for name in ("nft", "f-fip")]
        lines.append(f"| {peer['method']} | {steps} | {whole:.0f} | {' | '.join(shares)} |")
    lines += ["", "What is not alike:", "", *(f"- {name}: {what}." for name, what in content["unlike"].items())]
    lines += ["", *(f"- {name}: {why}." for name, why in content["not_run"].items()), ""]
    return "\n".join(lines)


LENGTH = (
    "The peer at the length of its own configuration, as its step time here times its number of steps, and how many "
    "times longer that is than ours with defaults took here, choice of strength included:"
)


def pairs(rows: list[dict[str, Any]], side: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The peer's first row of each method with ours on ``side``."""
    seen = set()
    for peer in (row for row in rows if row["side"] == "peer"):
        for mine in (row for row in rows if row["side"] == side and row["method"] == peer["method"]):
            if peer["method"] not in seen and peer.get("step_ms") and mine.get("step_ms"):
                seen.add(peer["method"])
                yield peer, mine


def commit(folder: Path) -> str:
    """Which commit the checkout is of: written in the file COMMIT where there is no git."""
    note = folder / "COMMIT"
    if note.is_file():
        return note.read_text(encoding="utf-8").strip()
    import subprocess

    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def say(row: dict[str, Any]) -> None:
    """One line on the error stream."""
    sys.stderr.write("  ".join(f"{key} {value}" for key, value in row.items() if key != "options") + "\n")


if __name__ == "__main__":
    main()
