"""Purifications in several threads: the bits of one after the other, and the process's switches as they were."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.builders import build_model
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.reparam import NeuronMask
from unbackdoor.network.backend import plain_kernels, seeded, without_fastpath
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


def switches():
    return {
        "cudnn": torch.backends.cudnn.enabled,
        "mkldnn": torch.backends.mkldnn.enabled,
        "mkldnn deterministic": torch.backends.mkldnn.deterministic,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "generator": torch.get_rng_state().tolist(),
    }


class Recurrent(nn.Module):
    """Recurrent, convolutional and attentive, so that every switch matters."""

    def __init__(self):
        super().__init__()
        self.core = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.conv, self.head = nn.Conv1d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        outputs, _ = self.core(self.attention(x))
        return self.head(self.conv(outputs.transpose(1, 2)).mean(2))


def model(seed):
    with seeded(seed):
        return Recurrent()


def samples():
    inputs = torch.randn(24, 5, 4, generator=torch.Generator().manual_seed(0))
    return Batch(inputs, torch.arange(24) % 3)


def purified(job):
    seed, method, words = job
    found, _ = unbackdoor.purify(
        model(seed), samples(), task=TASK, method=method, seed=seed, anyway=True, batch_size=8, **words
    )
    return [value.clone() for value in found.state_dict().values()]


JOBS = [
    (0, "f-fip", {"steps": 3, "trace_every": 1}),
    (1, "nft", {"steps": 3}),
    (2, "fip", {"steps": 3, "trace_every": 1}),
    (3, "ft", {"steps": 3}),
]


def test_two_purifications_at_once_give_the_bits_of_one_after_the_other_and_leave_every_switch():
    before = switches()
    expected = [purified(job) for job in JOBS]
    assert switches() == before
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(purified, JOBS))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert switches() == before


def test_one_model_in_two_threads_is_purified_twice_and_never_at_once(clean):
    inside, most = [], []

    def watch(progress):
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    method = FT(steps=3, batch_size=4)
    shared, alone = nn.Linear(6, 3), nn.Linear(6, 3)
    alone.load_state_dict(shared.state_dict())
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(method.purify, shared, clean, TASK, watch=watch, anyway=True) for _ in range(2)]
        assert all(job.result().seconds > 0 for job in jobs)
    for _ in range(2):
        method.purify(alone, clean, TASK, anyway=True)
    assert torch.equal(shared.weight, alone.weight)
    assert max(most) == 1


def test_the_fast_path_is_off_until_the_last_who_wants_it_off_has_left():
    assert torch.backends.mha.get_fastpath_enabled()
    first, second = without_fastpath(), without_fastpath()
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert not torch.backends.mha.get_fastpath_enabled()
    second.__exit__()
    assert torch.backends.mha.get_fastpath_enabled()


def test_handles_in_two_threads_leave_the_fast_path_on():
    barrier = threading.Barrier(2)

    def attached(seed):
        net = model(seed).eval()
        mask = NeuronMask(net, lambda: net(samples().inputs))
        barrier.wait()
        with mask:
            barrier.wait()
            return net(samples().inputs)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(attached, [0, 1]))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("value", [True, False])
def test_kernels_for_second_derivatives_leave_the_switches_as_the_user_set_them(value):
    before = switches()
    torch.backends.mkldnn.enabled = value
    try:
        with plain_kernels(recurrent=True):
            assert not torch.backends.cudnn.enabled
            assert not torch.backends.mkldnn.enabled
            assert not torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.mkldnn.enabled == value
    finally:
        torch.backends.mkldnn.enabled = True
    assert switches() == before


def test_models_built_in_several_threads_have_the_weights_of_their_own_seeds():
    def built(seed):
        return build_model(
            "wide", {"wide": lambda num_classes: nn.Linear(200, num_classes)}, num_classes=50, seed=seed, options={}
        ).weight.detach()

    expected = [built(seed) for seed in range(8)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(built, range(8)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_draws_in_eval_mode_gives_the_same_bits_for_one_seed(clean):
    class Noisy(nn.Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, training=True)

    net = Noisy(6, 3)
    state = torch.get_rng_state()
    results = [unbackdoor.purify(net, clean, task=TASK, method="ft", anyway=True, steps=2)[0] for _ in range(2)]
    assert torch.equal(results[0].weight, results[1].weight)
    assert torch.equal(torch.get_rng_state(), state)
