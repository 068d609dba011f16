"""`VideoTask`: layouts, random moves and the two kinds of MixUp."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.clean_loss import CleanLoss
from unbackdoor.defender.purifier import Run
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_video import VideoTask, build
from unbackdoor_video.augment import frame_runs, later, move


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


def test_runs_of_frames_are_whole_or_neighbours(generator):
    runs = frame_runs(2000, 6, generator, whole=0.75)
    lengths = runs.sum(1)
    assert int(lengths.min()) == 1
    changes = (runs[:, 1:] != runs[:, :-1]).sum(1)
    starts_or_ends = runs[:, 0].int() + runs[:, -1].int()
    assert torch.equal(changes, 2 - starts_or_ends), "one run, without a gap"
    share = float((lengths == 6).float().mean())
    assert share == pytest.approx(0.75 + 0.25 / 6, abs=0.03)
    for frame in range(6):
        assert bool(runs[lengths < 6][:, frame].any())
        assert not bool(runs[lengths < 6][:, frame].all())
    assert bool(frame_runs(50, 6, generator, whole=1.0).all())


def test_disturbance_is_the_same_in_all_frames_that_it_covers(generator):
    clips = torch.full((400, 5, 3, 12, 12), 0.5)
    kept = clips.clone()
    found = VideoTask(disturbed=1.0, whole=0.5).disturb(clips, generator)
    assert torch.equal(clips, kept), "nothing changes in place"
    assert found.shape == clips.shape
    assert 0 <= float(found.min()) < 0.1 < 0.9 < float(found.max()) <= 1
    changed = (found != clips).flatten(2).any(2)
    assert 0.9 < float(changed.any(1).float().mean()) <= 1
    partly = changed.any(1) & ~changed.all(1)
    assert 0.25 < float(partly.float().mean()) < 0.55
    for clip, covered in zip(found, changed, strict=True):
        some = clip[covered]
        assert_close(some, some[:1].expand_as(some), rtol=0, atol=0)


def test_disturbance_of_clips_reaches_over_the_border(generator):
    clips = torch.full((4000, 1, 1, 16, 16), 0.5)
    found = VideoTask(disturbed=1.0, whole=1.0).disturb(clips, generator)
    touched = ((found - clips).abs() > 0.2).float().mean(0)[0, 0]
    assert float(touched[-1, -1]) > 0.6 * float(touched[8, 8])


def test_disturbance_comes_from_the_generator_alone(samples):
    task = VideoTask()
    before = torch.random.get_rng_state()
    first, again, other = (task.disturb(samples.inputs, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert VideoTask(disturbed=0.0).disturb(samples.inputs, torch.Generator()) is samples.inputs


def test_disturbance_of_bytes_gives_floats_and_normalised_clips_keep_their_range(samples, generator):
    levels = (samples.inputs * 255).to(torch.uint8)
    found = VideoTask(disturbed=1.0).disturb(levels, generator)
    assert found.is_floating_point()
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    normalised = samples.inputs * 4 - 2
    low, high = float(normalised.min()), float(normalised.max())
    found = VideoTask(disturbed=1.0).disturb(normalised, generator)
    assert low - 1e-5 <= float(found.min()) < -1
    assert 1 < float(found.max()) <= high + 1e-5


def test_teacher_does_not_read_the_disturbance(samples, monkeypatch):
    task = VideoTask(crop=0, disturbed=1.0, searched=0)
    model = build("cnn-lstm", 4, in_channels=1, width=3, depth=2, hidden=5).eval()
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), model)
    read: dict[int, list[Tensor]] = {}
    forward = VideoTask.forward

    def watched(self, given, inputs):
        read.setdefault(id(given), []).extend(inputs)
        return forward(self, given, inputs)

    monkeypatch.setattr(VideoTask, "forward", watched)
    loss = CleanLoss.of(model, task, CleanSet(samples), run, distil=1.0, mixup=0.0, disturb=True)
    drawn, objective = loss.prepare(2, 12, 0.0)
    read.pop(id(model), None)
    assert float(objective(next(drawn.batches(12, run.generator))).detach()) > 0
    known = list(samples.inputs)
    assert all(any(torch.equal(clip, one) for one in known) for clip in read[id(loss.teacher.model)])
    tuned = [clip for clip in read[id(model)] if any(torch.equal(clip, one) for one in known)]
    assert len(read[id(model)]) == 12
    assert len(tuned) < 4


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
    {"shift": -1}, {"chunk": 0}, {"whole": 1.5}, {"whole": -0.1}, {"disturbed": 2.0},
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
