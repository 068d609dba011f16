"""What can go wrong, by name, so that callers catch one thing and the command line prints one line.

Every message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BadData",
    "BadOption",
    "BeyondTolerance",
    "CheckpointMismatch",
    "Diverged",
    "FileRefused",
    "ForwardFailed",
    "ModelChanged",
    "NonFinite",
    "NothingTrainable",
    "PreflightFailed",
    "ResultRefused",
    "SeveralAnswers",
    "SingleClass",
    "TooLarge",
    "UnbackdoorError",
    "UnhealthyAttack",
    "UnknownName",
    "UnreachedSite",
    "UnsafeCheckpoint",
    "UnsupportedModel",
    "UnsupportedTask",
    "UntrustedVictim",
]


class UnbackdoorError(Exception):
    """Base of every error that this library raises on purpose."""


class BadOption(UnbackdoorError, ValueError):
    """A hyper-parameter or argument lies outside what its docstring allows."""


class BadData(UnbackdoorError, ValueError):
    """Samples or labels cannot be used: empty, of the wrong form, out of range, of a single class."""


class SingleClass(BadData):
    """All clean samples are of one class: right for methods that use no labels, ruin for those that tune on them."""


class SeveralAnswers(BadData):
    """A model gives several outputs that could be its logits.

    Attributes:
        candidates: Their shapes by key or place.
    """

    def __init__(self, candidates: dict[Any, tuple[int, ...]]) -> None:
        """Say which there are."""
        self.candidates = candidates
        listed = ", ".join(f"{place!r} of shape {shape}" for place, shape in candidates.items())
        super().__init__(
            "the model gives several outputs, and which of them are the logits cannot be told from the labels: "
            f"{listed}. Let its forward return the logits alone, or a dictionary with them under 'logits'."
        )


class TooLarge(BadData):
    """A file declares more than a limit of `unbackdoor.files.reading.Limits` allows; nothing of it was unpacked."""


class PreflightFailed(BadData):
    """The given model does not answer the clean samples as a working model would, so they do not fit each other."""


class ResultRefused(UnbackdoorError, ArithmeticError):
    """A purification ended with a model that must not replace the given one: diverged, at chance or far worse.

    Attributes:
        report: The evidence of the refused run (a `unbackdoor.report.Report`), None where it did not get so far.
    """

    report: Any = None


class BeyondTolerance(ResultRefused):
    """All that a method tried costs more clean accuracy than its ``max_clean_drop`` allows.

    `unbackdoor.purify` raises it to nobody: the given model comes back then, and the report says so.
    """


class UntrustedVictim(UnbackdoorError, PermissionError):
    """A victim's card asks for more than data: code, a network, or files outside its folder."""


class UnknownName(UnbackdoorError, LookupError):
    """No task, method, attack, model or data set has this name.

    Attributes:
        known: The names that there are, where a list of them is too long for the message.
    """

    known: tuple[str, ...] = ()


class UnsupportedModel(UnbackdoorError, TypeError):
    """The model is of a kind that cannot be purified (quantised, scripted, sharded, not a module)."""


class ForwardFailed(UnbackdoorError, RuntimeError):
    """The model's own forward raised something; the message names the module."""


class UnsupportedTask(UnbackdoorError, TypeError):
    """The task lacks something that the method needs, such as inputs that can be perturbed."""


class NonFinite(UnbackdoorError, ArithmeticError):
    """Weights, outputs or a loss hold NaN or infinity."""


class Diverged(NonFinite, ResultRefused):
    """A purification ran into NaN or infinity, so that there is no model to go on with, not even on request."""


class NothingTrainable(UnbackdoorError, ValueError):
    """No weight is left that the method could tune."""


class UnreachedSite(UnbackdoorError, RuntimeError):
    """A layer's weight changes the output although its ``forward`` is never called, so a handle misses it."""


class ModelChanged(UnbackdoorError, RuntimeError):
    """A method altered the keys, shapes, dtypes or class of the user's model (a bug of the method)."""


class CheckpointMismatch(UnbackdoorError, ValueError):
    """A checkpoint's tensors do not fit the model by name and shape."""


class UnsafeCheckpoint(UnbackdoorError, ValueError):
    """A file is damaged, holds no weights, or could only be read by running code that it brings along."""


class FileRefused(UnbackdoorError, OSError):
    """A file or folder exists already, does not exist, or is not what it should be."""


class UnhealthyAttack(UnbackdoorError, ValueError):
    """A victim's accuracy or attack success rate lies below the attack's health floor."""
