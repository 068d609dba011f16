"""One mask for each weight: effective weights, fold, range, the head."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from unbackdoor.defender.reparam import NeuronMask, WeightMask


def handle(case, **options):
    model, batch = case.model(), case.batch()
    return model, batch, WeightMask(model, partial(model, batch.inputs[:2]), **options)


def test_attached_masks_and_folded_masks_compute_the_same(case):
    model, batch, mask = handle(case)
    generator = torch.Generator().manual_seed(1)
    given = {n: p.detach().clone() for n, p in model.named_parameters()}
    with mask:
        for value in mask.parameters().values():
            value.data = torch.rand(value.shape, generator=generator, dtype=value.dtype)
        attached = model(batch.inputs)
        values = {name: value.detach().clone() for name, value in mask.parameters().items()}
        mask.fold_()
    assert_close(model(batch.inputs), attached)
    now = dict(model.named_parameters())
    for name, value in values.items():
        assert_close(now[name].detach(), given[name] * value)


def test_leaving_without_a_fold_gives_the_model_back(case):
    model, _, mask = handle(case)
    given = {n: p.detach().clone() for n, p in model.named_parameters()}
    with mask, torch.no_grad():
        for value in mask.parameters().values():
            value.zero_()
    assert all(torch.equal(p, given[n]) for n, p in model.named_parameters())


def test_projection_and_size(cases):
    _, _, mask = handle(cases["linear"])
    with torch.no_grad():
        for value in mask.parameters().values():
            value.fill_(-0.5)
            value.view(-1)[0] = 2.0
    assert_close(float(mask.size().detach()), sum(0.5 * (v.numel() - 1) + 2.0 for v in mask.parameters().values()))
    mask.project_()
    assert all(v.min() == 0 and v.max() == 1 for v in mask.parameters().values())


@pytest.mark.parametrize("kind", [WeightMask, NeuronMask])
def test_the_last_layer_is_left_out_where_wanted_and_named(cases, kind):
    case = cases["conv-bn"]
    model = case.model()
    mask = kind(model, partial(model, case.batch().inputs[:2]), head=False)
    assert set(mask.parameters()) == {"core.0.weight", "core.3.weight"}
    assert any("whose neurons are the answers: head.weight" in text for text in mask.notices)
