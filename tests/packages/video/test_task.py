"""`VideoTask`: layouts, random moves and the two kinds of MixUp."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_video import VideoTask
from unbackdoor_video.augment import later, move


class Sums(nn.Module):
    """Logits that tell dimension 1 from dimension 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.sum(dim=(2, 3, 4))


def _slow_move(clip: Tensor, later: int, down: int, right: int, flipped: bool) -> Tensor:
    frames, _, height, width = clip.shape
    out = torch.zeros_like(clip)
    for t in range(frames):
        source = min(max(t - later, 0), frames - 1)
        for i in range(height):
            for j in range(width):
                y, x = i - down, j - right
                if 0 <= y < height and 0 <= x < width:
                    out[t, :, i, j] = clip[source, :, y, width - 1 - x if flipped else x]
    return out


def test_clips_moved_in_space_and_time_equal_the_loop(generator):
    clips = torch.rand(24, 3, 2, 5, 6, generator=generator)
    found = move(clips, generator, crop=1, shift=1, flip=True)
    draws = list(itertools.product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1), (False, True)))
    drawn = []
    for clip, out in zip(clips, found, strict=True):
        fitting = [draw for draw in draws if torch.equal(_slow_move(clip, *draw), out)]
        assert len(fitting) == 1
        drawn += fitting
    for axis in range(4):
        assert {draw[axis] for draw in drawn} == {draw[axis] for draw in draws}


@pytest.mark.parametrize("by", [0, 1, -2, 9, -9])
def test_later_clip_equals_the_loop(by, generator):
    clips = torch.rand(2, 4, 2, 3, 3, generator=generator)
    found = later(clips, torch.tensor([by, 0]))
    assert_close(found[0], _slow_move(clips[0], by, 0, 0, False), rtol=0, atol=0)
    assert_close(found[1], clips[1], rtol=0, atol=0)


def test_move_is_one_for_all_frames_of_a_clip_and_differs_between_clips(generator):
    still = torch.rand(8, 1, 1, 20, 20, generator=generator).expand(8, 5, 1, 20, 20)
    out = move(still, generator, crop=3)
    assert_close(out, out[:, :1].expand_as(out), rtol=0, atol=0)
    assert any(not torch.equal(out[n], still[n]) for n in range(8))
    assert len({tuple(out[n, 0, 0].sum(0).tolist()) for n in range(8)}) > 3


def test_augment_without_options_leaves_small_clips_and_never_flips(samples, generator):
    assert torch.equal(VideoTask().augment(samples, generator, mix=0).inputs, samples.inputs)
    assert VideoTask().flip is False


def test_augment_moves_in_time_with_held_ends(samples, generator):
    batch = VideoTask(crop=0, shift=2).augment(samples, generator, mix=0)
    for before, after in zip(samples.inputs, batch.inputs, strict=True):
        assert any(torch.equal(after, _slow_move(before, t, 0, 0, False)) for t in range(-2, 3))


def test_mixup_has_one_lambda_for_all_frames_of_a_pair(samples):
    batch = VideoTask(crop=0).augment(samples, torch.Generator().manual_seed(3), mix=1.0)
    first, second, share = batch.targets
    assert torch.equal(first, samples.targets)
    pairs = [
        (n, k)
        for n in range(12)
        for k in range(12)
        if samples.targets[k] == second[n]
        and torch.allclose(share[n] * samples.inputs[n] + (1 - share[n]) * samples.inputs[k], batch.inputs[n])
    ]
    assert sorted(n for n, _ in pairs) == list(range(12))


def test_mixup_of_frames_has_a_lambda_for_each_and_targets_by_their_mean(samples):
    samples = replace(samples, inputs=samples.inputs.double())
    batch = VideoTask(crop=0, mixup="frame").augment(samples, torch.Generator().manual_seed(3), mix=1.0)
    _, second, share = batch.targets
    lambdas = torch.empty(12, 4, dtype=torch.float64)
    for n in range(12):
        if torch.allclose(batch.inputs[n], samples.inputs[n]):  # mixed with itself
            lambdas[n] = share[n]
            continue
        for k in (k for k in range(12) if k != n and samples.targets[k] == second[n]):
            span = samples.inputs[n] - samples.inputs[k]
            found = ((batch.inputs[n] - samples.inputs[k]) * span).sum((1, 2, 3)) / span.square().sum((1, 2, 3))
            rebuilt = found.view(-1, 1, 1, 1) * span + samples.inputs[k]
            if torch.allclose(rebuilt, batch.inputs[n], atol=1e-5):
                lambdas[n] = found
                break
        else:
            pytest.fail(f"clip {n} is no mixture of two clips, frame by frame")
    assert_close(lambdas.mean(1), share, rtol=0, atol=1e-6)
    assert float(lambdas.std(1).max()) > 0.1


def test_mixup_keeps_uint8(samples, generator):
    whole = Batch((samples.inputs * 255).to(torch.uint8), samples.targets)
    for kind in ("clip", "frame"):
        assert VideoTask(mixup=kind).augment(whole, generator, mix=1.0).inputs.dtype is torch.uint8


def test_all_frames_of_a_clip_get_the_same_strong_change(generator):
    still = torch.rand(60, 1, 3, 16, 16, generator=generator).expand(60, 5, 3, 16, 16)
    found = VideoTask().strong_augment(still, generator, without={"noise"})
    assert found.shape == still.shape
    assert_close(found, found[:, :1].expand_as(found), rtol=0, atol=1e-6)
    changed = (found != still).flatten(1).any(1)
    assert float(changed.float().mean()) > 0.8
    assert len({tuple(clip.flatten()[:40].tolist()) for clip in (found - still)[changed]}) > 20


def test_strong_changes_of_clips_come_from_the_generator_alone(samples):
    task, before = VideoTask(), torch.random.get_rng_state()
    first, again, other = (
        task.strong_augment(samples.inputs, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_forward_gives_a_model_the_layout_that_it_takes(clips):
    clips = clips.double()[:, :, :, :5]
    by_frame = VideoTask().forward(Sums(), clips)
    by_channel = VideoTask(layout="channels").forward(Sums(), clips)
    assert by_frame.shape == (12, 4)
    assert by_channel.shape == (12, 1)


def test_forward_normalises_each_channel_as_a_loop_does(generator):
    clips = torch.rand(3, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    task = VideoTask(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = clips.clone()
    for channel in range(3):
        expected[:, :, channel] = (clips[:, :, channel] - task.mean[channel]) / task.std[channel]
    assert_close(task.forward(Sums(), clips), expected.sum((2, 3, 4)))


def test_likelihood_equals_the_loop(model, samples):
    task = VideoTask()
    logits = task.forward(model, samples.inputs.double())
    found = task.log_likelihood(logits, samples.targets)
    for row, target, score in zip(logits.tolist(), samples.targets.tolist(), found.tolist(), strict=True):
        assert score == pytest.approx(row[target] - math.log(sum(math.exp(value) for value in row)), abs=1e-12)


def test_predict_in_chunks_is_forward(model, samples):
    task = VideoTask(chunk=5)
    inputs = samples.inputs.double()
    assert_close(task.predict(model, inputs), task.forward(model, inputs), rtol=0, atol=1e-12)


def test_bytes_and_floats_are_the_same_clips(model):
    levels = torch.randint(0, 256, (2, 4, 1, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    task = VideoTask()
    assert_close(task.forward(model, levels), task.forward(model, levels.double() / 255), rtol=0, atol=1e-12)


@pytest.mark.parametrize("words", [
    {"mean": (0.5,)}, {"mean": (0.5,), "std": (0.0,)}, {"layout": "rows"}, {"mixup": "pixel"}, {"crop": -1},
    {"shift": -1}, {"chunk": 0},
])  # fmt: skip
def test_options_that_cannot_be_are_refused(words):
    with pytest.raises(BadOption):
        VideoTask(**words)


def test_inputs_that_are_no_clips_are_refused(model, samples):
    with pytest.raises(BadData, match="frames"):
        VideoTask().forward(model, samples.inputs[:, 0])
    with pytest.raises(BadData, match="int64"):
        VideoTask().forward(model, samples.inputs.long())
    with pytest.raises(BadOption, match="mix is"):
        VideoTask().augment(samples, torch.Generator(), mix=-1)


def test_inspect_tells_of_normalised_pixels(model, samples):
    odd = replace(samples, inputs=samples.inputs.double() * 4 - 2)
    notices = VideoTask().inspect(odd, VideoTask().forward(model, odd.inputs))
    assert any("not within 0 to 1" in text for text in notices)
