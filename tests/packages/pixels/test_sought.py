"""The search for patches that a model takes badly, on images and clips."""

from __future__ import annotations

import re
from itertools import repeat

import pytest
import torch
from torch import Tensor

from unbackdoor.errors import BadOption
from unbackdoor_image.task import ImageTask
from unbackdoor_pixels import Patches
from unbackdoor_pixels.ascent import climbed, worth
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
    assert re.search(r"(9\d|100) % down and (9\d|100) % to the right", sought.findings()[0])


CHECKED = (torch.arange(3)[:, None] + torch.arange(3)) % 2 == 0


def checked(images: Tensor) -> Tensor:
    """The losses of a model with BadNets' trigger: a checkerboard of 3 pixels that no random content comes near."""
    corner = images[..., -3:, -3:].mean(1)
    return 9.0 * torch.sigmoid(60 * (torch.where(CHECKED, corner, 1 - corner).flatten(1).mean(1) - 0.9))


def test_content_moves_up_the_gradient_within_its_rectangle(images: Tensor) -> None:
    drawn = Patches.drawn(64, 1, 20, 20, seeded(), beyond=True)
    seen = []

    def put(inputs: Tensor, some: Patches) -> Tensor:
        seen.append(some.start)
        return inputs.lerp(some.content, some.covers())

    found = climbed(drawn, images, lambda read: read.flatten(1).sum(1), put, 5, seeded())
    inside = drawn.covers() > 0
    expected = torch.where(inside, (drawn.content + 5 * 0.2).clamp(0, 1), drawn.content)
    assert float((found.content - expected).abs().max()) < 1e-6, (
        "brighter by a fifth of the range in each of five steps"
    )
    assert torch.equal(found.start, drawn.start)
    assert torch.equal(found.side, drawn.side)
    assert len({tuple(start.flatten().tolist()) for start in seen}) == 5, "in another sample each time"


def test_no_random_content_lights_a_checkerboard_and_the_search_finds_it(images: Tensor) -> None:
    task = ImageTask(disturbed=0.8)
    blind = torch.cat([checked(task.disturb(images, seeded(i))) for i in range(100)])
    sought = task.disturber(seeded())
    assert isinstance(sought, SoughtPatches)
    sought.look(repeat((images, checked)))
    often = torch.cat([checked(sought(images, checked)) for _ in range(20)])
    assert float((blind > 6).float().mean()) < 0.003
    assert float((often > 6).float().mean()) > 0.15


def test_what_any_content_costs_in_a_place_makes_a_patch_worth_less(images: Tensor) -> None:
    """Of a model that errs by 5 nats where its upper left corner is hidden, and by 2 where a checkerboard is right."""

    def losses(read: Tensor) -> Tensor:
        hidden = (read[:, 0, 0, 0] - 0.5).abs() > 0.1
        shown = read[:, 0, 8:14, 16:20]
        return 0.3 + 5.0 * hidden + 2.0 * ((shown - board).abs().flatten(1).amax(1) < 0.05)

    board = (torch.arange(6)[:, None] + torch.arange(4)) % 2
    start = torch.tensor([[0.0, 0.0], [0.4, 0.8], [0.4, 0.4]]).repeat(20, 1)
    content = torch.zeros(60, 1, 20, 20)
    content[:, 0, 8:14, 16:20] = board.float()
    patches = Patches(start, torch.full((60, 2), 0.3), torch.ones(60, 1, 1, 1), content)
    found = worth(patches, images[:60], losses, lambda x, some: x.lerp(some.content, some.covers()), 4, seeded())
    corner, edge, middle = found.view(20, 3).unbind(1)
    assert float(middle.abs().max()) == 0
    assert abs(float(corner.mean()) - 5 / 6) < 0.1, "hardly any content leaves the corner as it was"
    assert float(edge.mean()) == pytest.approx(2.0, abs=0.01), "no other content is a checkerboard"


def test_what_another_content_gains_is_not_counted_for_a_patch(images: Tensor) -> None:
    patches = Patches(torch.zeros(64, 2), torch.full((64, 2), 0.3), torch.ones(64, 1, 1, 1), torch.zeros(64, 1, 20, 20))

    def losses(read: Tensor) -> Tensor:
        corner = read[:, 0, :6, :6].flatten(1)
        return 4.0 + torch.where(corner.amax(1) == 0, 1.0, 0.0) - 3.0 * (corner.std(1) > 0)

    found = worth(patches, images, losses, lambda x, some: x.lerp(some.content, some.covers()), 4, seeded())
    assert float(found.mean()) == pytest.approx(1.0, abs=0.1), "some random contents are black too"


def test_a_model_that_cuts_the_graph_or_has_no_slope_is_searched_all_the_same(images: Tensor) -> None:
    task = ImageTask(disturbed=0.8)
    weight = torch.ones(1, requires_grad=True)
    for losses in (
        lambda read: backdoored(read.detach()),
        lambda read: backdoored(read.detach()) * weight,
        lambda read: backdoored(read) + 0.0 * (read.flatten(1).mean(1) * 0).sqrt(),  # the slope is no number
    ):
        sought = task.disturber(seeded())
        assert isinstance(sought, SoughtPatches)
        sought.look(repeat((images, losses)))
        assert sought.found is not None
        assert len(sought.found) > 0
        assert bool(sought.found.content.isfinite().all())
        assert not sought.found.content.requires_grad
        assert bool(sought(images, losses).isfinite().all())


def test_what_was_found_in_the_given_model_stays(images: Tensor) -> None:
    sought = ImageTask().disturber(seeded())
    assert isinstance(sought, SoughtPatches)
    sought.look(repeat((images, checked)))
    first = sought.costs.clone()
    for _ in range(200):
        sought(images, lambda read: read.flatten(1).sum(1) * 0)
    assert torch.equal(sought.costs, first)


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
def test_a_search_can_be_turned_off(task: type[ImageTask | VideoTask]) -> None:
    assert isinstance(task().disturber(seeded()), SoughtPatches)
    assert not isinstance(task(searched=0).disturber(seeded()), SoughtPatches)
    assert not isinstance(task(disturbed=0.0).disturber(seeded()), SoughtPatches)
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
