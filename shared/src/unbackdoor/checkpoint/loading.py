"""From a file to a model: which weights are taken, whether they fit, and what the user should know of it."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unbackdoor.checkpoint.archives import damaged
from unbackdoor.checkpoint.files import Content, read_content, read_metadata
from unbackdoor.checkpoint.fitting import check_finite, check_kinds, judged, names_of
from unbackdoor.checkpoint.kinds import shown
from unbackdoor.checkpoint.layouts import Flat, Place, flatten, is_averaged, main_folder, places
from unbackdoor.errors import CheckpointMismatch, TooLarge

__all__ = ["EXTRA", "load", "metadata_of", "read"]

EXTRA = "_extra_state"
"""Under this name the metadata of a safetensors file keep extra states of modules, as JSON."""
_TRIES = 4


def read(path: str | Path, *, entry: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a checkpoint by name, on the CPU, and notices on what was taken.

    Files of ``torch.save`` (read with ``weights_only=True``) and of safetensors are read, folders that
    ``save_pretrained`` wrote, and indices of shards; what a file is is told by its content. Tensors that lie outermost
    are taken, else those of the entry ``state_dict``, ``model`` or the like; where an average over training (``ema``,
    ``swa``) lies beside what it averages, the average is taken, as timm and torchvision evaluate it.

    Args:
        path: Of the file or folder.
        entry: The entry to take, such as ``"model"`` or ``"state_dict.generator"``.

    Raises:
        FileRefused: There is no such file.
        UnsafeCheckpoint: The file would run code when unpickled, is damaged, or is no file of weights.
        TooLarge: It declares more than the limits allow.
        CheckpointMismatch: It holds no named tensors, or several entries that may be meant.
    """
    content = read_content(path)
    flat = _flat(content)
    try:
        folder = main_folder(flat, entry)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(f"{content.path}: {error}") from error
    tensors = {name[len(folder) :]: value for name, value in flat.tensors.items() if name.startswith(folder)}
    if not tensors:
        raise CheckpointMismatch(f"{content.path} {_held(content.tree)}; save model.state_dict().")
    left = [name for name in flat.top if folder and not folder.startswith(f"{name}.")]
    return tensors, [*content.notices, *_taken(content.path, folder, "", left, "")]


def metadata_of(path: str | Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors, such as ``format``; none for other files.

    Raises:
        UnbackdoorError: See `read`.
    """
    return {name: text for name, text in read_metadata(path).items() if name != EXTRA}


def load(model: nn.Module, path: str | Path, *, entry: str | None = None) -> list[str]:
    """Load a checkpoint into ``model``; returns notices, which say what was taken and what was left.

    Wherever in the file the names of the model occur, all of them and no others, behind whatever entry or prefix
    (``state_dict``, ``module.``, ``model.``, ``_orig_mod.``), those weights are taken. The model's own
    ``load_state_dict`` has the last word, with its hooks; it is tried on a copy first. Left out may be only what the
    model itself declares as not saved: tied weights, Hugging Face's ``_keys_to_ignore_on_save``, and
    ``num_batches_tracked``.

    Args:
        model: Is changed only if all fits.
        path: See `read`.
        entry: Where in the file the weights lie, if several fit, such as raw weights beside their average.

    Raises:
        CheckpointMismatch: Names every missing, unexpected and misshapen tensor, and those of another kind of number.
        NonFinite: Weights are NaN or infinite.
        UnsafeCheckpoint: See `read`.
        TooLarge: See `read`.
        FileRefused: See `read`.
    """
    content = read_content(path)
    flat = _flat(content)
    model = _inner(model, flat)
    names = names_of(model)
    found = places(flat, names)
    if entry is not None:
        found = [replace(place, strangers=[]) for place in found if place.prefix.startswith(f"{entry}.")]
        if not found:
            raise CheckpointMismatch(f"{content.path} has no weights for the model under {shown(entry)!r}.")
    if not flat.tensors and not flat.others:
        raise CheckpointMismatch(f"{content.path} {_held(content.tree)}; save model.state_dict().")
    fitting, other = _fitting(content.path, [place for place in found if place.fits])
    failures: list[str] = []
    for place in [fitting] if fitting is not None else found[:_TRIES]:
        state = _state(flat, place)
        notices = check_kinds(content.path, state, model.state_dict())
        failure = judged(model, state, names)
        if failure is not None:
            failures.append(failure)
            continue
        check_finite(content.path, state, model)
        model.load_state_dict(state, strict=False)
        return [*content.notices, *_said(content.path, flat, place, other), *notices]
    raise CheckpointMismatch(
        f"{content.path} does not fit the model. {failures[0]}. Give the architecture (and number of classes) that the "
        "checkpoint was made with."
    )


def _flat(content: Content) -> Flat:
    """A file's tensors laid flat, with the extra states that its metadata hold."""
    try:
        flat = flatten(content.tree)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(f"{content.path}: {error}") from error
    except TooLarge as error:
        raise TooLarge(f"{content.path}: {error}") from error
    if EXTRA in content.metadata:
        with damaged(content.path, "save it again"):
            for name, value in dict(json.loads(content.metadata[EXTRA])).items():
                flat.others[name], flat.folders[name] = value, ""
    return flat


def _held(tree: Any) -> str:
    """What a file without tensors by name holds."""
    if not isinstance(tree, dict):
        return f"holds a {type(tree).__name__}; expected a state dict of named tensors"
    keys = ", ".join(shown(key, 40) for key in list(dict.keys(tree))[:8])
    return f"holds no tensors by name (its keys: {keys or 'none'})"


def _inner(model: nn.Module, flat: Flat) -> nn.Module:
    """The model within a wrapper for several devices, unless the file is of the wrapper."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        if model.state_dict().keys() <= flat.tensors.keys():
            break
        model = model.module
    return model


def _fitting(path: Path, fitting: list[Place]) -> tuple[Place | None, str]:
    """The place to take, if one fits, and what to say of another that fits too.

    Raises:
        CheckpointMismatch: Several fit, and none is the average of the others; or one fits as a part of a larger model.
    """
    clear = [place for place in fitting if not place.strangers]
    if fitting and not clear:
        place = fitting[0]
        raise CheckpointMismatch(
            f"{path} holds the model's weights under {shown(place.prefix[:-1])!r}, but beside them others that might "
            f"belong to the same model ({_listed(place.strangers)}). Give the architecture that has them too, or say "
            f"entry={shown(place.prefix[:-1])!r} (--entry) to leave them out."
        )
    if len(clear) < 2:
        return (clear[0] if clear else None), ""
    averaged = [place for place in clear if is_averaged(place.prefix)]
    raw = [place for place in clear if not is_averaged(place.prefix)]
    entries = ", ".join(shown(place.prefix[:-1]) or "the outermost" for place in clear[:6])
    if len(averaged) == 1 and len(raw) == 1:
        name = shown(raw[0].prefix[:-1])
        how = f" under {name!r} (entry={name!r}, --entry {name})" if name else ""
        return averaged[0], f", the average over training, and left the raw weights{how}"
    raise CheckpointMismatch(
        f"{path} holds weights that fit the model in {len(clear)} places ({entries}); say which are meant with "
        f"entry={shown(clear[0].prefix[:-1])!r} (--entry)."
    )


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(shown(name) for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def _state(flat: Flat, place: Place) -> OrderedDict[str, Any]:
    """The state dict at a place, under the model's names, with the versions of its modules."""
    state: OrderedDict[str, Any] = OrderedDict()
    for name, full in [*place.full.items(), *place.unexpected.items()]:
        state[name] = flat.tensors[full] if full in flat.tensors else flat.others[full]
    versions = {
        name[len(place.prefix) :]: {"version": version}
        for name, version in flat.versions.items()
        if f"{name}.".startswith(place.prefix)
    }
    if versions:
        state._metadata = versions  # type: ignore[attr-defined]
    return state


def _said(path: Path, flat: Flat, place: Place, other: str) -> list[str]:
    """One line on what was taken and what was left; none where a file holds the weights alone, under their names."""
    full = set(place.full.values())
    whole = {name.split(".", 1)[0] for name in full} if place.folder else set()
    if place.folder:
        left = [name for name in flat.top if name not in whole]
    else:  # the tensors lie outermost, so that each is an entry
        outer = {name.rsplit(".", count)[0] for name in full for count in range(name.count(".") + 1)} | full
        left = [name for name in flat.top if name not in outer]
    return _taken(path, place.folder, _stripped(place), left, other)


def _stripped(place: Place) -> str:
    """How the names in the file differ from the model's, behind the containers."""
    pairs = [(short, full[len(place.folder) :]) for short, full in place.full.items()]
    begins = {full[: len(full) - len(short)] if full.endswith(short) else None for short, full in pairs}
    if begins == {""}:
        return ""
    if len(begins) == 1 and None not in begins:
        return f"the prefix {shown(next(iter(begins)))!r} taken off their names"
    return "what compiling and sharding put into their names taken out"


def _taken(path: Path, folder: str, stripped: str, left: list[str], other: str) -> list[str]:
    """That line."""
    if not (folder or stripped or other or left):
        return []
    where = f" under {shown(folder[:-1])!r}" if folder else ""
    how = f", {stripped}" if stripped else ""
    return [f"{path.name}: took the weights{where}{how}{other}{f'; left {_listed(left, 8)}' if left else ''}."]
