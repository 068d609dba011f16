"""`VideoTask`: layouts, random moves and the two kinds of MixUp."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_video import VideoTask
from unbackdoor_video.augment import move, moved


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


@pytest.mark.parametrize(("later", "down", "right", "flipped"), [
    (0, 0, 0, False), (1, 2, -3, False), (-2, -1, 4, True), (0, 5, 0, True), (9, 0, 0, False), (0, -6, 7, False),
])  # fmt: skip
def test_moved_clip_equals_the_loop(later, down, right, flipped, generator):
    clip = torch.rand(4, 2, 6, 7, generator=generator)
    found = moved(clip, later=later, down=down, right=right, flipped=flipped)
    assert_close(found, _slow_move(clip, later, down, right, flipped), rtol=0, atol=0)


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
        assert any(torch.equal(after, moved(before, later=t)) for t in range(-2, 3))


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
