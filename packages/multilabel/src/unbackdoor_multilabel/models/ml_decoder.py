"""ML-Decoder: a classification head that asks an image's places for every class (Ridnik et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import BadOption

__all__ = ["Backboned", "MLDecoder"]

_CLASSIFIERS = ("full", "shared")


class MLDecoder(nn.Module):
    r"""ML-Decoder (Ridnik, Sharir, Ben-Cohen, Ben-Baruch and Noy 2023, arXiv 2111.12933).

    With fixed group queries ``Q`` and the embedded places ``E = relu(W_e x + b_e)`` of a feature map:

    - ``G_1 = LN(q + MultiHeadAttention(q, E, E))`` with ``q = LN(Q)``: cross-attention without the self-attention of a
      transformer's decoder, which does the same for every image as queries are fixed;
    - ``G_2 = LN(G_1 + FeedForward(G_1))``;
    - group fully-connected pooling: every query is expanded to the ``g = ceil(classes / queries)`` logits of its group.

    Every tuned matrix lies in a layer whose ``forward`` is called, the expansion in a grouped convolution of width
    one, so that masks and shifts of neurons reach all of them.

    Args:
        features: Channels of the feature map.
        num_classes: Number of logits.
        queries: Number of queries; None, or more than the classes, takes one for each class.
        width: Of queries and attention.
        heads: Of the attention; they must divide ``width``.
        hidden: Of the feed-forward layer.
        dropout: In train mode.
        classifier: ``"full"`` gives every query an expansion of its own; ``"shared"`` has one for all queries.
        learned: Whether queries are learned; the paper shows that random fixed ones do as well.

    Raises:
        BadOption: A number is below 1, the heads do not divide the width, or the classifier is unknown.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        queries: int | None = 100,
        width: int = 768,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        classifier: str = "full",
        learned: bool = False,
    ) -> None:
        """Build the layers with PyTorch's default initialisation; queries are normal with deviation 1."""
        super().__init__()
        for name, value in (("queries", queries or 1), ("width", width), ("heads", heads), ("hidden", hidden)):
            if value < 1:
                raise BadOption(f"{name} is {value}; it must be at least 1.")
        if width % heads:
            raise BadOption(f"width is {width} and heads {heads}; the heads must divide the width.")
        if classifier not in _CLASSIFIERS:
            raise BadOption(f"classifier is {classifier!r}; it must be one of {', '.join(_CLASSIFIERS)}.")
        groups = min(queries or num_classes, num_classes)
        each = -(-num_classes // groups)
        self.num_classes, self.classifier = num_classes, classifier
        self.embed = nn.Linear(features, width)
        self.queries = nn.Embedding(groups, width)
        self.queries.weight.requires_grad_(learned)
        self.norm_queries = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm_attended = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.norm_fed = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.expand: nn.Module = (
            nn.Conv1d(groups * width, groups * each, 1, groups=groups)
            if classifier == "full"
            else nn.Linear(width, each)
        )

    def forward(self, places: Tensor) -> Tensor:
        """Logits ``(batch, num_classes)``.

        Args:
            places: A feature map ``(batch, features, height, width)``, or tokens ``(batch, places, features)``.
        """
        tokens = places.flatten(2).transpose(1, 2) if places.ndim == 4 else places
        embedded = self.embed(tokens).relu()
        asked = self.norm_queries(self.dropout(self.queries.weight)).expand(len(embedded), -1, -1)
        found, _ = self.attention(asked, embedded, embedded, need_weights=False)
        grouped = self.norm_attended(asked + self.dropout(found))
        fed = self.narrow(self.dropout(self.widen(grouped).relu()))
        grouped = self.norm_fed(grouped + self.dropout(fed))
        logits: Tensor = (
            self.expand(grouped.flatten(1).unsqueeze(2)).flatten(1)
            if self.classifier == "full"
            else self.expand(grouped).flatten(1)
        )
        return logits[:, : self.num_classes]


class Backboned(nn.Module):
    """A backbone that gives a feature map, or tokens, and a head on top.

    Args:
        backbone: Images to a map ``(batch, features, h, w)`` or to tokens ``(batch, places, features)``.
        head: What is made of them: `MLDecoder`, or any other module.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        """Keep both."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def channels_of(backbone: nn.Module, in_channels: int, side: int) -> int:
    """Number of features that ``backbone`` gives, found by one blank image of ``side`` pixels.

    Raises:
        BadOption: It gives neither a map nor tokens.
    """
    training = backbone.training
    with torch.no_grad():
        answer: Any = backbone.eval()(torch.zeros(1, in_channels, side, side))
    backbone.train(training)
    if not isinstance(answer, Tensor) or answer.ndim not in (3, 4):
        given = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise BadOption(f"the backbone gives {given}; a head needs a map (batch, features, h, w) or tokens.")
    return int(answer.shape[1] if answer.ndim == 4 else answer.shape[2])
