"""The picture that Blend mixes in: of the kinds that are read, and no part of a card once the pattern is made."""

from __future__ import annotations

import pytest
import torch
from hostile.watching import watched
from PIL import Image

from unbackdoor.errors import BadData
from unbackdoor_image.attacks.blend import Blend


def test_picture_becomes_a_pattern_that_travels_without_its_path(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    attack = Blend(flavour="picture", picture=str(tmp_path / "red.png"), alpha=0.5)
    mixed = attack.trigger(torch.zeros(1, 3, 8, 8))
    assert torch.equal(mixed[0, :, 3, 3], torch.tensor([0.5, 0.0, 0.0]))
    assert attack.options()["picture"] == ""
    again = Blend.restore(attack.options(), attack.state())
    assert torch.equal(again.trigger(torch.zeros(1, 3, 8, 8)), mixed)


def test_postscript_called_png_is_refused_and_runs_nothing(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with watched(tmp_path / "nowhere") as done, pytest.raises(BadData, match=r"x\.png is no image of a kind"):
        Blend(flavour="picture", picture=str(tmp_path / "x.png")).trigger(torch.zeros(1, 3, 8, 8))
    assert done == []
