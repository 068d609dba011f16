"""Masks on the rows of embedding tables and shifts of their lengths, alone and tied, against plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbackdoor.defender.reparam import NeuronMask, SpectralShift
from unbackdoor.network.signature import ties


class Tied(nn.Module):
    """Tokens in, logits out of the same table; a third owner of it is never called."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(7, 4, padding_idx=0)
        self.embed, self.inner, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.embed.weight = self.head.weight = self.shared.weight

    def forward(self, tokens):
        return self.head(self.inner(self.embed(tokens)).relu())


class Positions(nn.Embedding):
    """A table that is asked for a length."""

    def forward(self, length):
        return super().forward(torch.arange(length))


TOKENS = torch.tensor([[1, 2, 2], [6, 0, 1]])


@pytest.fixture
def tied():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tied().double().eval()


def masks(handle):
    generator = torch.Generator().manual_seed(1)
    for value in handle.parameters().values():
        value.data.uniform_(0.1, 0.9, generator=generator)


def test_masked_rows_are_the_rows_of_the_scaled_table(tied):
    with NeuronMask(tied, lambda: tied(TOKENS), embeddings=True) as mask:
        assert set(mask.parameters()) == {"embed.weight", "inner.weight"}
        masks(mask)
        scaled, inner = (mask.parameters()[name].detach() for name in ("embed.weight", "inner.weight"))
        attached = tied(TOKENS)
        table = mask.sites["embed.weight"].weight.detach() * scaled[:, None]
        weight = mask.sites["inner.weight"].weight.detach() * inner[:, None]
        expected = (table[TOKENS] @ weight.T + tied.inner.bias).relu() @ table.T
        torch.testing.assert_close(attached, expected, rtol=0, atol=1e-12)
        slopes = torch.autograd.grad(attached.square().sum(), list(mask.parameters().values()))
        assert all(bool(slope.abs().sum() > 0) for slope in slopes)
        mask.fold_()
    torch.testing.assert_close(tied(TOKENS), attached.detach(), rtol=0, atol=1e-12)
    assert tied.head.weight is tied.embed.weight is tied.shared.weight
    assert len(ties(tied)) == 1
    assert type(tied.embed) is nn.Embedding


def test_gradient_of_row_masks_is_that_of_finite_differences(tied):
    with NeuronMask(tied, lambda: tied(TOKENS), embeddings=True) as mask:
        masks(mask)
        values = mask.parameters()

        def loss(rows):
            with mask.substituted({"embed.weight": rows}):
                return tied(TOKENS).square().sum()

        assert torch.autograd.gradcheck(loss, (values["embed.weight"].detach().clone().requires_grad_(),))


def test_rows_that_are_not_looked_up_have_no_gradient():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).eval()
    with NeuronMask(model, lambda: model(TOKENS), embeddings=True) as mask:
        (slope,) = torch.autograd.grad(model(TOKENS).square().sum(), [mask.parameters()["0.weight"]])
    used = torch.zeros(9, dtype=torch.bool)
    used[TOKENS.flatten()] = True
    assert torch.equal(slope != 0, used)


def test_a_table_with_a_forward_of_its_own_is_masked_too():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions, self.inner = Positions(5, 4), nn.Linear(4, 2)

        def forward(self, tokens):
            return self.inner(self.positions(tokens.shape[1]))

    model = Model().eval()
    with NeuronMask(model, lambda: model(TOKENS), embeddings=True) as mask:
        masks(mask)
        attached = model(TOKENS).detach()
        mask.fold_()
    torch.testing.assert_close(model(TOKENS), attached)


@pytest.mark.parametrize("handle", [NeuronMask, SpectralShift])
def test_tables_and_what_is_tied_to_them_are_left_out_unless_asked_for(tied, handle):
    made = handle(tied, lambda: tied(TOKENS))
    assert set(made.parameters()) == {"inner.weight"}
    assert any("tied" in notice for notice in made.notices)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"sparse": True}])
def test_tables_that_pytorch_writes_into_are_left_out(options):
    model = nn.Sequential(nn.Embedding(9, 4, **options), nn.Linear(4, 2)).eval()
    made = NeuronMask(model, lambda: model(TOKENS), embeddings=True)
    assert set(made.parameters()) == {"1.weight"}


@pytest.mark.parametrize("relative", [False, True])
def test_shifted_rows_are_the_rows_at_other_lengths(tied, relative):
    with torch.no_grad():
        tied.shared.weight[0] = 0  # as the row of padding is
    with SpectralShift(tied, lambda: tied(TOKENS), embeddings=True, relative=relative) as shift:
        assert {name: tuple(value.shape) for name, value in shift.parameters().items()} == {
            "embed.weight": (7, 1),
            "inner.weight": (1, 4),
        }
        torch.testing.assert_close(tied(TOKENS), _plain(tied, tied.shared.weight), rtol=0, atol=1e-12)
        rows = shift.parameters()["embed.weight"]
        rows.data.uniform_(-1.2, 0.9, generator=torch.Generator().manual_seed(1))
        given = shift.sites["embed.weight"].weight.detach()
        lengths = given.norm(dim=1)
        wanted = lengths * (1 + rows.detach()[:, 0]) if relative else lengths + rows.detach()[:, 0]
        table = torch.nn.functional.normalize(given) * wanted.clamp(min=0)[:, None]
        attached = tied(TOKENS)
        used = torch.tensor([[1, 2, 2], [6, 5, 1]])  # the direction of a row of length 0 is nobody's
        torch.testing.assert_close(tied(used)[..., 1:], _plain(tied, table, used)[..., 1:], rtol=0, atol=1e-12)
        slopes = torch.autograd.grad(attached.square().sum(), list(shift.parameters().values()))
        assert all(bool(slope.abs().sum() > 0) for slope in slopes)
        shift.fold_()
    torch.testing.assert_close(tied(TOKENS), attached.detach(), rtol=0, atol=1e-12)
    assert tied.head.weight is tied.embed.weight is tied.shared.weight
    assert type(tied.embed) is nn.Embedding


def test_gradient_of_shifted_rows_is_that_of_finite_differences(tied):
    with SpectralShift(tied, lambda: tied(TOKENS), embeddings=True, relative=True) as shift:
        rows = 0.3 * torch.rand(7, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

        def loss(values):
            with shift.substituted({"embed.weight": values}):
                return tied(TOKENS).square().sum()

        assert torch.autograd.gradcheck(loss, (rows.requires_grad_(),))
        assert torch.autograd.gradgradcheck(loss, (rows,))


def test_rows_that_are_not_looked_up_stay_at_their_attenuated_length():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).eval()
    given = model[0].weight.detach().clone()
    with SpectralShift(model, lambda: model(TOKENS), embeddings=True, relative=True, floor=0.05) as shift:
        for _ in range(2):
            shift.attenuate_(0.5)
        (slope,) = torch.autograd.grad(model(TOKENS).square().sum(), [shift.parameters()["0.weight"]])
        shift.fold_()
    used = torch.zeros(9, dtype=torch.bool)
    used[TOKENS.flatten()] = True
    assert torch.equal(slope[:, 0] != 0, used)
    torch.testing.assert_close(model[0].weight.detach(), 0.25 * given)


def _plain(tied, table, tokens=TOKENS):
    inner = tied.inner.weight.detach()
    return ((table[tokens] @ inner.T + tied.inner.bias).relu() @ table.T).detach()
