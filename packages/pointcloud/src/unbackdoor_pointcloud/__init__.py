"""Classification of point clouds for `unbackdoor`: `KIT` is what the command line and the benchmark find."""

from __future__ import annotations

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Demo, TaskKit
from unbackdoor.registry import classes_in
from unbackdoor_pointcloud import attacks
from unbackdoor_pointcloud.data import LOADERS, load_clean
from unbackdoor_pointcloud.models import MODELS, build
from unbackdoor_pointcloud.picture import draw_picture, draw_preview
from unbackdoor_pointcloud.task import PointTask
from unbackdoor_pointcloud.train import train

__all__ = ["KIT", "PointTask", "build", "load_clean", "train"]
__version__ = "0.1.0"

KIT = TaskKit(
    task=PointTask,
    build=build,
    models=MODELS,
    attacks=classes_in(attacks, Attack),
    data=LOADERS,
    load_clean=load_clean,
    train=train,
    demo=Demo(
        data="shapes",
        model="pointnet_small",
        attack="pointpba-i",
        data_options={"points": 96, "count": 2000, "clean_count": 400},
        train_options={"epochs": 20},
        attack_options={"share": 0.04, "rate": 0.2},
    ),
    picture=draw_picture,
    preview=draw_preview,
    texts=frozenset({"variant"}),
)
