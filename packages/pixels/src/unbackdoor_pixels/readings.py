"""The usual ways in which pixels are given to a network, so that a wrong one can be named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unbackdoor.task import Batch, Reading
from unbackdoor_pixels.values import as_floats

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

_SIDES = (28, 32, 64, 96, 112, 128, 160, 224, 256)
_SLACK = 0.02
_DEAREST = 100.0


def pixel_readings(task: PixelTask, clean: Batch) -> Iterator[Reading]:
    """Other normalisations, the other order of channels, pixels that are normalised already, other sizes."""
    pixels = task.pixels(clean.inputs)
    channels, side = pixels.shape[-3], min(pixels.shape[-2:])
    usual = [(name, pair) for name, pair in NORMALISATIONS.items() if len(pair[0]) == channels]
    own = _statistics(pixels)
    usual.sort(key=lambda one: float((own - torch.tensor(one[1])).abs().sum()))
    others = [_normalised(task, pair, name) for name, pair in usual if pair != (task.mean, task.std)]
    if task.mean is not None:
        others.insert(0, ("no --mean and --std", replace(task, mean=None, std=None)))
    yield from (Reading(*one) for one in others)
    if channels == 3:
        flag = f"--task-option bgr={str(not task.bgr).lower()}"
        yield Reading(flag, replace(task, bgr=not task.bgr))
        for advice, other in others:
            yield Reading(f"{flag} {advice}", replace(other, bgr=not task.bgr), rare=True)
    if pixels.is_floating_point() and not _within(pixels, 1):
        yield from _undone(task, pixels, usual)
    usual_too = [one for one in others if "(ImageNet's)" in one[0]]
    for new in _SIDES:
        cost = max(1.0, new * new / (pixels.shape[-1] * pixels.shape[-2]))
        if new != side and cost <= _DEAREST:
            for advice, other in [("", task), *usual_too]:
                yield Reading(f"--size {new} {advice}".rstrip(), other, _resized(new), rare=True, cost=cost)


def _normalised(task: PixelTask, pair: Pair, name: str) -> tuple[str, PixelTask]:
    mean, std = (",".join(f"{value:.4f}" for value in values) for values in pair)
    return f"--mean {mean} --std {std} ({name})", replace(task, mean=pair[0], std=pair[1])


def _undone(task: PixelTask, pixels: Tensor, usual: list[tuple[str, Pair]]) -> Iterator[Reading]:
    """For floats beyond 0..1: pixels in 0..255, or normalised before they were given."""
    if _within(pixels, 255):
        change = _on(lambda t: t / 255)
        yield Reading("pixels divided by 255", task, change)
        for name, pair in usual:
            advice, made = _normalised(task, pair, name)
            yield Reading(f"pixels divided by 255 and {advice}", made, change)
    plain = replace(task, mean=None, std=None)
    for name, (mean, std) in usual:
        if not _within(pixels * _column(std, pixels) + _column(mean, pixels), 1):
            continue
        back = _on(_restored(mean, std))
        before = f"pixels as they were before they were normalised (with {name})"
        yield Reading(before, plain, back)
        for other, pair in usual:
            if other != name:
                advice, made = _normalised(task, pair, other)
                yield Reading(f"{before} and {advice}", made, back)


def _statistics(pixels: Tensor) -> Tensor:
    """Mean and deviation of each channel: a normalisation is mostly that of data like those at hand."""
    shown = as_floats(pixels).transpose(0, -3).flatten(1).float().cpu()
    return torch.stack([shown.mean(1), shown.std(1)])


def _within(pixels: Tensor, top: float) -> bool:
    return -_SLACK * top <= float(pixels.amin()) <= float(pixels.amax()) <= (1 + _SLACK) * top


def _restored(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    return lambda t: (t * _column(std, t) + _column(mean, t)).clamp(0, 1)


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def _on(change: Callable[[Tensor], Tensor]) -> Callable[[Batch], Batch]:
    return lambda batch: replace(batch, inputs=change(batch.inputs))


def _resized(side: int) -> Callable[[Batch], Batch]:
    def sized(pixels: Tensor) -> Tensor:
        flat = pixels.reshape(-1, *pixels.shape[-3:])
        made = interpolate(flat.float(), (side, side), mode="bilinear", antialias=True)
        made = made.reshape(*pixels.shape[:-2], side, side)
        return made.to(pixels) if pixels.is_floating_point() else made.round().clamp(0, 255).to(pixels.dtype)

    return _on(sized)
