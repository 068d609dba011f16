"""Image classification for `unbackdoor`: `KIT` is what the command line and the benchmark find."""

from __future__ import annotations

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Demo, TaskKit
from unbackdoor.registry import classes_in
from unbackdoor_image import attacks
from unbackdoor_image.data import LOADERS, load_clean
from unbackdoor_image.models import MODELS, build
from unbackdoor_image.picture import draw_picture
from unbackdoor_image.preview import draw_preview
from unbackdoor_image.task import ImageTask
from unbackdoor_image.train import train

__all__ = ["KIT", "ImageTask", "build", "load_clean", "train"]
__version__ = "0.1.0"

KIT = TaskKit(
    task=ImageTask,
    build=build,
    models=MODELS,
    attacks=classes_in(attacks, Attack),
    data=LOADERS,
    load_clean=load_clean,
    train=train,
    demo=Demo(
        data="digits",
        model="smallcnn",
        attack="blend",
        model_options={"in_channels": 1},
        train_options={"epochs": 20, "batch_size": 64, "precision": "fp32"},
    ),
    picture=draw_picture,
    preview=draw_preview,
    texts=frozenset({"fit", "image_column", "label_column", "order", "test_split", "train_split"}),
)
