"""Object detectors: the task through which torchvision's are purified by the same call, and an attack on them."""

from __future__ import annotations

from unbackdoor_multilabel.detection.boxes import AveragePrecisionOfBoxes, pad_boxes
from unbackdoor_multilabel.detection.task import DetectionTask, detection_batch
from unbackdoor_multilabel.detection.vanish import Vanish

__all__ = ["AveragePrecisionOfBoxes", "DetectionTask", "Vanish", "detection_batch", "pad_boxes"]
