"""Models by name: our own, or a function in the user's own code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from unbackdoor.builders import build_model
from unbackdoor_pointcloud.models.dgcnn import DGCNN
from unbackdoor_pointcloud.models.pointnet import PointNet
from unbackdoor_pointcloud.models.pointnet2 import MSG, SMALL, SSG, TINY, PointNet2

__all__ = ["MODELS", "build"]

_SMALL_HEAD: dict[str, Any] = {"joint": (128, 256), "hidden": (128,), "dropout": 0.3}

_OWN: dict[str, Callable[..., nn.Module]] = {
    "pointnet": PointNet,
    "pointnet_small": partial(PointNet, width=0.25, transforms=False),
    "pointnet2_ssg": partial(PointNet2, levels=SSG),
    "pointnet2_msg": partial(PointNet2, levels=MSG),
    "pointnet2_small": partial(PointNet2, levels=SMALL, **_SMALL_HEAD),
    "pointnet2_tiny": partial(PointNet2, levels=TINY, **_SMALL_HEAD),
    "dgcnn": DGCNN,
    "dgcnn_small": partial(DGCNN, neighbours=10, edges=(32, 32, 64), joint=128, hidden=(64,)),
}

MODELS = {
    "pointnet": "one MLP for every point, with T-Nets; width=0.25 is quick",
    "pointnet_small": "a quarter of the widths, no T-Nets: seconds on a CPU",
    "pointnet2_ssg": "the papers' PointNet++, single-scale grouping",
    "pointnet2_msg": "PointNet++ with multi-scale grouping",
    "pointnet2_small": "PointNet++ for a CPU: 128 and 32 centres, 16 neighbours",
    "pointnet2_tiny": "PointNet++ for a CPU in minutes: 64 and 16 centres, 12 and 8 neighbours",
    "dgcnn": "edges to the nearest points in feature space, k = 20",
    "dgcnn_small": "DGCNN for a CPU: k = 10, three layers",
}


def build(name: str, num_classes: int = 40, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make a model by name, with random weights; nothing is downloaded.

    Args:
        name: One of `MODELS`, or ``module:function`` for a function of your own, looked for in the current directory
            too; it is called as ``function(num_classes=..., **options)``.
        num_classes: Number of logits.
        seed: Of the initial weights; the global generator is left as it was.
        **options: Of the model: ``width``, ``dropout``, ...

    Raises:
        UnknownName: Nothing has this name.
        BadOption: The model does not take these options.
        UnsupportedModel: A function of your own returned no module.
    """
    return build_model(name, _OWN, num_classes=num_classes, seed=seed, options=options)
