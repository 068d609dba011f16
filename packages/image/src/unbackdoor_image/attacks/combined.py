"""Several attacks in one victim (Karim et al. 2024, FIP, section 6.3.8 and Table 12).

Trigger: that of one of the parts; which one is drawn for each image by the generator, each with equal chance.
Labels: all to one, the same target for all parts; dirty label. The parts share `rate` equally, as in the paper, which
uses BadNets, Blend and TrojanNN at 10 % to 50 %. Poison-only, so no part may need the victim's training.
Where public code goes wrong: none of the papers' code makes this victim.
Here: the parts come with their default options, or with those written behind their names, and their states lie in the
victim's folder; the success rate is the
mean over the parts, and that of each alone is measured with `Combined.members`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.badnets import BadNets
from unbackdoor_image.attacks.blend import Blend
from unbackdoor_image.attacks.bppa import BPPA
from unbackdoor_image.attacks.color import Color
from unbackdoor_image.attacks.issba import ISSBA
from unbackdoor_image.attacks.lf import LF
from unbackdoor_image.attacks.trojan import Trojan
from unbackdoor_image.attacks.wanet import WaNet

__all__ = ["Combined"]

_ABLE: Mapping[str, type[Attack]] = {cls.name: cls for cls in (BadNets, Blend, BPPA, Color, ISSBA, LF, Trojan, WaNet)}


def _fields(cls: type[Attack]) -> set[str]:
    return {f.name for f in fields(cls)}


def _part(text: str, parts: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``name:key=number,key=number``."""
    name, _, words = text.partition(":")
    if name not in _ABLE:
        raise BadOption(f"parts is {parts!r}; {name!r} is none of {', '.join(_ABLE)}.")
    options: dict[str, Any] = {}
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        kinds: dict[str, type[float]] = {
            f.name: float if isinstance(f.default, float) else int
            for f in fields(_ABLE[name])
            if isinstance(f.default, (int, float)) and not isinstance(f.default, bool)
        }
        try:
            options[key] = kinds[key](value)
        except (KeyError, ValueError) as error:
            raise BadOption(
                f"parts is {parts!r}; {word!r} is no option of {name!r} with its number. Known: {', '.join(kinds)}."
            ) from error
    return name, options


@dataclass(frozen=True, kw_only=True)
class Combined(Attack):
    """BadNets, Blend and TrojanNN in one victim, or other parts.

    Attributes:
        parts: Names of dirty-label attacks, joined by ``+``; numbers follow a name as in ``wanet:strength=4``, with
            commas between them. Covers and what a part does while the victim is trained are left out.
        helper_steps: Training steps of the clean networks of parts that have one; 0 leaves the parts' own defaults.
        steps: Gradient steps of parts that learn; 0 leaves the parts' own defaults.
        members: The attacks themselves; made from ``parts``.
    """

    name: ClassVar[str] = "combined"
    texts: ClassVar[frozenset[str]] = frozenset({"parts"})
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    parts: str = "badnets+blend+trojan"
    helper_steps: int = 0
    steps: int = 0
    members: tuple[Attack, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the parts."""
        super().__post_init__()
        named = dict(_part(text, self.parts) for text in self.parts.split("+"))
        if len(named) < 2 or len(named) < len(self.parts.split("+")):
            raise BadOption(f"parts is {self.parts!r}; give at least two different attacks, joined by +.")
        if not self.members:
            words: dict[str, Any] = {
                "target": self.target,
                "all_to_all": self.all_to_all,
                "num_classes": self.num_classes,
                "rate": self.rate / len(named),
            }
            given: dict[str, Any] = {"helper_steps": self.helper_steps, "steps": self.steps}
            made = tuple(
                _ABLE[name](**{**words, **{k: v for k, v in given.items() if v and k in _fields(_ABLE[name])}, **own})
                for name, own in named.items()
            )
            object.__setattr__(self, "members", made)

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Prepare every part."""
        for part in self.members:
            part.prepare(data, generator)

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """Every image with the trigger of one part, drawn by ``generator``."""
        draw = generator or torch.Generator().manual_seed(0)
        which = torch.randint(0, len(self.members), (len(inputs),), generator=draw).to(inputs.device)
        out: Tensor = inputs.clone()
        for place, part in enumerate(self.members):
            out[which == place] = part.trigger(inputs[which == place], draw)
        return out

    def options(self) -> dict[str, Any]:
        """The hyper-parameters; the parts' states are in `state`."""
        names = ("target", "all_to_all", "num_classes", "rate", "parts", "helper_steps", "steps")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict[str, Tensor]:
        """The states of all parts, with their names before those of the tensors."""
        return {f"{part.name}.{key}": value for part in self.members for key, value in part.state().items()}

    @classmethod
    def restore(cls, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The attack that `options` and `state` describe."""
        made = cls(**options)
        parts = []
        for part in made.members:
            own = {k.removeprefix(part.name + "."): v for k, v in state.items() if k.startswith(part.name + ".")}
            parts.append(type(part).restore(part.options(), own))
        return cls(**options, members=tuple(parts))
