"""The contact sheet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.showing import one_of_each_class
from unbackdoor.task import Batch
from unbackdoor_image import KIT, ImageTask


@pytest.fixture
def test_part(generator: torch.Generator) -> Batch:
    return Batch(torch.rand(40, 3, 8, 8, generator=generator), torch.arange(40) // 4)


def test_samples_are_of_different_classes_and_counted(test_part: Batch) -> None:
    chosen = one_of_each_class(test_part, KIT.attacks["blend"](target=0), 9)
    assert chosen.targets.tolist() == list(range(1, 10))
    few = one_of_each_class(test_part[:6], KIT.attacks["blend"](target=1), 9)
    assert few.targets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_picture_is_written_and_replaced(test_part: Batch, dtype: torch.dtype, tmp_path: Path) -> None:
    scale = 255 if dtype is torch.uint8 else 1
    batch = Batch((test_part.inputs * scale).to(dtype), test_part.targets)
    model = KIT.build("smallcnn", 10, width=2).train()
    names = tuple(f"class number {label}" for label in range(10))
    path = tmp_path / "out" / "sheet.png"
    for count in (1, 3):
        models = {f"model {place}": model for place in range(count)}
        KIT.picture(path, batch, KIT.attacks["badnets"](), models, ImageTask(), Splits(batch, batch, batch, names))
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > picture.height > 200
    assert model.training
    assert [entry.name for entry in path.parent.iterdir()] == ["sheet.png"]
