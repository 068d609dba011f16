"""Time and peak memory of one step of each method, as multiples of one plain fine-tuning step.

All methods run interleaved in one process on the same model, batch and loss, so that a drift of the
machine's speed hits all alike; the median over rounds is reported. Peak memory comes from one child
process a method, which sees nothing of the others. ``teacher`` is no step but the given model's answer to one batch;
by default each answer serves ``reuse`` steps. Prints one JSON object.

    python tools/steps.py --width 64 --batch-size 128
    python tools/steps.py --victim victims/multi30k --data-path data --batch-size 64

With ``--victim`` it is that victim's model and task, of whatever kind, on its clean samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.attacker.plan import open_victim
from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature import fisher_trace, twice_differentiable
from unbackdoor.defender.fit import gradients
from unbackdoor.defender.loss import distillation_targets, frozen_copy
from unbackdoor.defender.reparam import FullWeights, NeuronMask, SpectralShift
from unbackdoor.network.readiness import differentiable_recurrence
from unbackdoor.registry import kit
from unbackdoor.report import versions
from unbackdoor.task import Batch, Task

METHODS = ("ft", "nft-weight", "nft-norm", "f-fip", "f-fip-trace", "fip", "teacher")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preactresnet18")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--victim", type=Path, help="folder of a victim, in place of model and width")
    parser.add_argument("--data-path", help="where the victim's data lie")
    parser.add_argument("--task-option", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--trace-samples", type=int, default=32)
    parser.add_argument("--trace-every", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(_peak(options)))
        return
    options.methods = _possible(options)
    medians = _medians(options)
    plain = medians["ft"]
    ratios = {name: round(seconds / plain, 3) for name, seconds in medians.items()}
    every = options.trace_every
    amortised = ((every - 1) * medians["f-fip"] + medians["f-fip-trace"]) / every
    ratios[f"f-fip with Tr(F) every {every} steps"] = round(amortised / plain, 3)
    peaks = {name: _child_peak(name) for name in options.methods}
    result = {
        **_named(options),
        "batch_size": options.batch_size,
        "trace_samples": options.trace_samples,
        "rounds": options.rounds,
        "seconds": {name: round(seconds, 5) for name, seconds in medians.items()},
        "time_ratio": ratios,
        "peak_mebibytes": {name: round(peak / 2**20, 1) for name, peak in peaks.items()},
        "memory_ratio": {name: round(peak / peaks["ft"], 3) for name, peak in peaks.items()},
        "versions": versions(torch.device(options.device)),
    }
    print(json.dumps(result, indent=2))


def _possible(options: argparse.Namespace) -> list[str]:
    """Methods that have something to tune: masks on BatchNorm's scale want a BatchNorm."""
    layers = _subject(options).model.modules()
    normed = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
    return [name for name in METHODS if normed or name != "nft-norm"]


def _named(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, in words."""
    if options.victim is None:
        return {"model": options.model, "width": options.width}
    card = open_victim(options.victim, data_path=options.data_path).victim.card
    return {"model": card.model, "model_options": card.model_options, "data": card.data}


def _medians(options: argparse.Namespace) -> dict[str, float]:
    steps = {name: _step(name, options) for name in options.methods}
    seconds: dict[str, list[float]] = {name: [] for name in options.methods}
    for round_ in range(options.rounds + 2):
        for name, step in steps.items():
            _wait(options.device)
            start = time.perf_counter()
            step()
            _wait(options.device)
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@dataclass(frozen=True)
class Subject:
    """What steps are made on."""

    model: nn.Module
    task: Task
    batch: Batch


def _subject(options: argparse.Namespace) -> Subject:
    """A victim and a batch of its clean samples, or an image network with random weights and images."""
    if options.victim is None:
        package = kit("image")
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(options.batch_size, 3, 32, 32, generator=generator)
        labels = torch.randint(0, 10, (options.batch_size,), generator=generator)
        model, task = package.build(options.model, num_classes=10, width=options.width), package.task()
        model = model.to(options.device, memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        return Subject(model, task, Batch(images, labels).to(options.device))
    scene = open_victim(options.victim, device=options.device, data_path=options.data_path)
    further = {name: json.loads(value) for name, value in options.task_option}
    task = replace(scene.task, **further)  # type: ignore[type-var]
    clean = CleanSet(scene.data.clean).measured(task.extents)
    batch = next(clean.batches(options.batch_size, torch.Generator().manual_seed(0)))
    return Subject(scene.victim.model, task, batch.to(options.device))


def _step(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """One step of method ``name``, on a model of its own."""
    subject = _subject(options)
    model, task, batch = subject.model.train(name == "ft"), subject.task, subject.batch
    generator = torch.Generator().manual_seed(0)
    if name == "teacher":
        teacher = frozen_copy(model)
        return lambda: distillation_targets(teacher, task, batch)
    parameters, objective = _objective(name, model, task, batch, generator, options.trace_samples)
    sgd = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)

    def step() -> None:
        with differentiable_recurrence(model):
            _, slopes = gradients(objective(), parameters)
        for value, slope in zip(parameters, slopes, strict=True):
            value.grad = slope
        sgd.step()

    return step


def _objective(
    name: str, model: nn.Module, task: Task, batch: Batch, generator: torch.Generator, few: int
) -> tuple[list[Tensor], Callable[[], Tensor | Iterator[Tensor]]]:
    probe = partial(task.forward, model, batch[slice(0, 2)].inputs)
    first = batch[slice(0, few)]

    def plain() -> Tensor:
        return task.loss(task.forward(model, batch.inputs), batch.targets)

    if name == "ft":
        return [value for value in model.parameters() if value.requires_grad], plain
    handles = {
        "nft-weight": lambda: NeuronMask(model, probe),
        "nft-norm": lambda: NeuronMask(model, probe, site="norm"),
        "f-fip": lambda: SpectralShift(model, probe),
        "f-fip-trace": lambda: SpectralShift(model, probe),
        "fip": lambda: FullWeights(model),
    }
    handle = handles[name]()
    handle.__enter__()
    parameters = list(handle.parameters().values())

    def smooth() -> Iterator[Tensor]:
        with twice_differentiable(model):
            scores = task.log_likelihood(task.forward(model, first.inputs), first.targets)
            yield 0.01 * fisher_trace(scores, parameters, generator)
        yield plain()

    return parameters, smooth if name == "f-fip-trace" else plain


def _peak(options: argparse.Namespace) -> int:
    """Bytes that three steps need beyond the model and its data."""
    step = _step(options.memory_of, options)
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that imports and set-up left (Linux)
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _child_peak(name: str) -> int:
    # glibc keeps freed blocks below a threshold that grows while it runs; a fixed one gives them back at once, so
    # that the peak is of memory in use and not of the holes between
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, *sys.argv, "--memory-of", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(json.loads(done.stdout))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
