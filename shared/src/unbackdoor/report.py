"""What a purification did: figures before and after, cost, options, and hashes of the weights."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.utils._pytree import keystr, tree_flatten_with_path

__all__ = ["HELD_OUT", "NOT_MEASURED", "Report", "versions", "weight_hash"]

HELD_OUT, NOT_MEASURED = "holdout", "not measured"
"""What `Report.measured_on` says of a purification."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The evidence that comes back with a purified model.

    Attributes:
        method: Name of the method.
        options: Its hyper-parameters.
        task: Name of the task.
        seed: Seed of every random draw.
        before: Clean metrics of the given model, in percent (see `measured_on`); NaN where nothing could be measured.
        after: The same of the purified model.
        by_class: For each class of the same samples their number and the accuracy before and after, in percent; empty
            for tasks without classes. A class of which there is no clean sample is missing here too.
        measured_on: ``"holdout"`` (samples that the method neither tuned on nor chose by), or ``"not measured"`` where
            none could be held out: figures on samples that were tuned on would say nothing.
        evidence: How much the figures rest on: their number ``samples``; where some are near copies, the number of
            ``groups``; the 95 % interval ``drop`` of the loss of right answers from before to after, in points (see
            `unbackdoor.defender.preflight.significance.drop_interval`); and, for tasks with classes, ``classes`` that
            occur among the samples, and the 95 % intervals (Wilson) of the share of right answers ``before`` and
            ``after``, in percent. ``samples`` alone, which is 0, where nothing was measured.
        given_back: Whether the model is the given one, bit for bit, since nothing that the method tried was within its
            ``max_clean_drop``; a notice says what was lost.
        seconds: Wall-clock time of the purification.
        peak_bytes: Peak memory on a CUDA device, else None.
        trainable: Number of scalars that were tuned.
        total: Number of scalars in the model's parameters.
        log: One mapping of scalars for each logged step.
        notices: What the user should know: skipped layers, missing classes, skipped steps.
        overruled: Why the purification would have been refused, before or after, had it not been told to go on anyway;
            empty where nothing spoke against it. A figure of such a run is no evidence.
        hash_before: SHA-256 of the given weights.
        hash_after: SHA-256 of the purified weights.
        versions: Python, torch, platform and device.
        subject: What was purified, as the caller names it: files and their hashes, architecture, normalisation, class
            names in label order. Empty where the caller did not say.
    """

    method: str
    options: Mapping[str, Any]
    task: str
    seed: int
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measured_on: str = NOT_MEASURED
    evidence: Mapping[str, Any] = field(default_factory=dict)
    given_back: bool = False
    seconds: float = 0.0
    peak_bytes: int | None = None
    trainable: int = 0
    total: int = 0
    log: tuple[Mapping[str, float], ...] = ()
    notices: tuple[str, ...] = ()
    overruled: tuple[str, ...] = ()
    hash_before: str = ""
    hash_after: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    subject: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The report as indented JSON; `from_json` reads it back. NaN and infinity, which JSON lacks, become null."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False, default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that `to_json` wrote."""
        values = json.loads(text)
        for name in ("log", "notices", "overruled"):
            values[name] = tuple(values.get(name, ()))
        for name in ("before", "after"):
            figures = values.get(name, {})
            values[name] = {metric: math.nan if figure is None else figure for metric, figure in figures.items()}
        return cls(**values)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over the state dict in its own order: names, dtypes, shapes and bytes of tensors.

    What modules add to it as their own further state (`torch.nn.Module.get_extra_state`) counts too.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            _add_tensor(digest, name, value)
            continue
        for place, leaf in tree_flatten_with_path(value)[0]:
            if isinstance(leaf, torch.Tensor):
                _add_tensor(digest, f"{name}{keystr(place)}", leaf)
            elif isinstance(leaf, bytes | str | int | float | None):
                digest.update(f"{name}{keystr(place)}|{leaf!r}|".encode())
    return digest.hexdigest()


def _add_tensor(digest: Any, name: str, value: torch.Tensor) -> None:
    digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def versions(device: torch.device | None = None) -> dict[str, str]:
    """What a figure depends on beside the code: interpreter, torch, platform, threads, device."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }
    if device is not None:
        found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found
