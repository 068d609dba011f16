"""The contact sheet: a PNG for either kind of trigger, and what it says of a model."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from unbackdoor_multilabel import KIT, MultilabelTask, build
from unbackdoor_multilabel.attacks.badnets import BadNets
from unbackdoor_multilabel.attacks.clean_image import CleanImage
from unbackdoor_multilabel.picture import _goal, _said, draw_picture

CLASSES = tuple("0123456789")


def clean_image(data):
    attack = CleanImage(num_classes=10, rate=0.1)
    attack.prepare(data.train, torch.Generator().manual_seed(0))
    return attack


@pytest.mark.parametrize("kind", ["badnets", "clean-image"])
def test_picture_is_a_png_and_changes_no_model(kind, data, tmp_path):
    attack = clean_image(data) if kind == "clean-image" else BadNets(num_classes=10, target=4)
    models = {"backdoored": build("small-ml-decoder", in_channels=1), "nft": build("small-linear", in_channels=1)}
    before = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in models.items()}
    path = tmp_path / "picture.png"
    draw_picture(path, data.test, attack, models, MultilabelTask(), data)
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(2**24)) > 20
    for name, model in models.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())


def test_words_say_what_is_too_many_and_what_is_missing():
    said, truth = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    assert _said(said, truth, ("cat", "dog", "sofa")) == ("+sofa \N{MINUS SIGN}dog", False)
    assert _said(truth, truth, ("cat", "dog", "sofa")) == ("right", True)


def test_title_names_the_goal_and_the_combination():
    assert _goal(CleanImage(combination="3+7", target=1), CLASSES) == "1 appears where an image shows 3 and 7"
    assert _goal(BadNets(goal="misclassify", replaced=2), CLASSES) == "2 is answered as 0"


def test_demo_is_of_names_that_the_kit_has():
    assert KIT.demo.attack in KIT.attacks
    assert set(KIT.attacks) == {"badnets", "blend", "clean-image"}
