"""Weights that someone else than their layer reads: what is tuned is seen everywhere, or refused before the work."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from unbackdoor.defender.reparam import NeuronMask, SpectralShift, WeightMask, neuron_mask
from unbackdoor.errors import NothingTrainable, UnreachedSite, UnsupportedModel

EXACT = {"rtol": 0, "atol": 1e-10}
TOKENS = torch.tensor([[1, 2, 2], [6, 0, 1]])
ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HANDLES = [NeuronMask, SpectralShift, WeightMask]


class Reads(nn.Module):
    """Computes with a weight whose layer it never calls, and calls another; a third is idle."""

    def __init__(self):
        super().__init__()
        self.used, self.called, self.idle = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x):
        return self.called((x @ self.used.weight).tanh())


class TiedDecoder(nn.Module):
    """An autoencoder whose decoder is its encoder's transpose, and a classifier of what it gives."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(4, 5), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(functional.linear(self.encoder(x).tanh(), self.encoder.weight.t()).tanh())


class TiedTable(nn.Module):
    """A language model's table, looked up by its layer and multiplied with by ``functional.linear``."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Embedding(7, 4), nn.Linear(4, 4)

    def forward(self, tokens):
        return functional.linear(self.inner(self.embed(tokens).mean(1)).tanh(), self.embed.weight)


class ConvTwice(nn.Module):
    """A convolution that is called, and whose kernel is used with another stride too."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(8, 3)

    def forward(self, x):
        strided = functional.conv2d(x, self.conv.weight, self.conv.bias, stride=2)
        return self.head(torch.cat([self.conv(x).relu().mean((2, 3)), strided.relu().mean((2, 3))], 1))


class Projection(nn.Module):
    """Attention whose output projection someone calls once more, and whose joint projection someone reads."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        tokens = x.unsqueeze(1) * torch.linspace(0.5, 1.5, 3, dtype=x.dtype).view(1, 3, 1)
        mixed = self.attention(tokens, tokens, tokens)[0].mean(1)
        query = functional.linear(mixed, self.attention.in_proj_weight[:4])
        return self.head(self.attention.out_proj(mixed).tanh() + query.tanh() + self.attention.out_proj.weight.sum(0))


class Recurrent(nn.Module):
    """A recurrent layer whose input weights are used for a skip connection."""

    def __init__(self):
        super().__init__()
        self.core, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        outputs, _ = self.core(torch.stack([x, x.flip(1)], 1))
        return self.head(outputs[:, -1] + functional.linear(x, self.core.weight_ih_l0[:4]))


class Overridden(nn.Module):
    """A layer with a forward of the instance's own, as one patch of other people's code leaves it."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.inner.forward = types.MethodType(_doubled, self.inner)

    def forward(self, x):
        return self.head(self.inner(x).tanh())


def _doubled(self, x):
    return 2 * functional.linear(x, self.weight, self.bias)


class Twin(nn.Module):
    """Two layers with one weight, of which one is called and the other read."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(functional.linear(self.first(x).tanh(), self.second.weight).tanh())


MODELS = {
    "reads": (Reads, ROWS),
    "decoder": (TiedDecoder, ROWS),
    "table": (TiedTable, TOKENS),
    "conv": (ConvTwice, IMAGES),
    "projection": (Projection, ROWS),
    "recurrent": (Recurrent, ROWS),
    "overridden": (Overridden, ROWS),
    "twin": (Twin, ROWS),
}


def made(name):
    cls, inputs = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls().double().eval(), inputs


def handle_on(cls, model, inputs):
    words = {} if cls is WeightMask else {"embeddings": True}
    return cls(model, lambda: model(inputs), **words)


def moved(handle):
    generator = torch.Generator().manual_seed(1)
    for value in handle.parameters().values():
        value.data += torch.empty_like(value).uniform_(-0.4, 0.0, generator=generator)


@pytest.mark.parametrize("cls", HANDLES)
@pytest.mark.parametrize("name", MODELS)
def test_every_reader_sees_the_effective_weight_so_that_folding_changes_nothing(name, cls, monkeypatch):
    monkeypatch.setattr(neuron_mask, "_NARROW", 0)
    model, inputs = made(name)
    given, before = model(inputs).detach(), copy.deepcopy(model.state_dict())
    handle = handle_on(cls, model, inputs)
    moved(handle)
    with handle:
        attached = model(inputs).detach()
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(model(inputs), given)
    with handle:
        handle.fold_()
    assert_close(model(inputs).detach(), attached, **EXACT)
    assert float((attached - given).abs().max()) > 1e-3


@pytest.mark.parametrize("cls", HANDLES)
@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_what_is_tuned_takes_every_reader_in(name, cls):
    model, inputs = made(name)
    handle = handle_on(cls, model, inputs)
    moved(handle)
    with handle:
        values = handle.parameters()
        found = torch.autograd.grad(model(inputs).square().sum(), list(values.values()))
    weights = {name: handle.effective(site, values[name]) for name, site in handle.sites.items()}
    shared = {
        other: weights[name]
        for name, site in handle.sites.items()
        for other, p in model.named_parameters(remove_duplicate=False)
        if p is site.weight
    }
    expected = torch.func.functional_call(model, shared, (inputs,), tie_weights=False)
    assert_close(list(found), list(torch.autograd.grad(expected.square().sum(), list(values.values()))), **EXACT)


def test_sites_are_in_the_order_in_which_they_are_called_or_read():
    model, inputs = made("reads")
    mask = NeuronMask(model, lambda: model(inputs))
    assert [(name, site.depth) for name, site in mask.sites.items()] == [("used.weight", 1), ("called.weight", 2)]
    assert any("never reached" in text and "idle.weight" in text for text in mask.notices)


class Registry(nn.Module):
    """Computes with the parameter itself, past layer and attribute."""

    def __init__(self, called):
        super().__init__()
        self.used, self.head, self.also = nn.Linear(4, 4), nn.Linear(4, 3), called

    def forward(self, x):
        hidden = x @ self.used._parameters["weight"]
        return self.head((hidden + self.used(x) if self.also else hidden).tanh())


@pytest.mark.parametrize("cls", HANDLES)
@pytest.mark.parametrize("called", [False, True])
def test_weights_read_past_their_layer_are_refused_by_name_before_the_work(cls, called):
    model = Registry(called).double().eval()
    with pytest.raises(UnreachedSite, match=r"used\.weight.*skip") as error:
        cls(model, lambda: model(ROWS))
    assert "head" not in str(error.value)
    assert set(cls(model, lambda: model(ROWS), skip=["used.*"]).sites) == {"head.weight"}
    assert all(p.requires_grad for p in model.parameters())
    assert type(model.used) is nn.Linear


class Hidden(nn.Module):
    """Computes with a weight past its layer where no gradient shows it."""

    def __init__(self, how):
        super().__init__()
        self.enc, self.head, self.how = nn.Linear(4, 4), nn.Linear(4, 3), how
        self.kept = [self.enc.weight, self.enc.weight.detach().double().clone()]

    def forward(self, x):
        hidden = self.enc(x).tanh()
        if self.how == "level":  # a term whose gradient is 0 at the given weight
            return self.head(hidden + (self.kept[0] - self.kept[1]).square().sum())
        if self.how == "no_grad":
            with torch.no_grad():
                gate = functional.linear(x, self.kept[0]).tanh()
            return self.head(hidden * gate)
        if self.how == "named_parameters":
            return self.head(functional.linear(hidden, dict(self.named_parameters())["enc.weight"].detach()))
        if self.how == "state_dict":
            return self.head(functional.linear(hidden, self.state_dict()["enc.weight"]))
        return self.head(functional.linear(hidden, self.enc.get_parameter("weight")))


@pytest.mark.parametrize("cls", HANDLES)
@pytest.mark.parametrize("how", ["level", "no_grad", "named_parameters", "state_dict", "get_parameter"])
def test_readers_without_a_gradient_are_refused_before_the_work(cls, how):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Hidden(how).double().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnreachedSite, match="skip takes patterns") as error:
        cls(model, lambda: model(ROWS))
    assert ("enc.weight" in str(error.value) and "head" not in str(error.value)) or how == "get_parameter"
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert set(cls(model, lambda: model(ROWS), skip=["enc.*"]).sites) == {"head.weight"}


class SharedMemory(nn.Module):
    """Two parameters, or a parameter and a buffer, in one piece of memory, which no tie tells of."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.double()
        if how == "transposed":
            self.second.weight = nn.Parameter(self.first.weight.t())
        elif how == "buffer":
            self.register_buffer("copy", self.first.weight.data)
        else:
            rows = torch.randn(8, 4, dtype=torch.float64)
            start = 2 if how == "overlapping" else 4
            self.first.weight = nn.Parameter(rows[:4])
            self.second.weight = nn.Parameter(rows[start : start + 4])
        self.how = how

    def forward(self, x):
        hidden = self.first(x).tanh()
        hidden = functional.linear(hidden, self.copy) if self.how == "buffer" else self.second(hidden)
        return self.head(hidden.tanh())


@pytest.mark.parametrize("cls", HANDLES)
@pytest.mark.parametrize("how", ["transposed", "buffer", "overlapping", "apart"])
def test_weights_in_the_memory_of_another_tensor_are_left_as_they_are_and_named(cls, how):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SharedMemory(how).eval()
    handle = cls(model, lambda: model(ROWS))
    told = any("memory" in text and "first.weight" in text for text in handle.notices)
    assert ("first.weight" in handle.sites) != told
    assert told == (how != "apart")
    moved(handle)
    with handle:
        attached = model(ROWS).detach()
        handle.fold_()
    assert_close(model(ROWS).detach(), attached, **EXACT)


class Cut(nn.Module):
    def __init__(self, whole=False):
        super().__init__()
        self.first, self.second, self.whole = nn.Linear(4, 4), nn.Linear(4, 3), whole

    def forward(self, x):
        with torch.no_grad():
            hidden = self.first(x)
        return self.second(hidden.tanh()).detach() if self.whole else self.second(hidden.tanh())


@pytest.mark.parametrize("cls", HANDLES)
def test_layers_under_no_grad_are_left_out_and_named(cls):
    model = Cut().double()
    handle = cls(model, lambda: model(ROWS))
    assert set(handle.sites) == {"second.weight"}
    assert any("no gradient reaches them" in text and "first.weight" in text for text in handle.notices)
    whole = Cut(whole=True).double()
    with pytest.raises(UnsupportedModel, match=r"forward cuts it"):
        cls(whole, lambda: whole(ROWS))


class StdConv(nn.Conv2d):
    """A convolution that standardises each neuron's weights, as those of BiT and of normaliser-free networks do."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-6).sqrt()
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_that_the_model_divides_out_again_are_left_out_and_named(dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [StdConv(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(4, 3)).to(dtype).eval()
    inputs = IMAGES.to(dtype)
    before = copy.deepcopy(model.state_dict())
    mask = NeuronMask(model, lambda: model(inputs))
    assert set(mask.sites) == {"2.weight", "5.weight"}
    assert any("divides a factor" in text and "0.weight" in text for text in mask.notices)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert "0.weight" in SpectralShift(model, lambda: model(inputs)).sites
    with pytest.raises(NothingTrainable, match=r"0\.weight"):
        NeuronMask(model, lambda: model(inputs), skip=["2.*", "5.*"])


class Gained(StdConv):
    """One whose output has a gain, as those of normaliser-free networks have."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.zeros(sizes[1], 1, 1))

    def forward(self, x):
        return self.gain * super().forward(x)


@pytest.mark.parametrize("how", ["gain", "branch", "small"])
def test_standardised_weights_are_found_where_the_answers_do_not_depend_on_them_yet(how):
    """A gain or a residual branch of 0 leaves no gradient; small weights are standardised in part alone."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.plain, self.head = Gained(2, 2, 3), nn.Conv2d(2, 2, 1), nn.Linear(2, 3)
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.head(self.scale * self.conv(x).mean((2, 3)) + self.plain(x).mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Branch().double().eval()
    with torch.no_grad():
        if how != "gain":
            model.conv.gain.fill_(1.0)
        if how != "branch":
            model.scale.fill_(1.0)
        if how == "small":
            model.conv.weight.mul_(0.05)
    mask = NeuronMask(model, lambda: model(IMAGES))
    assert set(mask.sites) == {"plain.weight", "head.weight"}
    assert any("divides a factor" in text and "conv.weight" in text for text in mask.notices)


def test_layers_of_the_users_own_that_scale_with_their_weights_keep_their_masks(cases):
    model = cases["users-conv"].model()
    inputs = cases["users-conv"].batch().inputs
    assert len(NeuronMask(model, lambda: model(inputs)).sites) == 2


def test_masks_before_dead_units_are_not_called_divided_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    assert set(NeuronMask(model, lambda: model(ROWS)).sites) == {"0.weight", "2.weight"}


@pytest.mark.parametrize("kind", [NeuronMask, SpectralShift])
def test_tied_table_with_a_padding_row_is_no_hidden_reader(kind):
    """Lookups give the padding row no gradient, so that gradients alone would speak for a reader past the layer."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 4)
            self.table.padding_idx = 0  # afterwards, so that its row is not zero
            self.out = nn.Linear(4, 6, bias=False)
            self.out.weight = self.table.weight

        def forward(self, tokens):
            return self.out(self.table(tokens)).mean(1)

    model = Tied().double().eval()
    tokens = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 0]])
    assert "table.weight" in kind(model, lambda: model(tokens), embeddings=True).sites
