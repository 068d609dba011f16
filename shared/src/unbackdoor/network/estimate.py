"""What a purification will need, before anything is copied or tuned: memory against what is free, and time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.task import Task
from unbackdoor.tree import leaves

__all__ = ["COPIES", "PASSES", "Estimate", "estimate", "free_memory", "shortage", "too_large", "weight_bytes"]

COPIES = 6
"""How often the weights lie in memory in float32 while they are tuned: the model, what it was, gradients, the
optimiser's moment, the last good values and those before a step."""

PASSES = 6.0
"""Time of a step in forward passes over its batch: forward and backward of what is tuned, and the given model's."""

_PROBED = 8
_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Of one purification.

    Attributes:
        seconds: Of all steps.
        needed: Bytes of memory beyond what is taken now.
        free: Bytes of memory that are free on the model's device; None where that is not known.
    """

    seconds: float
    needed: int
    free: int | None


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers in at least float32."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    return sum(t.numel() * max(t.element_size(), 4 if t.is_floating_point() else 1) for t in tensors)


def shortage(model: nn.Module, copies: int = COPIES) -> str | None:
    """Why there is no room for ``copies`` of the weights, by which nothing is copied yet; None where there is."""
    first = next(model.parameters(), None)
    if first is None:
        return None
    needed, free = copies * weight_bytes(model), free_memory(first.device)
    return None if free is None or needed <= free else _too_little(needed, free, "its weights and what tuning keeps")


def estimate(model: nn.Module, clean: CleanSet, task: Task, *, steps: int, batch_size: int, passes: float) -> Estimate:
    """Measure a forward and backward pass over a few samples, which changes nothing of the model.

    Args:
        model: On its device, in eval mode.
        clean: The samples, on the same device.
        task: The kind of problem.
        steps: Of the method.
        batch_size: Samples a step.
        passes: What a step costs, in forward passes.
    """
    device = next(model.parameters()).device
    some = clean.samples[slice(0, min(_PROBED, len(clean)))]
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *leaves(some.inputs)]}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task.loss(task.forward(model, some.inputs), some.targets)
    activations = sum(kept.values()) / len(some) * batch_size
    seconds = passes * steps * batch_size * _seconds_a_sample(model, clean, task, batch_size, device)
    return Estimate(seconds, int((COPIES - 1) * weight_bytes(model) + activations), free_memory(device))


def too_large(found: Estimate) -> str | None:
    """Why a purification cannot begin for want of memory; None where it can."""
    if found.free is None or found.needed <= found.free:
        return None
    return _too_little(found.needed, found.free, "copies of the weights and the activations of one batch")


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on ``device``, within the limit of the container where there is one; None if not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free = _from_meminfo()
    if free is None and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = _from_container()
    return bound if free is None else free if bound is None else min(free, bound)


def _seconds_a_sample(model: nn.Module, clean: CleanSet, task: Task, batch_size: int, device: torch.device) -> float:
    some = clean.samples[slice(0, min(batch_size, 4 * _PROBED, len(clean)))]
    with torch.no_grad():
        task.forward(model, some.inputs)  # the first pass of a shape is slower
        _wait(device)
        start = time.perf_counter()
        task.forward(model, some.inputs)
        _wait(device)
    return (time.perf_counter() - start) / len(some)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _from_meminfo() -> int | None:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    for line in path.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _from_container() -> int | None:
    """What the container may still take; file pages that can be dropped at any time count as free."""
    folder = Path("/sys/fs/cgroup")
    limit, taken, stat = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and taken.is_file() and stat.is_file()):
        return None
    most = limit.read_text(encoding="ascii").strip()
    if not most.isdecimal():
        return None
    counts = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    droppable = int(counts.get("inactive_file", 0))
    return max(0, int(most) - int(taken.read_text(encoding="ascii")) + droppable)


def _too_little(needed: int, free: int, what: str) -> str:
    return (
        f"the purification needs about {needed / _GIB:.1f} GiB of memory for {what}, but {free / _GIB:.1f} GiB "
        "are free. Give a smaller batch_size (--batch-size), a method that tunes less, or a machine with more memory"
    )
