"""Multi-label images for `unbackdoor`: `KIT` is what the command line and the benchmark find."""

from __future__ import annotations

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Demo, TaskKit
from unbackdoor.registry import classes_in
from unbackdoor_multilabel import attacks
from unbackdoor_multilabel.data import LOADERS, load_clean
from unbackdoor_multilabel.models import MODELS, MLDecoder, build
from unbackdoor_multilabel.picture import draw_picture
from unbackdoor_multilabel.task import MultilabelTask
from unbackdoor_multilabel.train import train

__all__ = ["KIT", "MLDecoder", "MultilabelTask", "build", "load_clean", "train"]
__version__ = "0.1.0"

KIT = TaskKit(
    task=MultilabelTask,
    build=build,
    models=MODELS,
    attacks=classes_in(attacks, Attack),
    data=LOADERS,
    load_clean=load_clean,
    train=train,
    demo=Demo(
        data="digits",
        model="small-ml-decoder",
        attack="clean-image",
        data_options={"clean_count": 1000},
        model_options={"in_channels": 1},
        train_options={"epochs": 35, "precision": "fp32"},
    ),
    picture=draw_picture,
    texts=frozenset({"fit", "image_column", "label_column", "test_split", "train_split", "year"}),
)
