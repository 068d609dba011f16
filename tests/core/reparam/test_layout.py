"""Weights as matrices: the inverse is the inverse, and a row is a neuron."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.defender.reparam.layout import layouts_of

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), 4),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), 4),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2)), 4),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 2, 3)), 4),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), 6),
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), 6),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), 6),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), groups=2), 6),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 8, 2, groups=4), 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layout_matrix_comes_back_as_the_weight(name):
    layer = LAYERS[name][0]().double()
    (layout,) = layouts_of(layer)
    matrix = layout.to_matrix(layer.weight)
    assert layout.neurons(layer.weight) == LAYERS[name][1]
    assert matrix.shape[0] * matrix.shape[1] == LAYERS[name][1]
    assert_close(layout.from_matrix(matrix, layer.weight), layer.weight, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_layout_row_is_what_one_output_channel_depends_on(name):
    """The gradient of one output channel is non-zero exactly in its row."""
    layer = LAYERS[name][0]().double()
    (layout,) = layouts_of(layer)
    spatial = layer.weight.ndim - 2
    channels = layer.weight.shape[1] if spatial <= 0 else layer.in_channels
    x = torch.rand(2, channels, *[4] * max(spatial, 0), dtype=torch.float64) + 0.1
    out = layer(x)
    for neuron in range(out.shape[1]):
        (gradient,) = torch.autograd.grad(out[:, neuron].sum(), layer.weight, retain_graph=True)
        rows = layout.to_matrix(gradient).flatten(0, 1).abs().sum(1)
        assert rows[neuron] > 0
        rows[neuron] = 0
        assert_close(rows, torch.zeros_like(rows), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_layout_scale_rows_equals_a_loop_over_neurons(name, slow):
    layer = LAYERS[name][0]().double()
    (layout,) = layouts_of(layer)
    scale = torch.rand(LAYERS[name][1], dtype=torch.float64)
    expected = slow.masked(layer, "weight", layer.weight, scale)
    assert_close(layout.scale_rows(layer.weight, scale), expected, rtol=0, atol=1e-15)


def test_layout_from_matrix_takes_fewer_rows_for_the_inner_factor():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    (layout,) = layouts_of(layer)
    inner = layout.to_matrix(layer.weight)[:, :2]
    assert layout.from_matrix(inner, layer.weight).shape == (4, 2, 3, 3)


def test_layout_knows_subclasses_and_no_other_layers():
    class Mine(nn.Conv2d):
        pass

    assert len(layouts_of(Mine(1, 2, 3))) == 1
    assert len(layouts_of(nn.Embedding(3, 4))) == len(layouts_of(nn.LayerNorm(3))) == 1
    assert layouts_of(nn.Embedding(3, 4, sparse=True)) == []
    assert layouts_of(nn.LayerNorm(3, elementwise_affine=False)) == []
    assert layouts_of(nn.BatchNorm2d(3)) == []


def test_layout_of_recurrent_layers_has_a_matrix_for_each_gate():
    assert [layout.groups for layout in layouts_of(nn.LSTM(3, 4, 2, bidirectional=True))] == [4] * 8
    assert [layout.groups for layout in layouts_of(nn.GRU(3, 4))] == [3, 3]
    assert [layout.groups for layout in layouts_of(nn.RNN(3, 4))] == [1, 1]
    assert [layout.groups for layout in layouts_of(nn.LSTM(3, 4, proj_size=2))] == [4, 4, 1]
