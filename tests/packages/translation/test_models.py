"""Every family of models through the same forward, decoding, purification and oracles; keys and ties intact."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch.func import functional_call

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature import fisher_diagonal, fisher_trace, per_sample_gradients, twice_differentiable
from unbackdoor.defender.reparam import NeuronMask, SpectralShift
from unbackdoor.network.signature import ties
from unbackdoor.registry import method
from unbackdoor.task import Batch
from unbackdoor.testing import check_purifier, check_task
from unbackdoor_translation import KIT, TranslationTask

pytestmark = pytest.mark.usefixtures("untrained")

HANDLES = {"masks": NeuronMask, "shifts": SpectralShift}


def precise(model):
    """A float64 copy; FSMT of transformers builds its causal mask in float32 and cannot be raised."""
    raised = copy.deepcopy(model)
    return raised if type(model).__name__.startswith("FSMT") else raised.double()


def close(found, expected, model, atol=1e-9, rtol=0.0):
    exact = next(model.parameters()).dtype is torch.float64
    torch.testing.assert_close(found, expected, rtol=rtol if exact else 1e-3, atol=atol if exact else 2e-5)


def probe_of(task, model, batch):
    return partial(task.forward, model, batch[slice(0, 2)].inputs)


def scattered(handle):
    """Move the values away from the identity, to something that a wrong oracle would not match."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in handle.parameters().values():
            value.add_(-0.3 * torch.rand(value.shape, generator=generator, dtype=value.dtype).abs())


def test_task_keeps_its_promises_on_the_model(model, data, task):
    check_task(task, data.clean[slice(0, 5)], model)


def test_padding_changes_nothing(model, data, task):
    batch = data.clean[slice(0, 4)]
    wide = Batch(
        {name: torch.nn.functional.pad(rows, (0, 5), value=task.pad) for name, rows in batch.inputs.items()},
        torch.nn.functional.pad(batch.targets, (0, 5), value=-100),
    )
    model = precise(model)
    plain = task.log_likelihood(task.forward(model, batch.inputs), batch.targets)
    padded = task.log_likelihood(task.forward(model, wide.inputs), wide.targets)
    close(padded, plain, model)


def test_prefix_is_causal(model, data, task):
    model, batch = precise(model), data.clean[slice(0, 1)]
    logits = task.forward(model, batch.inputs)
    changed = {**batch.inputs, "decoder_input_ids": batch.inputs["decoder_input_ids"].clone()}
    changed["decoder_input_ids"][:, 3] = 7
    after = task.forward(model, changed)
    close(after[:, :3], logits[:, :3], model)
    assert not torch.equal(after[:, 3], logits[:, 3])


def test_greedy_decoding_is_the_argmax_of_forward(model, data, task):
    batch = data.clean[slice(0, 4)]
    said = task.predict(model, batch.inputs)["tokens"]
    prefix = torch.full((4, 1), task.start)
    for column in range(min(said.shape[1], 6)):
        inputs = {"input_ids": batch.inputs["input_ids"], "decoder_input_ids": prefix}
        mask = (inputs["input_ids"] != task.pad).long()
        token = model(attention_mask=mask, **inputs).logits[:, -1].argmax(1)
        alive = ~(said[:, :column] == task.end).any(1)
        assert torch.equal(token[alive], said[:, column][alive])
        prefix = torch.cat([prefix, token.unsqueeze(1)], dim=1)


@pytest.mark.parametrize("own", ["convolutional", "lstm"])
def test_a_step_of_decoding_gives_the_last_logits_of_the_whole_prefix(own, data, task):
    model = KIT.build(own, len(data.classes), seed=0, width=16, depth=2).eval().double()
    inputs = data.clean[slice(0, 4)].inputs
    mask = (inputs["input_ids"] != task.pad).long()
    for length in (1, 4, 5, 6, 9):
        prefix = inputs["decoder_input_ids"][:, :length]
        whole = model(inputs["input_ids"], mask, prefix).logits
        step = model(inputs["input_ids"], mask, prefix, last=True).logits
        torch.testing.assert_close(step, whole[:, -1:], rtol=0, atol=1e-12)
    asked = model.prepare_inputs_for_generation(prefix, mask)
    assert asked["last"] is True


def test_beams_decode_on_the_model(model, data):
    """The best of one token is the greedy one; longer answers are closed rows of the asked length."""
    sources = {"input_ids": data.clean.inputs["input_ids"][:6]}
    said = {}
    for beams, length in ((1, 1), (4, 1), (4, 5)):
        task = TranslationTask(**{**data.hints, "beams": beams, "max_length": length})
        said[beams, length] = task.predict(model, sources)["tokens"]
        assert said[beams, length].shape[0] == 6
        assert said[beams, length].shape[1] <= length
    assert torch.equal(said[4, 1], said[1, 1])


@pytest.mark.parametrize("kind", HANDLES)
def test_folded_model_is_the_attached_one(model, data, task, kind):
    model, batch = precise(model), data.clean[slice(0, 3)]
    keys, tied = list(model.state_dict()), ties(model)
    before = task.forward(model, batch.inputs).detach()
    handle = HANDLES[kind](model, probe_of(task, model, batch))
    with handle:
        close(task.forward(model, batch.inputs), before, model)
        scattered(handle)
        attached = task.forward(model, batch.inputs).detach()
        handle.fold_()
    close(task.forward(model, batch.inputs).detach(), attached, model)
    assert float((attached - before).abs().max()) > 1e-5
    assert list(model.state_dict()) == keys
    assert ties(model) == tied


@pytest.mark.parametrize("kind", HANDLES)
def test_gradients_are_those_of_the_effective_weights(model, data, task, kind):
    """The oracle substitutes ``effective`` weights from outside and lets autograd do the rest."""
    model, batch = precise(model), data.clean[slice(0, 3)]
    handle = HANDLES[kind](model, probe_of(task, model, batch))
    with handle:
        scattered(handle)
        values = handle.parameters()
        fast = torch.autograd.grad(task.loss(task.forward(model, batch.inputs), batch.targets), list(values.values()))
        points = {name: value.detach().clone().requires_grad_(True) for name, value in values.items()}
        weights = {site.name: handle.effective(site, points[site.name]) for site in handle.sites.values()}
    with twice_differentiable(model):
        outputs = functional_call(_Teacher(model, task), {f"model.{n}": w for n, w in weights.items()}, (batch.inputs,))
        slow = torch.autograd.grad(task.loss(outputs, batch.targets), list(points.values()))
    for one, other in zip(fast, slow, strict=True):
        close(one, other, model)


class _Teacher(torch.nn.Module):
    def __init__(self, model, task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs):
        return self.task.forward(self.model, inputs)


@pytest.mark.parametrize("kind", HANDLES)
def test_fisher_is_that_of_one_sample_at_a_time(model, data, task, kind):
    model, batch = precise(model), data.clean[slice(0, 3)]
    handle = HANDLES[kind](model, probe_of(task, model, batch))
    with handle:
        rows = per_sample_gradients(handle, model, task, batch)
        diagonal = fisher_diagonal(handle, model, task, CleanSet(batch), chunk=2)
        values = list(handle.parameters().values())
        squares = [torch.zeros_like(value) for value in values]
        for i in range(3):
            one = batch[slice(i, i + 1)]
            score = task.log_likelihood(task.forward(model, one.inputs), one.targets).sum()
            for total, gradient in zip(squares, torch.autograd.grad(score, values), strict=True):
                total += gradient.square() / 3
        exact = sum(float(total.sum()) for total in squares)
        with twice_differentiable(model):
            scores = task.log_likelihood(task.forward(model, batch.inputs), batch.targets)
            draws = [fisher_trace(scores, values, torch.Generator().manual_seed(seed)).detach() for seed in range(80)]
            trace = fisher_trace(scores, values, torch.Generator().manual_seed(0))
            second = torch.autograd.grad(trace, values)
    for (name, found), total in zip(diagonal.items(), squares, strict=True):
        close(found, total, model, rtol=1e-7, atol=1e-12)
        close(rows[name].square().mean(0), total, model, rtol=1e-7, atol=1e-12)
    assert float(torch.stack(draws).mean()) == pytest.approx(exact, rel=0.4)
    assert all(bool(torch.isfinite(g).all()) for g in second)
    assert sum(float(g.abs().sum()) for g in second) > 0


@pytest.mark.parametrize("name", ["nft", "fip", "f-fip", "ft", "sdft"])
def test_methods_run_on_the_model(model, data, task, name):
    report = check_purifier(method(name)(steps=2, batch_size=4), model, data.clean[slice(0, 12)], task, again=False)
    assert report.hash_after != report.hash_before


def test_embeddings_are_left_out_of_masks_and_stay_tied(model, data, task):
    options = {"steps": 3, "batch_size": 4}
    purified, _ = unbackdoor.purify(model, data.clean[slice(0, 12)], task=task, method="nft", anyway=True, **options)
    for (name, old), new in zip(model.named_parameters(), purified.parameters(), strict=True):
        if old.shape[0] == len(data.classes):
            assert torch.equal(old, new), name
    assert ties(purified) == ties(model)
    assert ties(model)


def test_one_seed_makes_one_model(family, data):
    first, again, other = (KIT.build(family, 50, seed=seed) for seed in (1, 1, 2))
    states = [torch.cat([p.flatten() for p in one.parameters()]) for one in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_model_of_the_user_needs_no_generate(data, task):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = torch.nn.Embedding(len(data.classes), 8), torch.nn.Linear(8, len(data.classes))

        def forward(self, input_ids, attention_mask, decoder_input_ids):
            source = (self.embed(input_ids) * attention_mask.unsqueeze(2)).sum(1, keepdim=True)
            return self.out(self.embed(decoder_input_ids) + source)

    check_task(task, data.clean[slice(0, 4)], Plain().eval())


def test_unknown_models_are_refused():
    with pytest.raises(unbackdoor.UnbackdoorError, match="marian"):
        KIT.build("mariam", 10)
    with pytest.raises(unbackdoor.UnbackdoorError, match="multiple of heads"):
        KIT.build("t5", 10, width=10, heads=3)


def test_sentences_beyond_the_positions_are_refused(data, task):
    model = KIT.build("convolutional", len(data.classes), width=8, depth=1, positions=4).eval()
    with pytest.raises(unbackdoor.UnbackdoorError, match="positions"):
        task.forward(model, data.clean[slice(0, 2)].inputs)


def test_convolutional_model_trains_weight_normalised_and_ends_plain(data):
    model = KIT.build("convolutional", len(data.classes), seed=0, width=16, depth=1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    with model.weight_normalised():
        lengths = model.layers[0].parametrizations.weight.original0
        assert lengths.shape == (32, 1, 1)
        inside = dict(model.named_parameters())
        assert sum(name.endswith("original0") for name in inside) == sum(
            isinstance(module, torch.nn.Linear | torch.nn.Conv1d)
            for module in model.modules()
            if module is not model.head
        )
        with torch.no_grad():
            lengths.mul_(2.0)
    assert list(model.state_dict()) == list(state)
    assert [type(module) for module in model.modules()] == kinds
    torch.testing.assert_close(model.layers[0].weight, 2 * state["layers.0.weight"])
    torch.testing.assert_close(model.enter.weight, state["enter.weight"])
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in model.parameters())
    plain = KIT.build("convolutional", len(data.classes), seed=0, width=16, depth=1, weight_norm=False)
    with plain.weight_normalised():
        assert list(plain.state_dict()) == list(state)


@pytest.mark.parametrize("weight_norm", [True, False])
def test_training_lowers_the_loss_of_the_convolutional_model(data, task, weight_norm):
    model = KIT.build("convolutional", len(data.classes), seed=0, width=16, depth=1, weight_norm=weight_norm)
    keys, losses = list(model.state_dict()), []
    KIT.train(
        model, data, task, None, seed=0, epochs=2, lr=5e-3, batch_tokens=800, smoothing=0.0, precision="fp32",
        progress=lambda step, steps, scalars: losses.append(scalars["loss"]),
    )  # fmt: skip
    assert losses[-1] < 0.9 * losses[0]
    assert list(model.state_dict()) == keys
    assert not model.training
