"""Remove backdoors from trained networks with a few clean samples.

>>> purified, report = unbackdoor.purify(model, clean, task="image", method="nft")  # doctest: +SKIP
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from unbackdoor.attack import Attack
from unbackdoor.checkpoint import load, save
from unbackdoor.data import CleanSet
from unbackdoor.errors import BadOption, UnbackdoorError, UnsupportedModel
from unbackdoor.evaluate import evaluate
from unbackdoor.kit import TaskKit
from unbackdoor.model import copy_ready, inner_model
from unbackdoor.purifier import Purifier, Watch
from unbackdoor.registry import kit
from unbackdoor.registry import method as _method
from unbackdoor.reparam import NeuronMask, Reparametrisation, SpectralShift
from unbackdoor.report import Report
from unbackdoor.task import Batch, Task
from unbackdoor.victim import Victim

__all__ = [
    "Attack",
    "Batch",
    "CleanSet",
    "NeuronMask",
    "Purifier",
    "Reparametrisation",
    "Report",
    "SpectralShift",
    "Task",
    "TaskKit",
    "UnbackdoorError",
    "Victim",
    "evaluate",
    "load",
    "purify",
    "save",
]
__version__ = "0.1.0"

Model = TypeVar("Model", bound=nn.Module)


def purify(
    model: Model,
    clean: Any,
    *,
    task: Task | str,
    method: Purifier | str = "nft",
    seed: int = 0,
    preset: str | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> tuple[Model, Report]:
    """Give a copy of ``model`` from which a backdoor has been removed, and the evidence.

    Args:
        model: Any ``nn.Module``, on any device; it is left untouched.
        clean: A few clean samples: a ``Dataset`` or ``DataLoader`` of ``(input, label)``, or a pair of tensors.
        task: The kind of problem: the name of an installed task package (``"image"``) or a `Task`.
        method: Name of a method (``unbackdoor list`` shows them) or a `Purifier`.
        seed: Of every random draw; the same seed gives the same bits on a CPU.
        preset: Named options of the method, such as ``"paper"``; ``options`` override them.
        watch: Called now and then with the progress.
        **options: Hyper-parameters of the method, such as ``steps``, ``batch_size`` and ``lr``.

    Returns:
        The purified model (same class, keys, order, shapes and dtypes) and the `Report`.

    Raises:
        UnbackdoorError: Model, samples, names or options cannot be used; the message says what to do.
    """
    if isinstance(method, Purifier):
        if options or preset is not None:
            raise BadOption("options and preset go with a method's name; give them to the Purifier itself instead.")
        purifier = method
    else:
        purifier = _method(method).make(preset, **options)
    problem = kit(task).task() if isinstance(task, str) else task
    inner_model(model)
    copy_ready(model)
    try:
        purified = copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedModel(
            f"the model cannot be copied ({type(error).__name__}: {error}); take off what cannot be, or purify it "
            "in place with Purifier.purify(model, clean, task)."
        ) from error
    report = purifier.purify(purified, clean, problem, seed=seed, watch=watch)
    return purified, report
