"""The picture of triggers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from unbackdoor.errors import BadData
from unbackdoor.task import Batch
from unbackdoor_image import KIT
from unbackdoor_image.preview import difference, draw_preview


def test_difference_is_ten_times_and_grey_where_nothing_changed() -> None:
    clean = torch.tensor([100, 100, 100, 0], dtype=torch.uint8).reshape(1, 1, 2, 2)
    triggered = torch.tensor([100, 101, 97, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    expected = torch.tensor([0.5, 0.5 + 10 / 255, 0.5 - 30 / 255, 1.0]).reshape(1, 1, 2, 2)
    assert_close(difference(clean, triggered), expected)


def test_preview_draws_a_line_for_each_attack(tmp_path: Path) -> None:
    samples = KIT.data["digits"](seed=0).test
    attacks = [KIT.attacks[name]() for name in ("badnets", "blend", "sig")]
    draw_preview(tmp_path / "three.png", attacks, samples)
    draw_preview(tmp_path / "one.png", attacks[:1], samples)
    three, one = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("three", "one"))
    assert three.shape[0] > 1.8 * one.shape[0]
    assert three.shape[1] == one.shape[1]
    assert three.std() > 20


def test_preview_needs_samples_that_the_attack_counts(tmp_path: Path) -> None:
    zeros = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))
    with pytest.raises(BadData, match="counts 0 of 8"):
        draw_preview(tmp_path / "none.png", [KIT.attacks["badnets"]()], zeros)
