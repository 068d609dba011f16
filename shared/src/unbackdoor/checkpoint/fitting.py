"""Whether weights are a model's: by its own ``load_state_dict``, by kind of number, and without NaN."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unbackdoor.checkpoint.kinds import shown
from unbackdoor.checkpoint.layouts import Names
from unbackdoor.errors import CheckpointMismatch, NonFinite

__all__ = ["check_finite", "check_kinds", "judged", "names_of"]

_NOT_SAVED = ("_keys_to_ignore_on_save", "_keys_to_ignore_on_load_missing")
_SHOWN = 12


def names_of(model: nn.Module) -> Names:
    """The names in a model's state dict, and which of them a file may lack by the model's own word."""
    state = model.state_dict(keep_vars=True)
    optional = {name for name in state if name.rsplit(".", 1)[-1] == "num_batches_tracked"}
    for path, module in model.named_modules():
        before = f"{path}." if path else ""
        patterns = [pattern for attribute in _NOT_SAVED for pattern in _patterns(getattr(module, attribute, None))]
        for name in state if patterns else ():
            if name.startswith(before) and any(pattern.search(name[len(before) :]) for pattern in patterns):
                optional.add(name)
    shared: dict[Any, set[str]] = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and not is_lazy(value) and value.numel():
            place = (value.data_ptr() or id(value), value.shape, value.stride(), value.dtype, value.device)
            shared.setdefault(place, set()).add(name)
    aliases = {name: group - {name} for group in shared.values() for name in group if len(group) > 1}
    return Names(state.keys(), optional, aliases)


def _patterns(given: Any) -> list[re.Pattern[str]]:
    """Hugging Face's lists of names: regular expressions, or plain names with a star in them."""
    found = []
    for text in given if isinstance(given, (list, tuple, set, frozenset)) else ():
        try:
            found.append(re.compile(text))
        except re.error:
            found.append(re.compile(re.escape(text)))
    return found


def judged(model: nn.Module, state: Mapping[str, Any], names: Names) -> str | None:
    """Let a copy of ``model`` load ``state``, with all its hooks; what is wrong, or None.

    Args:
        model: Is not changed.
        state: Under the model's names.
        names: The model's.
    """
    expected = model.state_dict()
    trial = _copied(model)
    before = None if trial is not None else {name: copy.deepcopy(value) for name, value in expected.items()}
    subject = model if trial is None else trial
    try:
        found = subject.load_state_dict(state, strict=False)
        unexpected = list(found.unexpected_keys)
        missing = set(names.missing(names.expected - set(found.missing_keys)))
        error = None
    except Exception as raised:  # noqa: BLE001 - a hook of the model's author may raise anything
        missing, unexpected = set(names.missing(state.keys())), [name for name in state if name not in names.expected]
        error = raised
    if error is None and not missing and not unexpected:
        return None
    if before is not None:
        model.load_state_dict(before, strict=False)
    return _differences(state, expected, missing, unexpected, error)


def _copied(model: nn.Module) -> nn.Module | None:
    """A copy, if the model can be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:  # noqa: BLE001 - an attribute of any kind may refuse
        return None


def _differences(
    state: Mapping[str, Any],
    expected: Mapping[str, Any],
    missing: set[str],
    unexpected: list[str],
    error: Exception | None,
) -> str:
    """What does not fit, in one line."""
    lacking = [name for name in expected if name in missing]
    shapes = [
        f"{shown(name)} is {tuple(value.shape)}, the model has {tuple(expected[name].shape)}"
        for name, value in state.items()
        if isinstance(value, Tensor)
        and isinstance(expected.get(name), Tensor)
        and not is_lazy(expected[name])
        and value.shape != expected[name].shape
    ]
    parts = [
        f"{label}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for label, names in (
            ("missing", lacking),
            ("unexpected", [shown(name) for name in unexpected]),
            ("shapes differ", shapes),
        )
        if names
    ]
    if not parts and error is not None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        parts = [f"its load_state_dict says: {shown(' '.join(lines), 300).rstrip('.')}"]
    return "; ".join(parts)


def _kind(value: Tensor) -> str:
    if value.dtype.is_floating_point:
        return "floats"
    if value.dtype.is_complex:
        return "complex numbers"
    return "booleans" if value.dtype is torch.bool else "whole numbers"


def check_kinds(path: Path, state: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Refuse tensors that would have to become another kind of number; notices on those of another precision.

    Raises:
        CheckpointMismatch: Names them.
    """
    wrong: list[str] = []
    changed: dict[tuple[str, str], str] = {}
    for name, value in state.items():
        wanted = expected.get(name)
        if not isinstance(value, Tensor) or not isinstance(wanted, Tensor) or value.dtype == wanted.dtype:
            continue
        if value.is_quantized:
            raise CheckpointMismatch(
                f"{path} holds quantised weights ({shown(name)} is {value.dtype}); give those from before quantisation."
            )
        exact = {_kind(value), _kind(wanted)} <= {"booleans", "whole numbers"}
        if _kind(value) != _kind(wanted) and not exact:
            wrong.append(f"{shown(name)} holds {_kind(value)} ({_dtype(value)}), the model {_kind(wanted)}")
        elif _loses(value, wanted.dtype, exact=exact):
            wrong.append(f"{shown(name)} ({_dtype(value)}) holds values beyond the model's {_dtype(wanted)}")
        elif not exact:
            changed.setdefault((_dtype(value), _dtype(wanted)), name)
    if wrong:
        small = any(isinstance(value, Tensor) and value.dtype in (torch.int8, torch.uint8) for value in state.values())
        quantised = " They look quantised to 8 bits or fewer; give the weights from before that." if small else ""
        raise CheckpointMismatch(
            f"{path} does not fit the model: {'; '.join(wrong[:_SHOWN])}{' ...' if len(wrong) > _SHOWN else ''}."
            f"{quantised} Save the model's own state_dict()."
        )
    return [f"{path.name}: {old} weights were taken as {new}, as the model has them." for old, new in changed]


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _loses(value: Tensor, dtype: torch.dtype, *, exact: bool) -> bool:
    """Whether a cast changes whole numbers, or makes finite numbers infinite."""
    if exact:
        return not torch.equal(value.to(dtype).to(value.dtype), value)
    if value.dtype.itemsize <= dtype.itemsize and dtype is not torch.float16:
        return False
    return bool((_finite(value) & ~_finite(value.to(dtype))).any())


def _finite(value: Tensor) -> Tensor:
    return torch.isfinite(value.float() if value.dtype.itemsize == 1 else value)


def check_finite(path: Path, state: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse weights and running statistics that are NaN or infinite; masks of -inf in buffers are honest.

    Raises:
        NonFinite: Names them.
    """
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    broken = []
    for name, value in state.items():
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        statistic = name.rsplit(".", 1)[-1] in ("running_mean", "running_var")
        if name in buffers and not statistic:
            sound = not bool(torch.isnan(value.float() if value.dtype.itemsize == 1 else value).any())
        else:
            sound = bool(_finite(value).all())
        if not sound:
            broken.append(shown(name))
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise NonFinite(
            f"{path} holds NaN or infinite values in {', '.join(broken[:_SHOWN])}{more}; it is damaged or its training "
            "diverged, so give another checkpoint."
        )
