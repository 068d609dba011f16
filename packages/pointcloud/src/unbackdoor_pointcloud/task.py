"""Classification of point clouds: points in, one class out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.classes import ClassTask, pick_logits
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch, Meter, Reading
from unbackdoor.tree import Tree, leaves
from unbackdoor_pointcloud import augment
from unbackdoor_pointcloud.data.normalising import unit_sphere
from unbackdoor_pointcloud.meters import MeanClassAccuracy
from unbackdoor_pointcloud.mixing import MIXTURES, mix_clouds
from unbackdoor_pointcloud.strong import strong

__all__ = ["LAYOUTS", "ROTATIONS", "PointTask", "clouds_of"]

LAYOUTS = ("points", "channels", "geometric")
ROTATIONS = ("none", "up", "any")


@dataclass(frozen=True)
class PointTask(ClassTask):
    """What a purifier must know of a classifier of point clouds.

    Inputs are clouds, floats of shape ``(batch, points, 3)``, usually within the unit sphere; targets are those of
    `unbackdoor.classes.ClassTask`.

    Attributes:
        layout: What the model takes: ``"points"`` ``(batch, points, 3)``; ``"channels"`` ``(batch, 3, points)``;
            ``"geometric"`` a ``Data`` of torch-geometric with ``pos`` ``(batch * points, 3)``, ``batch`` and ``ptr``.
        jitter: Deviation of the noise on coordinates.
        scale: Clouds are scaled by ``1 / (1 + scale)`` to ``1 + scale``.
        drop: Largest share of points that may be dropped.
        rotate: ``"none"``, ``"up"`` (about the third axis) or ``"any"``. Leave it off where the model knows upright
            objects, and for victims of `pointpba-o`, whose trigger is a rotation.
        mixture: ``"path"`` for PointMixup, which solves an assignment for each pair on the CPU, or ``"subset"``,
            nearly free; its clouds are like no body, and small networks answer at random.
    """

    name: ClassVar[str] = "pointcloud"

    layout: str = "points"
    jitter: float = 0.01
    scale: float = 0.2
    drop: float = 0.3
    rotate: str = "none"
    mixture: str = "path"

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        for name, known in (("layout", LAYOUTS), ("rotate", ROTATIONS), ("mixture", MIXTURES)):
            if getattr(self, name) not in known:
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")
        if min(self.jitter, self.scale) < 0 or not 0 <= self.drop < 1:
            raise BadOption(
                f"jitter is {self.jitter}, scale {self.scale}, drop {self.drop}; jitter and scale must be at least 0, "
                "drop must lie in [0, 1)."
            )

    def forward(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Logits of shape ``(batch, classes)``.

        Raises:
            BadData: The inputs are not one tensor of clouds.
        """
        parameter = next(model.parameters(), None)
        clouds = clouds_of(inputs)
        if parameter is not None and parameter.is_floating_point():
            clouds = clouds.to(parameter.dtype)
        logits: Tensor = pick_logits(model(_arranged(clouds, self.layout)))
        return logits

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """Rotation if on, scale, dropped points and jitter, then a mixture with ``lambda ~ Beta(mix, mix)``.

        Shapes, dtype and device of the clouds stay; ``mix=0`` leaves the targets as they are, else they become the
        triple ``(a, b, lambda)``.

        Raises:
            BadOption: ``mix`` is negative.
        """
        if mix < 0:
            raise BadOption(f"mix is {mix}; the parameter of the Beta distribution must be at least 0 (0: no MixUp).")
        clouds = augment.rotate(clouds_of(batch.inputs), generator, self.rotate)
        clouds = augment.scale(clouds, generator, self.scale)
        clouds = augment.drop_points(clouds, generator, self.drop)
        clouds = augment.jitter(clouds, generator, self.jitter)
        if mix == 0:
            return Batch(clouds, batch.targets)
        mixed, partners, shares = mix_clouds(clouds, generator, mix=mix, kind=self.mixture)
        return Batch(mixed, (batch.targets, batch.targets[partners], shares))

    def strong_augment(self, inputs: Tree, generator: torch.Generator, *, without: Collection[str] = ()) -> Tensor:
        """One change of each cloud: `unbackdoor_pointcloud.strong`."""
        return strong(clouds_of(inputs), generator, without=without)

    def meters(self) -> Mapping[str, Meter]:
        """Overall accuracy, and its mean over classes."""
        return {**super().meters(), "class accuracy": MeanClassAccuracy()}

    def perturbable(self, inputs: Tree) -> Tensor:
        """The points."""
        return clouds_of(inputs)

    def readings(self, clean: Batch) -> Iterator[Reading]:
        """Clouds within the unit sphere or as they were, upright along another axis, and the other layouts."""
        for how, change in _CHANGES.items():
            yield Reading(how, self, partial(_changed, change=change))
        for layout in LAYOUTS:
            if layout not in (self.layout, "geometric"):
                yield Reading(f"--task-option layout={layout}", replace(self, layout=layout), rare=True)

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse labels that do not fit the model; tell of missing classes and of clouds beyond the unit sphere.

        Raises:
            BadData: See `unbackdoor.labels.check_labels`.
        """
        notices = super().inspect(clean, outputs)
        clouds = clouds_of(clean.inputs)
        radius = float(clouds.square().sum(dim=2).amax().sqrt())
        centre = float(clouds.mean(dim=1).square().sum(dim=1).amax().sqrt())
        if radius > 1.2 or centre > 0.5:
            notices.append(
                f"clouds reach {radius:.2f} from the origin and their means lie up to {centre:.2f} off it. Most "
                "networks are trained on clouds within the unit sphere about the origin: read them with "
                "normalise=True, or see unbackdoor_pointcloud.data.unit_sphere."
            )
        return notices


_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "clouds moved to the origin and scaled into the unit sphere (--data-option normalise=true)": unit_sphere,
    "clouds upright along z, made so from y: (x, -z, y)": lambda c: torch.stack([c[..., 0], -c[..., 2], c[..., 1]], -1),
    "clouds upright along y, made so from z: (x, z, -y)": lambda c: torch.stack([c[..., 0], c[..., 2], -c[..., 1]], -1),
    "clouds with x and y exchanged": lambda c: c[..., [1, 0, 2]],
    "clouds with x and z exchanged": lambda c: c[..., [2, 1, 0]],
    "clouds of half the size": lambda c: c / 2,
    "clouds of twice the size": lambda c: c * 2,
}
"""Usual other forms of the same clouds."""


def _changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return replace(batch, inputs=change(clouds_of(batch.inputs)))


def clouds_of(inputs: Any) -> Tensor:
    """The inputs, if they are one tensor of clouds.

    Raises:
        BadData: They are not.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 3 or inputs.shape[2] != 3 or not inputs.is_floating_point():
        found = leaves(inputs)
        given = " and ".join(f"{tuple(leaf.shape)} of {leaf.dtype}" for leaf in found[:3]) or type(inputs).__name__
        raise BadData(f"inputs are {given}; give clouds as one float tensor of shape (batch, points, 3).")
    return inputs


def _arranged(clouds: Tensor, layout: str) -> Any:
    if layout == "points":
        return clouds
    if layout == "channels":
        return clouds.transpose(1, 2)
    count, points = clouds.shape[:2]
    data = _geometric().Data(pos=clouds.reshape(count * points, 3))
    numbers = torch.arange(count, device=clouds.device)
    data.batch = numbers.repeat_interleave(points)
    data.ptr = torch.arange(count + 1, device=clouds.device) * points
    return data


def _geometric() -> Any:
    try:
        return importlib.import_module("torch_geometric.data")
    except ModuleNotFoundError as error:
        raise BadOption(
            'layout "geometric" needs torch-geometric: pip install "unbackdoor-pointcloud[geometric]".'
        ) from error
