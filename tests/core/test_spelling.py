"""What is suggested for a name that nobody has."""

from __future__ import annotations

import pytest

from unbackdoor.spelling import did_you_mean, near

MODELS = ["smallcnn", "preactresnet18", "torchvision:resnet18", "torchvision:vgg16", "timm:resnet18", "timm:vit_tiny"]


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("ResNet18", "torchvision:resnet18"),
        ("torchvison:resnet18", "torchvision:resnet18"),
        ("timm:resnt18", "timm:resnet18"),
        ("vgg_16", "torchvision:vgg16"),
        ("vit", "timm:vit_tiny"),
        ("small-cnn", "smallcnn"),
    ],
)
def test_a_name_is_found_whatever_its_prefix_and_case(given, first):
    assert near(given, MODELS)[0] == first


def test_a_flag_is_closest_to_the_flag_that_was_meant():
    assert near("--methd", ["--depth", "--method", "--model"]) == ["--method"]


def test_nothing_is_suggested_where_nothing_is_alike():
    assert near("xyzzy", MODELS) == []
    assert did_you_mean("xyzzy", MODELS) == ""


def test_a_suggestion_is_a_sentence():
    assert did_you_mean("resnet18", MODELS, 2) == " Did you mean 'torchvision:resnet18' or 'timm:resnet18'?"
