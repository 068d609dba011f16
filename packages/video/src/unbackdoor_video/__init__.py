"""Action recognition for `unbackdoor`: `KIT` is what the command line and the benchmark find."""

from __future__ import annotations

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Demo, TaskKit
from unbackdoor.registry import classes_in
from unbackdoor_video import attacks
from unbackdoor_video.data import LOADERS, load_clean
from unbackdoor_video.models import MODELS, build
from unbackdoor_video.picture import draw_picture
from unbackdoor_video.task import VideoTask
from unbackdoor_video.train import train

__all__ = ["KIT", "VideoTask", "build", "load_clean", "train"]
__version__ = "0.1.0"

KIT = TaskKit(
    task=VideoTask,
    build=build,
    models=MODELS,
    attacks=classes_in(attacks, Attack),
    data=LOADERS,
    load_clean=load_clean,
    train=train,
    demo=Demo(
        data="moving_digits",
        model="cnn-lstm",
        attack="blend",
        data_options={"clips": 1440, "clean_count": 240},  # a fifth of the clean ones judges the strength
        model_options={"in_channels": 1, "width": 8, "hidden": 32},
        train_options={"epochs": 12, "batch_size": 32, "lr": 5e-3, "precision": "fp32"},
    ),
    picture=draw_picture,
    texts=frozenset({"fit", "window"}),
)
