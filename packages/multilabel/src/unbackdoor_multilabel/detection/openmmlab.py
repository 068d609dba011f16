"""Detectors of mmdet through the same task: their own losses and answers, labels counted as everywhere here.

mmdet's last release asks for mmcv with compiled operators, which recent PyTorch has no wheels of. `stand_in` lets
mmcv-lite serve where the detector needs no compiled operator but non-maximum suppression.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.errors import UnsupportedModel
from unbackdoor_multilabel.detection.task import DetectionTask

__all__ = ["MMDetTask", "stand_in"]

_OPERATORS = "mmcv._ext"


@dataclass(frozen=True)
class MMDetTask(DetectionTask):
    """What a purifier must know of a detector of mmdet; everything else is as for `DetectionTask`.

    Samples are those of `detection_batch`, labels from 1; mmdet counts its classes from 0, so class ``k`` of a
    detector is label ``k + 1`` here. Pixels are given to the detector's ``data_preprocessor`` as 0..255, in the order
    of channels that it expects (BGR where it has ``bgr_to_rgb``).
    """

    name: ClassVar[str] = "mmdet"

    def detector_losses(
        self, model: nn.Module, images: Sequence[Tensor], truths: Sequence[Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The losses of ``mode="loss"``, with what mmdet only reports (names without "loss") left out.

        Raises:
            UnsupportedModel: The model is no detector of mmdet.
        """
        losses: Any = _asked(model, images, truths, "loss")
        kept = {name: value for name, value in losses.items() if "loss" in name} if isinstance(losses, Mapping) else {}
        if not kept:
            raise UnsupportedModel(f"{type(model).__name__} gave no losses in mode 'loss'; mmdet's detectors do.")
        return {
            name: value if isinstance(value, Tensor) else torch.stack([part.sum() for part in value])
            for name, value in kept.items()
        }

    def detector_answers(self, model: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The boxes of ``mode="predict"``."""
        nothing = {"boxes": images[0].new_zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        found: Any = _asked(model, images, [nothing] * len(images), "predict")
        answers = [one.pred_instances for one in found]
        return [{"boxes": one.bboxes, "scores": one.scores, "labels": one.labels + 1} for one in answers]


def _asked(model: nn.Module, images: Sequence[Tensor], truths: Sequence[Mapping[str, Tensor]], mode: str) -> Any:
    preprocessor = getattr(model, "data_preprocessor", None)
    if not isinstance(preprocessor, nn.Module):
        raise UnsupportedModel(
            f"{type(model).__name__} has no data_preprocessor; MMDetTask is for detectors of mmdet, DetectionTask for "
            "those with torchvision's interface."
        )
    sample = importlib.import_module("mmdet.structures").DetDataSample
    instances = importlib.import_module("mmengine.structures").InstanceData
    samples = []
    for image, truth in zip(images, truths, strict=True):
        shape = tuple(image.shape[-2:])
        made = sample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
        made.gt_instances = instances(bboxes=truth["boxes"], labels=truth["labels"] - 1)
        samples.append(made.to(image.device))
    ready = preprocessor({"inputs": [255 * image for image in images], "data_samples": samples}, False)
    return model(ready["inputs"], ready["data_samples"], mode=mode)


def stand_in() -> bool:
    """Let mmdet start on mmcv-lite: torchvision's non-maximum suppression for mmcv's, an error for all else compiled.

    Call it before mmdet is imported. It registers the module ``mmcv._ext`` in this process and touches no file.

    Returns:
        Whether it was needed: False where mmcv has its compiled operators.

    Raises:
        ModuleNotFoundError: There is no mmcv at all; ``pip install "unbackdoor-multilabel[mmdet]"`` brings mmcv-lite.
    """
    importlib.import_module("mmcv")
    if _OPERATORS in sys.modules or find_spec(_OPERATORS) is not None:
        return False
    sys.modules[_OPERATORS] = _Operators()
    return True


class _Operators(ModuleType):
    """In the place of the extension that mmcv-lite lacks."""

    def __init__(self) -> None:
        super().__init__(_OPERATORS)
        self.__spec__ = ModuleSpec(_OPERATORS, None)

    def nms(self, boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        """Places of the boxes that are kept, surest first; ``offset`` is added to widths, 0 in all of mmdet 3."""
        if offset:
            raise NotImplementedError("mmcv-lite stand-in: nms with an offset needs mmcv with compiled operators.")
        kept: Tensor = importlib.import_module("torchvision.ops").nms(boxes, scores, float(iou_threshold))
        return kept

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*given: Any, **options: Any) -> Any:
            raise NotImplementedError(f"mmcv-lite stand-in: {name} needs mmcv with compiled operators.")

        return missing
