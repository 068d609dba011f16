"""Attention maps by hand, depths and the classifier by the order of execution."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.errors import BadOption, UnsupportedModel
from unbackdoor.network.features import attention, classifier, depths, recorded
from unbackdoor.testing import tiny_models


def test_attention_of_feature_maps_by_hand():
    """Two channels, two positions: sums of squares (1 + 9, 4 + 0) = (10, 4), norm sqrt(116)."""
    maps = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]], dtype=torch.float64)
    assert_close(attention(maps, 1), torch.tensor([[10.0, 4.0]], dtype=torch.float64) / 116**0.5, rtol=0, atol=1e-12)


def test_attention_of_tokens_sums_over_the_last_dimension():
    tokens = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(attention(tokens, -1, 3.0), attention(tokens.transpose(1, 2), 1, 3.0), rtol=0, atol=1e-12)


def test_attention_of_vectors_keeps_their_entries_and_of_nothing_is_finite():
    vector = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = attention(vector, -1)
    assert_close(found.detach()[0], torch.tensor([9.0, 16.0], dtype=torch.float64) / (81 + 256) ** 0.5)
    found.sum().backward()
    assert torch.isfinite(vector.grad).all()


def staged():
    def stage(channels, width):
        return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU())

    body = [stage(1, 2), nn.MaxPool2d(2), stage(2, 3), nn.MaxPool2d(2), stage(3, 4), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(4, 3)).eval()


def test_depths_are_the_ends_of_stages_and_the_last_of_them():
    model = staged()
    probe = partial(model, torch.rand(2, 1, 8, 8))
    assert [(d.module, d.channels, d.shape) for d in depths(model, probe, 3)] == [
        ("0", 1, (2, 8, 8)), ("2", 1, (3, 4, 4)), ("4", 1, (4, 2, 2)),
    ]  # fmt: skip
    assert [d.module for d in depths(model, probe, 2)] == ["2", "4"]


def test_depths_of_tokens_have_their_channels_last():
    tiny = tiny_models()["vit"]
    model = tiny.build()
    found = depths(model, partial(model, tiny.batch().inputs), 2)
    assert len(found) == 2
    assert all(d.channels == -1 and d.shape == (4, 8) for d in found)


def test_depths_exist_on_every_architecture():
    for name, tiny in tiny_models().items():
        model = tiny.build()
        probe = partial(model, tiny.batch().inputs)
        places = depths(model, probe, 3)
        assert places, name
        with recorded(model, places) as kept:
            probe()
        for place in places:
            maps = attention(kept[place.module], place.channels)
            assert maps.shape[0] == 8, name
            assert maps.shape[1] > 1, f"{name}: the map of {place} is the constant 1"
        assert not any(module._forward_hooks for module in model.modules())


def test_hidden_vectors_as_wide_as_the_answer_are_features_all_the_same():
    model = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3), nn.Softmax(1))
    assert [d.module for d in depths(model, partial(model, torch.rand(2, 6)), 1)] == ["1"]


def test_depths_refuse_models_without_features_and_no_depth():
    with pytest.raises(UnsupportedModel, match="no module inside Linear"):
        depths(nn.Linear(2, 2), partial(nn.Linear(2, 2), torch.rand(2, 2)), 1)
    with pytest.raises(BadOption, match="points is 0"):
        depths(staged(), lambda: None, 0)


def test_classifier_is_the_last_weight_in_the_order_of_execution():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(4, 3), nn.Linear(2, 4)

        def forward(self, x):
            return self.head(self.body(x))

    model = Backwards()
    assert classifier(model, partial(model, torch.rand(2, 2)))[0] == "head"
    model.head.weight.requires_grad_(False)
    with pytest.raises(UnsupportedModel, match=r"head\.weight.*requires_grad=False"):
        classifier(model, partial(model, torch.rand(2, 2)))


def test_classifier_tied_to_another_layer_is_refused_by_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens):
            return self.out(self.embed(tokens).mean(1))

    model = Tied()
    with pytest.raises(UnsupportedModel, match=r"embed\.weight, out\.weight"):
        classifier(model, partial(model, torch.zeros(2, 3, dtype=torch.long)))
