"""ML-Decoder against its equations, and what masks and shifts find in it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.reparam import NeuronMask, SpectralShift
from unbackdoor.errors import BadOption, UnknownName
from unbackdoor.task import Batch
from unbackdoor_multilabel import MLDecoder, MultilabelTask, build
from unbackdoor_multilabel.models import Backboned
from unbackdoor_multilabel.models.ml_decoder import channels_of
from unbackdoor_multilabel.models.small import PooledLinear, SmallBackbone

pytestmark = pytest.mark.usefixtures("untrained")


def head(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = {"queries": 3, "width": 8, "heads": 2, "hidden": 12, **options}
        return MLDecoder(5, 7, **words).double().eval()


def normed(rows, norm):
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def linear(rows, weight, bias):
    return torch.stack([torch.stack([(w * row).sum() for w in weight]) + bias for row in rows])


def attention(asked, keys, layer):
    """One image, by hand: softmax of q k / sqrt(d) for each head, the values' mean, and the output projection."""
    width, heads = asked.shape[1], layer.num_heads
    parts = zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    q, k, v = (linear(x, w, b) for x, (w, b) in zip((asked, keys, keys), parts, strict=True))
    size = width // heads
    out = torch.zeros_like(asked)
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        for i in range(len(asked)):
            scores = torch.stack([(q[i, own] * key[own]).sum() / math.sqrt(size) for key in k])
            weights = (scores - scores.max()).exp()
            out[i, own] = ((weights / weights.sum())[:, None] * v[:, own]).sum(0)
    return linear(out, layer.out_proj.weight, layer.out_proj.bias)


def by_hand(model, image):
    """Logits of one image ``(features, h, w)``, class by class."""
    places = torch.stack([image[:, y, x] for y in range(image.shape[1]) for x in range(image.shape[2])])
    embedded = linear(places, model.embed.weight, model.embed.bias).clamp(min=0)
    asked = normed(model.queries.weight, model.norm_queries)
    grouped = normed(asked + attention(asked, embedded, model.attention), model.norm_attended)
    hidden = linear(grouped, model.widen.weight, model.widen.bias).clamp(min=0)
    grouped = normed(grouped + linear(hidden, model.narrow.weight, model.narrow.bias), model.norm_fed)
    logits = []
    for label in range(model.num_classes):
        each = -(-model.num_classes // len(grouped))
        query, place = divmod(label, each)
        if model.classifier == "full":
            weight, bias = model.expand.weight[query * each + place, :, 0], model.expand.bias[query * each + place]
        else:
            weight, bias = model.expand.weight[place], model.expand.bias[place]
        logits.append((weight * grouped[query]).sum() + bias)
    return torch.stack(logits)


@pytest.mark.parametrize("classifier", ["full", "shared"])
@pytest.mark.parametrize("queries", [3, None, 50])
def test_ml_decoder_is_its_equations(classifier, queries, generator):
    model = head(classifier=classifier, queries=queries)
    images = torch.randn(2, 5, 2, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([by_hand(model, image) for image in images])
        assert_close(model(images), expected, rtol=0, atol=1e-12)
        assert_close(model(images.flatten(2).transpose(1, 2)), model(images), rtol=0, atol=1e-12)
    assert model(images).shape == (2, 7)
    assert len(model.queries.weight) == (3 if queries == 3 else 7)


def test_ml_decoder_queries_are_fixed_unless_learned():
    assert not head().queries.weight.requires_grad
    assert head(learned=True).queries.weight.requires_grad


def test_full_classifier_gives_every_query_its_own_expansion(generator):
    model = head()
    images = torch.randn(1, 5, 2, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
        model.expand.weight[3:6] += 1  # the second query's group
        moved = (model(images) - before)[0] != 0
    assert moved.tolist() == [False, False, False, True, True, True, False]


@pytest.mark.parametrize(
    "options", [{"heads": 3}, {"queries": -2}, {"classifier": "zero-shot"}, {"hidden": 0}], ids=lambda o: next(iter(o))
)
def test_ml_decoder_refuses_options(options):
    with pytest.raises(BadOption, match=next(iter(options))):
        head(**options)


def tiny():
    return build("small-ml-decoder", 4, seed=1, in_channels=1, width=4, decoder_width=8, heads=2, hidden=8)


def samples(generator, count=8):
    rows = (torch.rand(count, 4, generator=generator) < 0.4).long()
    rows[0], rows[1] = torch.tensor([1, 1, 1, 1]), torch.tensor([0, 0, 0, 0])
    return Batch(torch.rand(count, 1, 12, 12, generator=generator), rows)


@pytest.mark.parametrize("kind", [NeuronMask, SpectralShift])
def test_handles_reach_every_matrix_of_the_decoder(kind, generator):
    model, images = tiny().double().eval(), samples(generator).inputs.double()
    handle = kind(model, lambda: model(images[:2]))
    tuned = {name for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad}
    assert set(handle.sites) == tuned
    assert {"head.attention.in_proj_weight", "head.attention.out_proj.weight", "head.expand.weight"} <= tuned
    with torch.no_grad():
        plain = model(images)
    with handle:
        for value in handle.parameters().values():
            torch.nn.init.normal_(value.detach(), 0.8 if kind is NeuronMask else 0.0, 0.1, generator=generator)
        loss = MultilabelTask().loss(model(images), samples(generator).targets)
        gradients = torch.autograd.grad(loss, list(handle.parameters().values()))
        with torch.no_grad():
            attached = model(images)
        handle.fold_()
    assert all(bool((g != 0).any()) for g in gradients), "no site may be cut off from the loss"
    with torch.no_grad():
        assert not torch.allclose(attached, plain, rtol=0, atol=1e-6)
        assert_close(model(images), attached, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["nft", "f-fip"])
def test_methods_change_the_attention(method, generator):
    model, clean = tiny().eval(), samples(generator, 12)
    few = {"steps": 4, "batch_size": 4}
    purified, _ = unbackdoor.purify(model, clean, task=MultilabelTask(), method=method, **few)
    for name in ("head.attention.in_proj_weight", "head.attention.out_proj.weight", "head.embed.weight"):
        assert not torch.equal(purified.get_parameter(name), model.get_parameter(name)), name
    assert torch.equal(purified.head.queries.weight, model.head.queries.weight)


def test_build_is_seeded_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (build("small-ml-decoder", 3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(first.state_dict(), again.state_dict())
    assert not torch.equal(first.head.embed.weight, other.head.embed.weight)
    assert isinstance(build("small-linear", 3).head, PooledLinear)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_backbones_get_a_head(name):
    model = build(f"torchvision:{name}", 6, in_channels=1, decoder_width=16, heads=2, hidden=16).eval()
    assert isinstance(model, Backboned)
    with torch.no_grad():
        assert model(torch.rand(2, 1, 48, 48)).shape == (2, 6)


def test_models_refuse_what_they_cannot_be():
    with pytest.raises(BadOption, match="no feature map"):
        build("torchvision:vit_b_16", 6)
    with pytest.raises(UnknownName, match="resnet18"):
        build("torchvision:resnet-18", 6)
    with pytest.raises(BadOption, match="head"):
        build("small-ml-decoder", 6, head="none")
    with pytest.raises(BadOption, match="a head needs a map"):
        channels_of(nn.Flatten(), 3, 8)
    backbone = SmallBackbone(in_channels=2)
    assert backbone.training
    assert channels_of(backbone, 2, 16) == backbone.features == 64
    assert backbone.training, "measuring must not change the mode"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tresnet_m", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_backbones_get_a_head(name):
    options = {} if "resnet" in name else {"img_size": 64}
    model = build(f"timm:{name}", 6, decoder_width=16, heads=2, hidden=16, **options).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 6)
