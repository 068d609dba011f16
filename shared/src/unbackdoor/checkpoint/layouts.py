"""Which of the tensors in a file are the weights: files nest them, wrappers rename them, averages lie beside them.

Whatever a file nests is laid flat first, names joined by dots, so that an entry ``state_dict``, a prefix ``module.``
and both in any order are one thing: a beginning that, taken off, leaves the model's own names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unbackdoor.checkpoint.kinds import shown
from unbackdoor.errors import CheckpointMismatch, TooLarge

__all__ = ["Flat", "Names", "Place", "flatten", "is_averaged", "main_folder", "places"]

_CONTAINERS = 300_000
_DEPTH = 24
_SOUGHT, _FULLEST, _PLACES = 3, 8, 64
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module)\.")
_AVERAGED = {"ema", "swa", "averaged", "shadow"}
_USUAL = ("state_dict", "model_state_dict", "model", "net", "netC", "weights", "params", "state", "generator")
_BESIDE = _AVERAGED | {
    "acc", "accuracy", "criterion", "discriminator", "loss", "losses", "metric", "metrics", "optim", "optimiser",
    "optimisers", "optimizer", "optimizers", "sched", "scaler", "scheduler", "schedulers", "teacher",
}  # fmt: skip
_COUNTERS = ("total_ops", "total_params", "n_averaged")  # left in a state dict by profilers and averages


@dataclass
class Flat:
    """All tensors of a file by their full names.

    Attributes:
        tensors: By name; ``_extra_state`` of any kind lies in `others`.
        others: Extra states of modules that are no tensors.
        folders: For each name, the part of it that leads to the innermost container, such as ``"state_dict."``.
        versions: Versions of module's formats, by full name, see `torch.nn.Module.load_state_dict`.
        top: Names of the outermost entries.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    top: list[str] = field(default_factory=list)


def flatten(tree: Any) -> Flat:
    """Lay a file's content flat.

    Raises:
        TooLarge: It has more containers than files of weights have, or holds itself.
        CheckpointMismatch: Two tensors have one name.
    """
    flat = Flat()
    if isinstance(tree, dict):
        flat.top = [str(key) for key in dict.keys(tree)]
    todo: list[tuple[str, Any, int]] = [("", tree, 0)] if isinstance(tree, (dict, list, tuple)) else []
    seen = 0
    while todo:
        folder, container, depth = todo.pop()
        seen += 1
        if seen > _CONTAINERS or depth > _DEPTH:
            raise TooLarge("the file nests more containers than files of weights do; save model.state_dict() alone.")
        inner = []
        for key, value in _items(container):
            name = f"{folder}{key}"
            if isinstance(value, Tensor) or _is_extra(str(key)):
                if name in flat.folders:
                    raise CheckpointMismatch(f"the file holds two tensors named {shown(name)!r}; save one of them.")
                flat.folders[name] = folder
                if isinstance(value, Tensor):
                    flat.tensors[name] = torch.Tensor.detach(value).as_subclass(torch.Tensor)
                else:
                    flat.others[name] = value
            elif isinstance(value, (dict, list, tuple)):
                inner.append((f"{name}.", value, depth + 1))
        todo += reversed(inner)
        _note_versions(flat, folder, container)
    return flat


def _is_extra(key: str) -> bool:
    return key == "_extra_state" or key.endswith("._extra_state")


def _items(container: Any) -> Iterable[tuple[Any, Any]]:
    return dict.items(container) if isinstance(container, dict) else enumerate(container)


def _note_versions(flat: Flat, folder: str, container: Any) -> None:
    metadata = getattr(container, "_metadata", None)
    if isinstance(metadata, dict):
        for module, facts in dict.items(metadata):
            version = dict.get(facts, "version") if isinstance(facts, dict) else None
            if isinstance(module, str) and isinstance(version, int):
                flat.versions[f"{folder}{module}"] = version


def plain(name: str) -> str:
    """A name without what compilers and sharding wrap into it, which no module of a user is called."""
    return _WRAPPERS.sub("", name)


@dataclass(frozen=True)
class Names:
    """The names that a model's state dict has.

    Attributes:
        expected: All of them.
        optional: Those that a file may lack, as the model itself says.
        aliases: For each tied tensor, its other names.
    """

    expected: AbstractSet[str]
    optional: AbstractSet[str]
    aliases: Mapping[str, AbstractSet[str]]

    def missing(self, given: AbstractSet[str]) -> list[str]:
        """Those that must be given and are not."""
        return sorted(
            name for name in self.expected - given - self.optional if not self.aliases.get(name, set()) & given
        )


@dataclass(frozen=True)
class Place:
    """Where in a file a model's weights may lie.

    Attributes:
        prefix: What all their names begin with.
        folder: The part of it that is a nesting of containers; the rest is a prefix proper.
        full: The model's names and those in the file.
        missing: Names that it lacks.
        unexpected: Names that it has beyond the model's, as they would be in the model, and those in the file.
        strangers: Names of the same container that lie outside of it and might belong to the same model.
    """

    prefix: str
    folder: str
    full: Mapping[str, str]
    missing: list[str]
    unexpected: Mapping[str, str]
    strangers: list[str]

    @property
    def fits(self) -> bool:
        """Whether nothing is missing and nothing too much."""
        return not self.missing and not self.unexpected


def places(flat: Flat, names: Names) -> list[Place]:
    """Where a model's weights may lie in a file, those that fit first, then those with the most names in common.

    Args:
        flat: The file.
        names: The model's.
    """
    given = _unwrapped([*flat.tensors, *flat.others])
    wanted = _unwrapped(names.expected)
    lightning = "pytorch-lightning_version" in flat.top
    prefixes = _prefixes(given, wanted, flat, names)
    found = [_place(prefix, flat, given, wanted, names, lightning=lightning) for prefix in prefixes]
    fitting = tuple(place.prefix for place in found if place.fits and place.prefix)
    found = [replace(p, strangers=[n for n in p.strangers if not plain(n).startswith(fitting)]) for p in found]
    matched = [len(set(place.full) & names.expected) for place in found]
    order = sorted(
        range(len(found)),
        key=lambda i: (not found[i].fits, bool(found[i].strangers), -matched[i], len(found[i].prefix)),
    )
    return [found[i] for i in order]


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names by what is left of them without wrappers; as they are where two would become one."""
    names = list(names)
    found = {plain(name): name for name in names}
    return found if len(found) == len(names) else {name: name for name in names}


def _prefixes(given: Mapping[str, str], wanted: Mapping[str, str], flat: Flat, names: Names) -> list[str]:
    """Beginnings that may be the right one: those before some name of the model's, and the fullest containers.

    The latter are for models whose hooks rename what they load.
    """
    always = [name for name, own in wanted.items() if own not in names.optional and own not in names.aliases]
    rare = sorted(always or wanted, key=lambda name: (-name.count("."), -len(name), name))[:_SOUGHT]
    found: dict[str, None] = {}
    for name in given:
        for end in rare:
            if name == end or name.endswith(f".{end}"):
                found[name[: len(name) - len(end)]] = None
    for folder, _ in Counter(flat.folders.values()).most_common(_FULLEST):
        short = plain(folder)
        inside = [name[len(short) :] for name in given if name.startswith(short)]
        found[short] = found[short + _common(inside)] = None
    return list(found)[:_PLACES]


def _common(names: list[str]) -> str:
    """The dotted beginning that all names share."""
    if not names:
        return ""
    first, last = min(names).split("."), max(names).split(".")
    count = 0
    while count < min(len(first), len(last)) - 1 and first[count] == last[count]:
        count += 1
    return ".".join(first[:count]) + "." if count else ""


def _place(
    prefix: str, flat: Flat, given: Mapping[str, str], wanted: Mapping[str, str], names: Names, *, lightning: bool
) -> Place:
    inside = {name[len(prefix) :]: full for name, full in given.items() if name.startswith(prefix)}
    within = {flat.folders[full] for short, full in inside.items() if short in wanted}
    folder = _common([f"{name}x" for name in within] or [f"{prefix}x"]) if len(within) != 1 else next(iter(within))
    taken: dict[str, str] = {}
    unexpected: dict[str, str] = {}
    for short, full in inside.items():
        if short in wanted:
            taken[wanted[short]] = full
        elif flat.folders[full] in within or not within:
            counter = short.rsplit(".", 1)[-1] in _COUNTERS
            if not counter and not _is_beside(short):
                unexpected[short] = full
    outside = [full for name, full in given.items() if not name.startswith(prefix) and flat.folders[full] in within]
    strangers = [full for full in outside if not lightning and not _is_beside(full[len(flat.folders[full]) :])]
    return Place(prefix, folder, taken, names.missing(taken.keys()), unexpected, strangers)


def _is_beside(name: str) -> bool:
    """Whether a name within a state dict belongs to what trains or judges a model and is no part of it."""
    first = name.split(".", 1)[0]
    return first in _COUNTERS or not _BESIDE.isdisjoint(first.lower().split("_"))


def is_averaged(prefix: str) -> bool:
    """Whether weights that lie there are an average over training (EMA, SWA)."""
    return not _AVERAGED.isdisjoint(re.split(r"[._]", prefix.lower()))


def main_folder(flat: Flat, entry: str | None) -> str:
    """Beginning of the names of the tensors that are meant where no model says which are wanted.

    Tensors that lie outermost are meant before any that are nested; then the only entry with tensors, or the one of the
    usual names; an average before what it is an average of, as in `places`.

    Raises:
        CheckpointMismatch: Several may be meant, or ``entry`` is not there.
    """
    folders = list(dict.fromkeys(flat.folders[name] for name in flat.tensors))
    if entry is not None:
        if not any(folder.startswith(f"{entry}.") for folder in folders):
            held = ", ".join(shown(folder[:-1]) for folder in folders if folder) or "none"
            raise CheckpointMismatch(f"there is no entry {shown(entry)!r} with tensors; entries with tensors: {held}.")
        return _deepest(entry, folders)
    if "" in folders or not folders:
        return ""
    tops = list(dict.fromkeys(folder.split(".", 1)[0] for folder in folders))
    tops = [top for top in tops if not _is_beside(top) or is_averaged(top)] or tops
    raw = [top for top in tops if not is_averaged(top)]
    chosen = next((top for top in _USUAL if top in raw), raw[0] if len(raw) == 1 else None)
    averaged = [top for top in tops if is_averaged(top)]
    if len(averaged) == 1 and (not raw or (chosen is not None and _short(flat, chosen) == _short(flat, averaged[0]))):
        chosen = averaged[0]
    if chosen is None:
        raise CheckpointMismatch(
            f"several entries hold tensors ({', '.join(shown(top) for top in tops[:8])}); say which is meant with "
            f"entry={shown(tops[0])!r}, or save model.state_dict() alone."
        )
    return _deepest(chosen, folders)


def _deepest(top: str, folders: list[str]) -> str:
    """The container within an entry that holds its tensors, if it is one."""
    inside = [folder for folder in folders if folder.startswith(f"{top}.")]
    return inside[0] if len(inside) == 1 else f"{top}."


def _short(flat: Flat, top: str) -> set[str]:
    """Names within an entry, without what averaging adds."""
    names = (name[len(top) + 1 :] for name in flat.tensors if name.startswith(f"{top}."))
    return {plain(name).removeprefix("module.") for name in names if name.rsplit(".", 1)[-1] not in _COUNTERS}
