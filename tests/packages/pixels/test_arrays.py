"""Images and clips in arrays: which axis holds the channels, and which numbers are pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unbackdoor.errors import BadData, BadOption
from unbackdoor_pixels.arrays import as_images, as_levels

HERE = Path("clean.npz")


def levels(values: np.ndarray) -> torch.Tensor:
    return as_levels(torch.from_numpy(values), HERE, "images")[0]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((2, 5, 6), (2, 1, 5, 6)),
        ((2, 5, 6, 3), (2, 3, 5, 6)),
        ((2, 3, 5, 6), (2, 3, 5, 6)),
        ((2, 5, 6, 1), (2, 1, 5, 6)),
        ((2, 1, 5, 6), (2, 1, 5, 6)),
        ((2, 5, 6, 4), (2, 4, 5, 6)),
        ((2, 4, 8, 8), (2, 4, 8, 8)),
        ((2, 3, 2, 2), (2, 3, 2, 2)),
    ],
)
def test_channels_are_found_by_the_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    assert tuple(as_images(torch.zeros(shape), HERE)[0].shape) == wanted


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 1, 32, 3), (2, 3, 32, 1), (2, 8, 8, 8), (2, 1, 1, 1)])
def test_channels_in_doubt_are_refused_and_can_be_said(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    with pytest.raises(BadData, match=r"layout='channels_first' or layout='channels_last'"):
        as_images(images, HERE)
    assert torch.equal(as_images(images, HERE, "channels_first")[0], images)
    assert torch.equal(as_images(images, HERE, "channels_last")[0], images.permute(0, 3, 1, 2))
    with pytest.raises(BadOption, match="layout"):
        as_images(images, HERE, "nhwc")


@pytest.mark.parametrize("shape", [(5,), (5, 5), (2, 3, 4, 4, 4), (2, 0, 4, 4), (2, 4, 0), (0, 3, 4, 4)])
def test_other_shapes_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadData, match=r"clean\.npz have shape"):
        as_images(torch.zeros(shape), HERE)


def test_whole_numbers_up_to_255_are_levels() -> None:
    values = np.arange(12, dtype=np.int64).reshape(1, 1, 3, 4) * 20
    for kind in ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        assert levels(values.astype(kind)).dtype is torch.uint8
        assert levels(values.astype(kind)).flatten().tolist() == values.flatten().tolist()


def test_sixteen_bits_are_scaled_and_said() -> None:
    values = np.linspace(0, 65535, 12).astype(np.uint16).reshape(1, 1, 3, 4)
    found, notices = as_levels(torch.from_numpy(values), HERE, "images")
    assert np.abs(found.numpy().astype(float) - values / 257).max() <= 0.5
    assert "divided by 257" in notices[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((1, 1, 2, 2), 300, np.int64), "int64 from 300 to 300"),
        (np.full((1, 1, 2, 2), -1, np.int16), "int16 from -1 to -1"),
        (np.full((1, 1, 2, 2), 70_000, np.uint32), "uint32"),
        (np.full((1, 1, 2, 2), 2**64 - 1, np.uint64), "18446744073709551615"),
        (np.ones((1, 1, 2, 2), bool), "bool"),
        (np.ones((1, 1, 2, 2), np.complex64), "complex64"),
        (np.full((1, 1, 2, 2), 128, np.float32), "save them as uint8 or divide them by 255"),
        (np.full((1, 1, 2, 2), -2.1, np.float64), "mean and std"),
        (np.full((1, 1, 2, 2), 300.0, np.float32), r"\[0, 1\]"),
    ],
)
def test_numbers_that_are_no_pixels_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(BadData, match=message):
        levels(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_the_sample_with_nan_is_named(bad: float, kind: str) -> None:
    values = np.zeros((5, 1, 2, 2), kind)
    values[3, 0, 1, 1] = bad
    with pytest.raises(BadData, match="first in sample 3"):
        levels(values)


def test_floats_a_rounding_beyond_the_range_are_clamped() -> None:
    found = levels(np.array([[[[-1e-6, 1 + 1e-6]]]]))
    assert found.flatten().tolist() == [0, 1]
    half = levels(np.full((1, 1, 2, 2), 0.5, np.float16))
    assert half.dtype is torch.float32
