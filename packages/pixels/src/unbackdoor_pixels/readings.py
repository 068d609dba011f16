"""The usual ways in which pixels are given to a network, so that a wrong one can be named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unbackdoor.task import Batch, Reading

if TYPE_CHECKING:
    from unbackdoor_pixels.task import PixelTask

__all__ = ["NORMALISATIONS", "pixel_readings"]

Pair = tuple[tuple[float, ...], tuple[float, ...]]

NORMALISATIONS: dict[str, Pair] = {
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's, another usual deviation": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "to -1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CIFAR-100's": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "GTSRB's": ((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
    "SVHN's": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "CLIP's": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    "Tiny ImageNet's": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "Kinetics'": ((0.4322, 0.3947, 0.3765), (0.2280, 0.2215, 0.2170)),
    "Kinetics' in PyTorchVideo": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "ImageNet's mean in 0..255": ((0.485, 0.456, 0.406), (1 / 255, 1 / 255, 1 / 255)),
    "MNIST's": ((0.1307,), (0.3081,)),
    "Fashion-MNIST's": ((0.2860,), (0.3530,)),
    "-1..1": ((0.5,), (0.5,)),
    "values of 0..255": ((0.0,), (1 / 255,)),
}
"""Mean and deviation by whose they are, for pixels in [0, 1]."""

_SIDES = (28, 32, 48, 64, 96, 112, 128, 160, 224, 256, 299)
_SLACK = 0.02


def pixel_readings(task: PixelTask, clean: Batch) -> Iterator[Reading]:
    """Other normalisations, the other order of channels, pixels that are normalised already, other sizes."""
    pixels = task.pixels(clean.inputs)
    channels, side = pixels.shape[-3], min(pixels.shape[-2:])
    usual = [(name, pair) for name, pair in NORMALISATIONS.items() if len(pair[0]) == channels]
    others = [_normalised(task, pair, name) for name, pair in usual if pair != (task.mean, task.std)]
    if task.mean is not None:
        others.insert(0, Reading("no --mean and --std", replace(task, mean=None, std=None)))
    yield from others
    if channels == 3:
        yield replace(_swapped(task), advice="--task-option bgr=" + str(not task.bgr).lower())
        for other in others:
            swapped = _swapped(other.task)
            yield replace(swapped, advice=f"--task-option bgr={str(not task.bgr).lower()} and {other.advice}")
    if pixels.is_floating_point() and not -_SLACK <= float(pixels.amin()) <= float(pixels.amax()) <= 1 + _SLACK:
        yield from _undone(task, pixels, usual)
    for new in _SIDES:
        if new != side:
            for other in [Reading("", task), *[o for o in others if "ImageNet's (" in o.advice or "no --" in o.advice]]:
                advice = f"--size {new}" + (f" and {other.advice}" if other.advice else "")
                yield Reading(advice, other.task, _resize(new), rare=True)


def _swapped(task: object) -> Reading:
    assert isinstance(task, object)
    return Reading("", replace(task, bgr=not task.bgr), rare=True)  # type: ignore[type-var,attr-defined]


def _normalised(task: PixelTask, pair: Pair, name: str) -> Reading:
    mean, std = (",".join(f"{value:.4f}" for value in values) for values in pair)
    return Reading(f"--mean {mean} --std {std} ({name})", replace(task, mean=pair[0], std=pair[1]))


def _undone(task: PixelTask, pixels: Tensor, usual: list[tuple[str, Pair]]) -> Iterator[Reading]:
    """For pixels that are no longer in [0, 1]."""
    low, high = pixels.amin().item(), pixels.amax().item()
    plain = replace(task, mean=None, std=None)
    if low >= 0 and 1 < high <= 255:
        change = _on(lambda t: t / 255)
        yield Reading("pixels divided by 255, or saved as uint8", task, change)
        for name, pair in usual:
            yield replace(_normalised(task, pair, name), change=change)
    for name, (mean, std) in usual:
        back = _on(_linear(mean, std))
        restored = pixels * _column(std, pixels) + _column(mean, pixels)
        if -_SLACK <= float(restored.amin()) <= float(restored.amax()) <= 1 + _SLACK:
            yield Reading(f"pixels as they were before they were normalised ({name})", plain, back)
            for other, pair in usual:
                if other != name:
                    made = _normalised(task, pair, other)
                    yield replace(made, advice=f"pixels as they were before ({name}) and {made.advice}", change=back)


def _linear(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    return lambda t: (t * _column(std, t) + _column(mean, t)).clamp(0, 1)


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def _on(change: Callable[[Tensor], Tensor]) -> Callable[[Batch], Batch]:
    return lambda batch: replace(batch, inputs=change(batch.inputs))


def _resize(side: int) -> Callable[[Batch], Batch]:
    def resized(pixels: Tensor) -> Tensor:
        flat = pixels.reshape(-1, *pixels.shape[-3:])
        made = interpolate(flat.float(), (side, side), mode="bilinear", antialias=True)
        made = made.reshape(*pixels.shape[:-2], side, side)
        return made.to(pixels) if pixels.is_floating_point() else made.round().clamp(0, 255).to(pixels.dtype)

    return _on(resized)
