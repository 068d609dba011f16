"""Object detectors of torchvision and mmdet: tasks by which the same call purifies them, and an attack."""

from __future__ import annotations

from unbackdoor_multilabel.detection.boxes import AveragePrecisionOfBoxes, pad_boxes
from unbackdoor_multilabel.detection.openmmlab import MMDetTask
from unbackdoor_multilabel.detection.task import DetectionTask, detection_batch
from unbackdoor_multilabel.detection.vanish import Vanish

__all__ = [
    "AveragePrecisionOfBoxes",
    "DetectionTask",
    "MMDetTask",
    "Vanish",
    "detection_batch",
    "pad_boxes",
]
