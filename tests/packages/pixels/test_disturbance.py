"""What is put over images that a model is tuned on."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.clean_loss import CleanLoss
from unbackdoor.defender.purifier import Run
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor_image.task import ImageTask
from unbackdoor_pixels import disturbance

SIZE = (400, 3, 16, 20)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_disturbance_comes_from_the_generator_alone():
    first = disturbance(*SIZE, seeded(), rate=0.8)
    torch.rand(3)
    second = disturbance(*SIZE, seeded(), rate=0.8)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0], disturbance(*SIZE, seeded(1), rate=0.8)[0])


def test_disturbance_is_a_share_and_a_content():
    share, content = disturbance(*SIZE, seeded(), rate=1.0)
    assert share.shape == (400, 1, 16, 20)
    assert content.shape == SIZE
    for tensor in (share, content):
        assert float(tensor.amin()) >= 0
        assert float(tensor.amax()) <= 1


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_disturbance_covers_the_asked_share_of_images(rate):
    share, _ = disturbance(*SIZE, seeded(), rate=rate)
    touched = (share.flatten(1).amax(1) > 0).float().mean()
    expected = 1 - (1 - rate) * (1 - rate / 2)
    assert abs(float(touched) - expected) < 0.07
    # rectangles are the places that are covered by half and more; overlays stay below a third
    covered = share.flatten(1).amax(1) > 0.45
    assert abs(float(covered.float().mean()) - rate) < 0.07


def test_rectangles_have_sides_within_bounds_and_come_everywhere():
    share, _ = disturbance(2000, 1, 20, 20, seeded(), rate=1.0)
    inside = share[:, 0] > 0.45
    rows, columns = inside.any(2), inside.any(1)
    for side in (rows.sum(1), columns.sum(1)):
        assert int(side.min()) >= 2
        assert int(side.max()) <= 7
    assert torch.equal(inside, rows[:, :, None] & columns[:, None, :])
    assert bool(inside.any(0).all())


def test_white_rectangle_under_a_white_overlay_is_white(monkeypatch):
    """Share and content are one step for both: what lies over the image is their mean, weighted by what is seen."""
    room = importlib.import_module("unbackdoor_pixels.disturbance")
    monkeypatch.setattr(room, "patterns", lambda size, generator: torch.ones(size))
    monkeypatch.setattr(room, "fillings", lambda size, generator: torch.ones(size))
    share, content = disturbance(*SIZE, seeded(), rate=1.0)
    seen = (share > 1e-3).expand_as(content)
    assert_close(content[seen], torch.ones_like(content[seen]))


def test_rectangles_beyond_the_border_cover_every_pixel_equally_often():
    share, _ = disturbance(8000, 1, 20, 20, seeded(), rate=1.0, beyond=True)
    covered = (share > 0.35).float().mean(0)[0]  # more than any overlay
    corners, middle = covered[[0, 0, -1, -1], [0, -1, 0, -1]], covered[8:12, 8:12]
    assert abs(float(corners.mean() / middle.mean()) - 1) < 0.15
    within = (disturbance(8000, 1, 20, 20, seeded(), rate=1.0)[0] > 0.35).float().mean(0)[0]
    assert float(within[0, 0]) < 0.2 * float(within[10, 10])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_disturbed_images_keep_form_and_range(dtype):
    images = torch.randint(0, 256, SIZE, generator=seeded(1), dtype=torch.uint8)
    images = images if dtype is torch.uint8 else images.float() / 255
    kept = images.clone()
    out = ImageTask(disturbed=0.5).disturb(images, seeded())
    assert torch.equal(images, kept)
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert float(out.amin()) >= 0
    assert float(out.amax()) <= 1
    plain = images.float() / 255 if dtype is torch.uint8 else images
    same = (out - plain).abs().flatten(1).amax(1) < 1e-6
    assert 0.2 < float(same.float().mean()) < 0.6


def test_images_normalised_beforehand_get_contents_of_their_range():
    images = torch.zeros(SIZE)
    images[:, :, 0, 0], images[:, :, 0, 1] = -3.0, 3.0
    out = ImageTask(disturbed=1.0).disturb(images, seeded())[:, :, 1:]
    assert -3 <= float(out.amin()) < -1.5
    assert 1.5 < float(out.amax()) <= 3


def test_no_disturbance_gives_the_images_back():
    images = torch.rand(4, 3, 8, 8)
    assert ImageTask(disturbed=0.0).disturb(images, seeded()) is images


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_disturbed_must_be_a_share(share):
    with pytest.raises(BadOption, match=r"disturbed is .* must lie in \[0, 1\]"):
        ImageTask(disturbed=share)


def test_given_model_does_not_read_the_disturbance():
    """Self-distillation asks it about the images as they were augmented."""
    data = Batch(torch.full((32, 1, 8, 8), 0.5), torch.arange(32) % 4)
    task = ImageTask(disturbed=1.0, crop=0, searched=0)

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(64, 4)
            self.seen = []

        def forward(self, x):
            self.seen.append((self.training, x.detach().clone()))
            return self.fc(x.flatten(1))

    model = Spy()
    run = Run(seeded(), torch.device("cpu"), model)
    loss = CleanLoss.of(model, task, CleanSet(data), run, distil=1.0, mixup=1.0, disturb=True)
    read = loss.teacher.model.seen
    samples, of_batch = loss.prepare(2, 16, 1.0)
    assert all(torch.equal(x, torch.full_like(x, 0.5)) for _, x in read)
    model.seen.clear()
    of_batch(next(samples.batches(16, seeded())))
    ((_, tuned),) = model.seen
    assert float((tuned - 0.5).abs().amax()) > 0.1
