"""A zoo of float64 layers with slow oracles, shared by the tests of the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Run
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

torch.set_num_threads(1)

CLASSES = 3


class Reduce(nn.Module):
    """Mean over all but batch and channels, then a linear head."""

    def __init__(self, core: nn.Module, width: int, dim: int = 1) -> None:
        super().__init__()
        self.core, self.head, self.dim = core, nn.Linear(width, CLASSES), dim

    def forward(self, x: Tensor) -> Tensor:
        out = self.core(x)
        out = out[0] if isinstance(out, tuple) else out
        if self.dim == 1:
            return self.head(out.flatten(2).mean(2) if out.ndim > 2 else out)
        return self.head(out.mean(1))


class Twice(nn.Module):
    """One layer called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.same, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.same(self.same(self.once(x)).tanh()).tanh())


class TiedLinear(nn.Module):
    """Two linear layers with one weight and two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


class TiedEmbedding(nn.Module):
    """A projection onto the vocabulary tied to the embedding; takes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.out(self.hidden(self.embed(tokens)).mean(1).tanh()))


class CrossAttention(nn.Module):
    """Attention with separate projections of query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 2, 4))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)
        return self.head(out.mean(1))


class SelfAttention(nn.Module):
    """The module as most code calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


class UsersConv(nn.Conv2d):
    """A user's own convolution: standardises its weight before use."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


@dataclass(frozen=True)
class Case:
    """A model of the zoo and the shape of one input; ``sites`` is the number of tunable weight tensors."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: int
    tokens: int = 0

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.make().double().eval()
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    for value in (module.running_mean, module.running_var, module.weight, module.bias):
                        nn.init.uniform_(value, 0.5, 1.5)
        return model

    def batch(self, count: int = 4, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            inputs = torch.randint(0, self.tokens, (count, *self.shape), generator=generator)
        else:
            inputs = torch.randn(count, *self.shape, generator=generator, dtype=torch.float64)
        return Batch(inputs, torch.arange(count) % CLASSES)


def _sequence(core: nn.Module, width: int) -> nn.Module:
    return Reduce(core, width, dim=2)


def _norms() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6)]
    return Reduce(nn.Sequential(*layers, nn.ReLU()), 6)


CASES = {
    "linear": Case(lambda: Reduce(nn.Sequential(nn.Linear(5, 7), nn.Tanh()), 7), (5,), 2),
    "linear-no-bias": Case(lambda: Reduce(nn.Linear(5, 4, bias=False), 4), (5,), 2),
    "linear-tokens": Case(lambda: _sequence(nn.Linear(5, 4), 4), (3, 5), 2),
    "conv1d": Case(lambda: Reduce(nn.Conv1d(3, 4, 3, stride=2), 4), (3, 9), 2),
    "conv2d": Case(lambda: Reduce(nn.Conv2d(2, 5, 3, padding=1), 5), (2, 5, 5), 2),
    "conv3d": Case(lambda: Reduce(nn.Conv3d(2, 3, 2), 3), (2, 3, 3, 3), 2),
    "grouped": Case(lambda: Reduce(nn.Conv2d(4, 6, 3, groups=2), 6), (4, 4, 4), 2),
    "depthwise": Case(lambda: Reduce(nn.Conv2d(3, 6, 3, groups=3), 6), (3, 5, 5), 2),
    "dilated-circular": Case(
        lambda: Reduce(nn.Conv2d(2, 4, 3, dilation=2, padding=2, padding_mode="circular"), 4), (2, 5, 5), 2
    ),
    "transposed1d": Case(lambda: Reduce(nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), 6), (4, 4), 2),
    "transposed2d": Case(lambda: Reduce(nn.ConvTranspose2d(3, 5, 3, stride=2, output_padding=1), 5), (3, 3, 3), 2),
    "transposed2d-depthwise": Case(lambda: Reduce(nn.ConvTranspose2d(3, 6, 3, groups=3, dilation=2), 6), (3, 3, 3), 2),
    "transposed3d": Case(lambda: Reduce(nn.ConvTranspose3d(4, 6, 2, groups=2), 6), (4, 2, 2, 2), 2),
    "conv-bn": Case(_norms, (2, 5, 5), 3),
    "hard-activations": Case(
        lambda: Reduce(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 1), nn.Hardsigmoid()), 4),
        (2, 5, 5),
        3,
    ),
    "users-conv": Case(lambda: Reduce(UsersConv(2, 4, 3), 4), (2, 5, 5), 2),
    "rnn": Case(lambda: _sequence(nn.RNN(3, 4, batch_first=True), 4), (4, 3), 3),
    "lstm": Case(lambda: _sequence(nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True), 8), (4, 3), 9),
    "lstm-projected": Case(lambda: _sequence(nn.LSTM(3, 4, proj_size=2, batch_first=True), 2), (4, 3), 4),
    "gru": Case(lambda: _sequence(nn.GRU(3, 4, 2, bidirectional=True, batch_first=True), 8), (4, 3), 9),
    "attention": Case(SelfAttention, (3, 4), 3),
    "cross-attention": Case(CrossAttention, (3, 3), 5),
    "encoder-layer": Case(lambda: _sequence(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 4), (3, 4), 5),
    "tied-linear": Case(TiedLinear, (4,), 2),
    "tied-embedding": Case(TiedEmbedding, (3,), 2, tokens=6),
    "called-twice": Case(Twice, (4,), 3),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture
def cases() -> dict[str, Case]:
    """The zoo by name."""
    return CASES


def matrix_slices(layer: nn.Module, local: str, weight: Tensor) -> Iterator[tuple[list[tuple], tuple[int, ...]]]:
    """For each matrix of a weight: the index of each of its rows, read off PyTorch's documentation of the layer."""
    trailing = (slice(None),) * (weight.ndim - 2)
    if isinstance(layer, _ConvTransposeNd):
        inputs, rows = weight.shape[0] // layer.groups, weight.shape[1]
        for g in range(layer.groups):
            yield [(slice(g * inputs, (g + 1) * inputs), o, *trailing) for o in range(rows)], (inputs,)
        return
    parts = 1
    if isinstance(layer, nn.modules.conv._ConvNd):
        parts = layer.groups
    elif isinstance(layer, nn.LSTM) and "hr" not in local:
        parts = 4
    elif isinstance(layer, nn.GRU) or (isinstance(layer, nn.MultiheadAttention) and local == "in_proj_weight"):
        parts = 3
    rows = weight.shape[0] // parts
    for g in range(parts):
        yield [(g * rows + o, ...) for o in range(rows)], ()


@pytest.fixture
def slow() -> type[Slow]:
    """Slow oracles of effective weights, differentiable in mask or shift."""
    return Slow


class Slow:
    """Loops over neurons, without any code of the library."""

    @staticmethod
    def masked(layer: nn.Module, local: str, weight: Tensor, mask: Tensor) -> Tensor:
        """Every neuron's weight vector times its mask, one neuron after the other."""
        factor = torch.ones_like(weight)
        neuron = 0
        pieces = []
        for rows, _ in matrix_slices(layer, local, weight):
            for index in rows:
                where = torch.zeros_like(factor)
                where[index] = 1.0
                pieces.append(where * mask[neuron])
                neuron += 1
        assert neuron == len(mask)
        return weight * sum(pieces)

    @staticmethod
    def shifted(layer: nn.Module, local: str, weight: Tensor, shift: Tensor) -> Tensor:
        """``U diag(relu(s + delta)) V^T`` of every matrix, assembled row by row."""
        result = torch.zeros_like(weight)
        for g, (rows, _) in enumerate(matrix_slices(layer, local, weight)):
            matrix = torch.stack([weight[index].reshape(-1) for index in rows])
            u, s, vh = torch.linalg.svd(matrix.detach(), full_matrices=False)
            changed = u @ torch.diag(functional.relu(s + shift[g])) @ vh
            for index, row in zip(rows, changed, strict=True):
                where = torch.zeros_like(weight)
                where[index] = 1.0
                full = torch.zeros_like(weight).index_put((where.bool().nonzero(as_tuple=True)), row)
                result = result + full
        return result


def explicit_weights(handle: object, values: dict[str, Tensor], how: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {
        name: how(site.owners[0][0], site.owners[0][1], site.weight.detach(), values[name])
        for name, site in handle.sites.items()
    }


@pytest.fixture
def explicit() -> Callable[..., dict[str, Tensor]]:
    """Effective weights of a handle's sites by a slow oracle."""
    return explicit_weights


@pytest.fixture
def task() -> ClassificationTask:
    return ClassificationTask()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def run() -> Run:
    return Run(torch.Generator().manual_seed(0), torch.device("cpu"), nn.Identity())


@pytest.fixture
def clean() -> CleanSet:
    """Twelve samples of six numbers and three classes."""
    inputs = torch.randn(12, 6, generator=torch.Generator().manual_seed(3))
    return CleanSet(Batch(inputs, torch.arange(12) % CLASSES))
