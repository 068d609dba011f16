"""Models of clips, and the LSTM in the hands of what purifies: masks, shifts and Tr(F) against loops in float64."""

from __future__ import annotations

import importlib.util
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from unbackdoor.defender.curvature.fisher import fisher_trace
from unbackdoor.defender.curvature.per_sample import per_sample_gradients, twice_differentiable
from unbackdoor.defender.reparam import NeuronMask, SpectralShift
from unbackdoor.errors import BadOption, UnknownName
from unbackdoor_video import VideoTask, build

EXACT = {"rtol": 0, "atol": 1e-10}
GATES = ("i", "f", "g", "o")


# -------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(("name", "options", "shape"), [
    ("cnn-lstm", {"in_channels": 1, "width": 2}, (2, 3, 1, 12, 12)),
    ("cnn-lstm", {"width": 2, "pool": "last", "bidirectional": True, "layers": 2, "grid": 3}, (2, 3, 3, 16, 14)),
    ("resnet18-lstm", {"small": True, "hidden": 8}, (2, 2, 1, 16, 16)),
    ("torchvision:r3d_18", {}, (1, 4, 3, 16, 16)),
])  # fmt: skip
def test_models_answer_with_a_logit_for_each_class(name, options, shape):
    model = build(name, num_classes=5, **options).eval()
    with torch.no_grad():
        assert model(torch.rand(shape)).shape == (shape[0], 5)


def test_cnn_lstm_equals_a_loop_over_frames_and_gates(model, clips):
    """The LSTM's equations written out, one frame and one gate at a time."""
    x = clips.double()[:2]
    weights = {name: value.detach() for name, value in model.lstm.named_parameters()}
    expected = []
    for clip in x:
        hidden = cell = torch.zeros(5, dtype=torch.float64)
        states = []
        for frame in clip:
            features = model.encoder(frame[None])[0].detach()
            rows = weights["weight_ih_l0"] @ features + weights["weight_hh_l0"] @ hidden
            rows = rows + weights["bias_ih_l0"] + weights["bias_hh_l0"]
            gate = dict(zip(GATES, rows.split(5), strict=True))
            cell = gate["f"].sigmoid() * cell + gate["i"].sigmoid() * gate["g"].tanh()
            hidden = gate["o"].sigmoid() * cell.tanh()
            states.append(hidden)
        expected.append(model.head(torch.stack(states).mean(0)))
    assert_close(model(x), torch.stack(expected), **EXACT)


def test_library_network_takes_clips_and_keeps_its_names_of_weights():
    from torchvision.models.video import mc3_18

    model, plain = build("torchvision:mc3_18", num_classes=3).eval(), mc3_18(num_classes=3).eval()
    assert type(model) is type(plain)
    plain.load_state_dict(model.state_dict())
    clips = torch.rand(1, 4, 3, 16, 16)
    with torch.no_grad():
        assert_close(VideoTask().forward(model, clips), VideoTask(layout="channels").forward(plain, clips))
        assert_close(model(clips[:, :, :1]), model(clips[:, :, :1].expand(-1, -1, 3, -1, -1)))


def test_resnet_lstm_begins_with_given_weights(tmp_path):
    from torchvision.models import resnet18

    given = resnet18()
    torch.save(given.state_dict(), tmp_path / "resnet18.pth")
    model = build("resnet18-lstm", num_classes=3, weights=str(tmp_path / "resnet18.pth"))
    assert torch.equal(model.encoder.network.layer4[0].conv1.weight, given.layer4[0].conv1.weight)
    with pytest.raises(BadOption, match="resnet34"):
        build("resnet34-lstm", num_classes=3, weights=str(tmp_path / "resnet18.pth"))
    with pytest.raises(BadOption, match="small"):
        build("resnet18-lstm", num_classes=3, weights=str(tmp_path / "resnet18.pth"), small=True)


def test_names_that_are_not_there_are_refused():
    with pytest.raises(UnknownName, match="r3d_18"):
        build("torchvision:r3d_19")
    with pytest.raises(UnknownName):
        build("cnn-lstn")
    with pytest.raises(BadOption, match="pool"):
        build("cnn-lstm", pool="max")


@pytest.mark.skipif(importlib.util.find_spec("pytorchvideo") is not None, reason="pytorchvideo is installed")
def test_pytorchvideo_says_how_it_is_installed():
    with pytest.raises(UnknownName, match=r"unbackdoor-video\[pytorchvideo\]"):
        build("pytorchvideo:slow_r50")


@pytest.mark.skipif(importlib.util.find_spec("pytorchvideo") is None, reason="needs pytorchvideo: nox -s pytorchvideo")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")  # pytorchvideo's
@pytest.mark.parametrize(("name", "shape"), [("slow_r50", (1, 8, 3, 224, 224)), ("x3d_xs", (1, 4, 1, 160, 160))])
def test_pytorchvideo_networks_take_clips_and_masks(name, shape):
    model = build(f"pytorchvideo:{name}", num_classes=3).eval()
    clips = torch.rand(shape)
    with torch.no_grad():
        expected = VideoTask().forward(model, clips)
        assert expected.shape == (1, 3)
        with NeuronMask(model, lambda: model(clips)) as mask:
            assert len(mask.sites) > 20
            assert_close(model(clips), expected, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------- purifying the LSTM


def draws(handle, seed=2):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in handle.parameters().values():
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("gates", ["each", "unit"])
def test_masks_of_the_lstm_equal_rows_multiplied_in_a_loop(model, clips, gates):
    x = clips.double()
    mask = NeuronMask(model, partial(model, x), gates=gates)
    assert {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"} <= set(mask.sites)
    sizes = {name: len(value) for name, value in mask.parameters().items()}
    assert sizes["lstm.weight_hh_l0"] == (20 if gates == "each" else 5)
    draws(mask)
    changed = {}
    for name, value in mask.parameters().items():
        weight = model.get_parameter(name).detach()
        rows = [value.detach()[row % len(value)] * weight[row] for row in range(len(weight))]
        changed[name] = torch.stack(rows)
    expected = functional_call(model, changed, (x,)).detach()
    with mask:
        assert_close(model(x).detach(), expected, **EXACT)
        mask.fold_()
    assert_close(model(x).detach(), expected, **EXACT)


def test_shifts_of_the_lstm_are_those_of_each_gate_matrix(model, clips):
    x = clips.double()
    shift = SpectralShift(model, partial(model, x))
    assert shift.parameters()["lstm.weight_hh_l0"].shape == (4, 5)
    draws(shift)
    changed = {}
    for name, value in shift.parameters().items():
        weight = model.get_parameter(name).detach()
        groups = value.shape[0]
        parts = []
        for part, delta in zip(weight.flatten(1).chunk(groups), value.detach(), strict=True):
            left, singular, right = torch.linalg.svd(part, full_matrices=False)
            parts.append(left @ torch.diag((singular + delta).relu()) @ right)
        changed[name] = torch.cat(parts).view_as(weight)
    expected = functional_call(model, changed, (x,)).detach()
    with shift:
        assert_close(model(x).detach(), expected, **EXACT)
        shift.fold_()
    assert_close(model(x).detach(), expected, **EXACT)


@pytest.mark.parametrize("handle", [NeuronMask, SpectralShift])
def test_trace_of_the_fisher_information_is_the_mean_of_squared_gradients(model, samples, handle):
    """Over all signs of 3 clips the estimate's mean is exact; its own gradient is that of finite differences."""
    task = VideoTask()
    batch = samples[slice(0, 3)]
    batch = type(batch)(batch.inputs.double(), batch.targets)
    attached = handle(model, partial(task.forward, model, batch.inputs))
    with attached:
        values = list(attached.parameters().values())
        rows = per_sample_gradients(attached, model, task, batch)
        slow = [
            torch.autograd.grad(
                task.log_likelihood(task.forward(model, batch.inputs[n : n + 1]), batch.targets[n : n + 1]).sum(),
                values,
            )
            for n in range(3)
        ]
        for place, row in enumerate(rows.values()):
            assert_close(row, torch.stack([grads[place] for grads in slow]), **EXACT)
        exact = sum(float(row.square().sum()) for row in rows.values()) / 3

        def trace(signs):
            scores = task.log_likelihood(task.forward(model, batch.inputs), batch.targets)
            grads = torch.autograd.grad((signs * scores).sum(), values, create_graph=True)
            return sum(g.square().sum() for g in grads) / 3

        signs = [torch.tensor([1.0, a, b], dtype=torch.float64) for a in (-1, 1) for b in (-1, 1)]
        with twice_differentiable(model):
            assert sum(float(trace(s).detach()) for s in signs) / 4 == pytest.approx(exact, rel=1e-9)
            scores = task.log_likelihood(task.forward(model, batch.inputs), batch.targets)
            found = fisher_trace(scores, values, torch.Generator().manual_seed(0))
            assert any(float(found.detach()) == pytest.approx(float(trace(s).detach()), rel=1e-9) for s in signs)
            index = list(attached.parameters()).index("lstm.weight_hh_l0")
            slope = torch.autograd.grad(trace(signs[0]), values)[index]
            value, step = values[index], 1e-5
            with torch.no_grad():
                value.view(-1)[0] += step
            up = float(trace(signs[0]).detach())
            with torch.no_grad():
                value.view(-1)[0] -= 2 * step
            down = float(trace(signs[0]).detach())
        assert float(slope.view(-1)[0]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)


def test_lstm_and_its_encoder_are_the_sites_in_order_of_execution(model, clips):
    mask = NeuronMask(model, partial(model, clips.double()))
    depths = {name.split(".")[0]: site.depth for name, site in mask.sites.items()}
    assert depths["encoder"] < depths["lstm"] < depths["head"]
    assert isinstance(model.lstm, nn.LSTM)
