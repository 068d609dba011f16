"""Strong augmentation of clouds: changes of several families that leave a cloud's class as it is.

They are the corruptions of ModelNet-C (Ren et al. 2022, arXiv 2202.03377): added clusters, dropped points, noise, turns
and shears. Each cloud gets one, drawn evenly. Families have names, so that a measurement can leave out whatever
resembles the trigger that it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from unbackdoor.errors import BadOption
from unbackdoor_pointcloud.augment import drop_points, jitter, put_clusters, scale, tilt

__all__ = ["FAMILIES", "strong"]

_CHANGES: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "cluster": put_clusters,
    "drop": lambda clouds, generator: drop_points(clouds, generator, 0.8),
    "noise": lambda clouds, generator: jitter(clouds, generator, 0.03),
    "rotation": lambda clouds, generator: scale(tilt(clouds, generator), generator, 0.2),
}
FAMILIES = tuple(_CHANGES)


def strong(clouds: Tensor, generator: torch.Generator, *, without: Collection[str] = ()) -> Tensor:
    """Each cloud with one change of a family that is drawn for it.

    Args:
        clouds: Floats ``(batch, points, 3)``; they are not written into.
        generator: Every draw comes from it.
        without: Families to leave out.

    Raises:
        BadOption: A family is unknown, or all are left out.
    """
    families = [name for name in FAMILIES if name not in without]
    if set(without) - set(FAMILIES) or not families:
        raise BadOption(
            f"without is {', '.join(sorted(without))}; name some of {', '.join(FAMILIES)}, not all of them."
        )
    drawn = torch.randint(len(families), (len(clouds),), generator=generator, device=generator.device)
    out = clouds.clone()
    for place, family in enumerate(families):
        some = (drawn == place).nonzero().flatten().to(clouds.device)
        if len(some):
            out[some] = _CHANGES[family](clouds[some], generator)
    return out
