"""Remove backdoors from trained networks with a few clean samples.

>>> purified, report = unbackdoor.purify(model, clean, task="image")  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import TaskKit
from unbackdoor.attacker.victim import Victim
from unbackdoor.checkpoint import load, save
from unbackdoor.data import CleanSet
from unbackdoor.defender.outcome import MAX_LOSS
from unbackdoor.defender.purifier import Purifier, Watch
from unbackdoor.defender.reparam import NeuronMask, Reparametrisation, SpectralShift
from unbackdoor.errors import BadOption, PreflightFailed, UnbackdoorError
from unbackdoor.evaluate import evaluate
from unbackdoor.network.backend import exclusive
from unbackdoor.network.copying import copied
from unbackdoor.network.estimate import shortage
from unbackdoor.network.readiness import inner_model
from unbackdoor.registry import as_method, as_task, check_seed
from unbackdoor.report import Report
from unbackdoor.task import Batch, Task

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
    task: Task | type[Task] | str,
    method: Purifier | type[Purifier] | str = "sdft",
    seed: int = 0,
    preset: str | None = None,
    watch: Watch | None = None,
    anyway: bool = False,
    max_loss: float = MAX_LOSS,
    allow_drop: bool = False,
    **options: Any,
) -> tuple[Model, Report]:
    """Give a copy of ``model`` from which a backdoor has been removed, and the evidence.

    Args:
        model: Any ``nn.Module``, on any device; it is left untouched.
        clean: A few clean samples: a ``Dataset`` or ``DataLoader`` of ``(input, label)``, or a pair of tensors.
        task: The kind of problem: the name of an installed task package (``"image"``), a `Task`, or the class of one
            that needs no options.
        method: Name of a method (``unbackdoor list`` shows them), a `Purifier`, or the class of one.
        seed: Of every random draw; the same seed gives the same bits on a CPU.
        preset: Named options of the method, such as ``"paper"``; ``options`` override them.
        watch: Called now and then with the progress.
        anyway: Whether to go on where the checks before (`defender.preflight`) and after (`defender.outcome`) would
            stop; ``report.overruled`` then says what spoke against it.
        max_loss: Points of the headline metric that the result may have lost on the clean samples.
        allow_drop: Whether the result may cost more clean accuracy than the method's ``max_clean_drop``. Otherwise the
            given weights come back then, and ``report.given_back`` says so.
        **options: Hyper-parameters of the method, such as ``steps``, ``batch_size`` and ``lr``.

    Returns:
        The purified model (same class, keys, order, shapes and dtypes) and the `Report`.

    Raises:
        PreflightFailed: Model and samples do not fit each other; the message names the probable cause.
        ResultRefused: The purified model diverged, is at chance or lost more than ``max_loss``.
        UnbackdoorError: Model, samples, names or options cannot be used; the message says what to do.
    """
    purifier = as_method(method, preset, options)
    problem = as_task(task)
    check_seed(seed)
    if watch is not None and not callable(watch):
        raise BadOption(f"watch is a {type(watch).__name__}; give a function that takes the progress, or leave it out.")
    with exclusive():
        short = None if anyway else shortage(inner_model(model))
        if short is not None:
            raise PreflightFailed(f"{short}, or try it with anyway=True (--anyway).")
        purified, told = copied(model)
    report = purifier.purify(
        purified, clean, problem, seed=seed, watch=watch, anyway=anyway, max_loss=max_loss, allow_drop=allow_drop
    )
    return purified, replace(report, notices=(*told, *report.notices))
