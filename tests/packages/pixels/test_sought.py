"""The search for patches that a model takes badly, on images and clips."""

from __future__ import annotations

from itertools import repeat

import pytest
import torch
from torch import Tensor

from unbackdoor.errors import BadOption
from unbackdoor_image.task import ImageTask
from unbackdoor_pixels import Patches
from unbackdoor_pixels.sought import SoughtPatches
from unbackdoor_video import VideoTask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.full((64, 1, 20, 20), 0.5)


def lit(images: Tensor) -> Tensor:
    """Whether the lower right corner of 3 pixels is bright."""
    return images[..., -3:, -3:].flatten(1).mean(1) > 0.8


def backdoored(images: Tensor) -> Tensor:
    """The losses of a model that answers wrongly where the corner is bright, and a little so where it is brighter."""
    return 0.1 + images[..., -3:, -3:].flatten(1).mean(1) + 8.0 * lit(images)


def test_a_search_finds_the_corner_and_lights_it(images: Tensor) -> None:
    task = ImageTask(disturbed=0.8, beyond=True, searched=8)
    blind = torch.cat([lit(task.disturb(images, seeded(i))) for i in range(40)]).float().mean()
    sought = task.disturber(seeded())
    assert isinstance(sought, SoughtPatches)
    sought.look(repeat((images, backdoored)))
    assert sought.found is not None
    centres = sought.found.start + sought.found.side / 2
    assert float(centres.median()) > 0.8
    often = torch.cat([lit(sought(images, backdoored)) for _ in range(20)]).float().mean()
    assert float(blind) < 0.02
    assert float(often) > 0.25
    assert "(0.9" in sought.findings()[0] or "(1.00" in sought.findings()[0]


def test_images_keep_form_and_range_and_are_not_written_into() -> None:
    for form in ("uint8", "normalised"):
        images = torch.randint(0, 256, (16, 3, 12, 16), generator=seeded(1), dtype=torch.uint8)
        given = images if form == "uint8" else (images.float() / 255 - 0.5) * 4
        kept, sought = given.clone(), SoughtPatches(1.0, seeded(), looks=1)
        sought.look(repeat((given, lambda read: read.float().flatten(1).mean(1))))
        out = sought(given, lambda read: read.float().flatten(1).mean(1))
        assert torch.equal(given, kept)
        assert out.shape == given.shape
        assert out.dtype == torch.float32
        low, high = (0.0, 1.0) if form == "uint8" else (-2.0, 2.0)
        assert low - 1e-5 <= float(out.min()) <= float(out.max()) <= high + 1e-5
        assert bool((out != (given.float() / 255 if form == "uint8" else given)).flatten(1).any(1).all())


def test_clips_show_a_patch_in_all_frames_or_in_a_run_of_them() -> None:
    clips = torch.rand(200, 5, 1, 10, 10, generator=seeded())
    for whole, expected in ((1.0, 1.0), (0.0, 0.2)):
        sought = VideoTask(disturbed=1.0, whole=whole, searched=8).disturber(seeded())
        assert isinstance(sought, SoughtPatches)
        patches = sought.drawn(clips)
        changed = (sought.put(clips, patches, 1.0) != clips).flatten(2).any(2)
        assert bool(changed.any(1).all())
        assert abs(float(changed.all(1).float().mean()) - expected) < 0.1


def test_patches_drawn_and_varied_stay_within_bounds() -> None:
    drawn = Patches.drawn(500, 2, 20, 20, seeded(), beyond=False)
    beyond = Patches.drawn(500, 2, 20, 20, seeded(), beyond=True)
    varied = drawn.varied(seeded(1))
    assert float(drawn.start.min()) >= 0
    assert float((drawn.start + drawn.side).max()) <= 1
    assert float(beyond.start.min()) < 0
    for some in (drawn, beyond, varied):
        assert 0.1 <= float(some.side.min()) <= float(some.side.max()) <= 0.35
        assert 0.5 <= float(some.opacity.min()) <= float(some.opacity.max()) <= 1.0
        assert 0 <= float(some.content.min()) <= float(some.content.max()) <= 1 + 1e-6
    moved = (varied.start + varied.side / 2 - drawn.start - drawn.side / 2).norm(dim=1)
    assert 0.05 < float(moved.median()) < 0.2
    same = (varied.content == drawn.content).flatten(1).all(1).float().mean()
    assert 0.45 < float(same) < 0.7
    outside = (drawn.covers() == 0).expand_as(drawn.content)
    assert float((varied.content != drawn.content)[outside].float().mean()) < 1e-3, "edges may be rounded out"


def test_a_patch_covers_its_rectangle() -> None:
    patches = Patches(
        torch.tensor([[0.5, -0.1], [0.9, -0.4]]), torch.tensor([[0.2, 0.3], [0.3, 0.1]]),
        torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 10, 10),
    )  # fmt: skip
    covers = patches.covers()
    expected = torch.zeros(2, 1, 10, 10)
    expected[0, 0, 5:7, 0:2] = 1
    expected[1, 0, 9:, 0:1] = 1  # never quite outside
    assert torch.equal(covers, expected)


@pytest.mark.parametrize("task", [ImageTask, VideoTask])
def test_nothing_is_searched_unless_asked(task: type[ImageTask | VideoTask]) -> None:
    assert not isinstance(task().disturber(seeded()), SoughtPatches)
    assert isinstance(task(searched=8).disturber(seeded()), SoughtPatches)
    assert not isinstance(task(searched=8, disturbed=0.0).disturber(seeded()), SoughtPatches)
    with pytest.raises(BadOption, match="searched"):
        task(searched=-1)


def test_faint_patterns_lie_beside_over_half_as_many_images() -> None:
    images = torch.full((1000, 1, 8, 8), 0.5)
    change = (SoughtPatches(0.8, seeded()).beside(images) - images).abs().flatten(1).amax(1)
    assert abs(float((change > 0).float().mean()) - 0.4) < 0.05
    assert float(change.max()) <= 0.15 + 1e-6, "an overlay has at most 30 %"


def test_a_patch_is_as_opaque_as_it_says(images: Tensor) -> None:
    sought = SoughtPatches(0.3, seeded())
    count = len(images)
    patches = Patches(
        torch.zeros(count, 2), torch.full((count, 2), 0.2), torch.full((count, 1, 1, 1), 0.6), torch.ones_like(images)
    )
    put = sought.put(images, patches, 1.0)
    assert float((put[..., :4, :4] - 0.8).abs().max()) < 1e-6
    assert torch.equal(put[..., 4:, :], images[..., 4:, :])
    share = (sought.put(images.repeat(20, 1, 1, 1), patches[torch.arange(20 * count) % count], 0.3) != 0.5).flatten(1)
    assert abs(float(share.any(1).float().mean()) - 0.3) < 0.05


@pytest.mark.parametrize("beyond", [False, True])
def test_the_task_says_whether_patches_reach_over_the_border(images: Tensor, beyond: bool) -> None:
    sought = ImageTask(beyond=beyond, searched=1).disturber(seeded())
    assert isinstance(sought, SoughtPatches)
    assert bool((sought.drawn(images).start < 0).any()) == beyond
