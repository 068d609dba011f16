"""Architectures in miniature, one for each kind of layer that a method may meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.task import Batch

__all__ = ["TinyModel", "tiny_models"]


@dataclass(frozen=True)
class TinyModel:
    """An architecture in miniature: how to build it, and the shape of one input.

    ``build`` draws its weights from a fixed seed and leaves the global generator as it was. ``vocabulary`` is the
    number of tokens where inputs are integers, else 0. All have 3 classes and come in eval mode.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0
    classes: ClassVar[int] = 3

    def build(self, seed: int = 0) -> nn.Module:
        """The model in eval mode, with BatchNorm statistics that are not the trivial ones."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = self.make()
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
                    for value in (module.bias, module.weight, module.running_var):
                        nn.init.uniform_(value, 0.5, 1.5)  # type: ignore[arg-type]
        return model.eval()

    def batch(self, count: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
        """Random samples with every class in turn; floats in [0, 1]."""
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            inputs = torch.randint(0, self.vocabulary, (count, *self.shape), generator=generator)
        else:
            inputs = torch.rand(count, *self.shape, generator=generator, dtype=dtype)
        return Batch(inputs, torch.arange(count) % self.classes)


class _Lambda(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class _Attention(nn.Module):
    """Self-attention of plain linear layers, as in most vision transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return x + self.out(mixed)  # type: ignore[no-any-return]


class _Tied(nn.Module):
    """Tokens in, an embedding tied to the output layer, two hidden layers tied to each other, one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.twice, self.unembed, self.head = nn.Linear(5, 5), nn.Linear(5, 7), nn.Linear(7, 3)
        self.unembed.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.second(self.first(self.embed(tokens).mean(1)).tanh()).tanh()
        hidden = self.twice(self.twice(hidden).tanh())
        return self.head(self.unembed(hidden).tanh())  # type: ignore[no-any-return]


def tiny_models() -> dict[str, TinyModel]:
    """Architectures in miniature, one for each kind of layer that a method may meet."""

    def flat(width: int, pool: type[nn.Module] = nn.AdaptiveAvgPool2d) -> list[nn.Module]:
        return [pool(1), nn.Flatten(), nn.Linear(width, 3)]

    def after(function: Callable[[Any], Any]) -> nn.Module:
        return _Lambda(function)

    def conv(*layers: nn.Module, width: int, pool: type[nn.Module] = nn.AdaptiveAvgPool2d) -> nn.Module:
        return nn.Sequential(*layers, *flat(width, pool))

    def norm(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU()]

    def recurrent(kind: type[nn.LSTM | nn.GRU]) -> nn.Module:
        core = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        return nn.Sequential(core, after(_last_step), nn.Linear(8, 3))

    def vit(block: Callable[[], nn.Module]) -> nn.Module:
        patches = [nn.Conv2d(2, 8, 3, stride=3), nn.Flatten(2), after(_tokens_last)]
        return nn.Sequential(*patches, block(), nn.LayerNorm(8), after(_mean_token), nn.Linear(8, 3))

    def encoder() -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    return {
        "attention": TinyModel(lambda: vit(encoder), (2, 6, 6)),
        "conv-bn": TinyModel(
            lambda: conv(nn.Conv2d(2, 6, 3, bias=False), *norm(6), nn.Conv2d(6, 8, 3), *norm(8), width=8), (2, 6, 6)
        ),
        "conv-groupnorm": TinyModel(
            lambda: conv(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Dropout(0.5), width=6), (2, 6, 6)
        ),
        "conv1d": TinyModel(
            lambda: conv(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), width=6, pool=nn.AdaptiveAvgPool1d), (2, 8)
        ),
        "conv3d": TinyModel(
            lambda: conv(nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), width=4, pool=nn.AdaptiveAvgPool3d),
            (1, 4, 4, 4),
        ),
        "depthwise": TinyModel(
            lambda: conv(nn.Conv2d(3, 9, 3, groups=3), *norm(9), nn.Conv2d(9, 6, 1), *norm(6), width=6), (3, 6, 6)
        ),
        "grouped": TinyModel(lambda: conv(nn.Conv2d(4, 6, 3, groups=2, dilation=2), *norm(6), width=6), (4, 7, 7)),
        "gru": TinyModel(lambda: recurrent(nn.GRU), (5, 3)),
        "lstm": TinyModel(lambda: recurrent(nn.LSTM), (5, 3)),
        "mlp-layernorm": TinyModel(
            lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), (6,)
        ),
        "tied": TinyModel(_Tied, (4,), vocabulary=7),
        "transposed": TinyModel(
            lambda: conv(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), *norm(6), width=6),
            (4, 3, 3),
        ),
        "vit": TinyModel(lambda: vit(lambda: nn.Sequential(nn.LayerNorm(8), _Attention(8, 2))), (2, 6, 6)),
    }


def _last_step(outputs: tuple[Tensor, Any]) -> Tensor:
    return outputs[0][:, -1]


def _tokens_last(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _mean_token(x: Tensor) -> Tensor:
    return x.mean(1)
