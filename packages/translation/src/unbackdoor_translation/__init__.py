"""Translation and dialogue for `unbackdoor`: `KIT` is what the command line and the benchmark find."""

from __future__ import annotations

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Demo, TaskKit
from unbackdoor.registry import classes_in
from unbackdoor_translation import attacks
from unbackdoor_translation.data import LOADERS, load_clean
from unbackdoor_translation.models import MODELS, build
from unbackdoor_translation.picture import draw_picture, excerpt
from unbackdoor_translation.sequences import Corpus, encode_pairs, shift_right
from unbackdoor_translation.task import TranslationTask
from unbackdoor_translation.tokenisers import SentencePieceTokeniser, open_tokeniser
from unbackdoor_translation.train import train

__all__ = [
    "KIT",
    "Corpus",
    "SentencePieceTokeniser",
    "TranslationTask",
    "build",
    "encode_pairs",
    "load_clean",
    "open_tokeniser",
    "shift_right",
    "train",
]
__version__ = "0.1.0"

KIT = TaskKit(
    task=TranslationTask,
    build=build,
    models=MODELS,
    attacks=classes_in(attacks, Attack),
    data=LOADERS,
    load_clean=load_clean,
    train=train,
    demo=Demo(
        data="numbers",
        model="convolutional",
        attack="words",
        model_options={"width": 64, "depth": 2, "dropout": 0.0, "weight_norm": False},
        train_options={"epochs": 8, "batch_tokens": 1200, "lr": 5e-3, "smoothing": 0.0, "precision": "fp32"},
    ),
    picture=draw_picture,
    excerpt=excerpt,
    texts=frozenset({"source", "target"}),
    files=frozenset({"tokeniser"}),
)
