"""Detectors of mmdet by the same call; skipped where mmdet is not installed (`nox -s mmdet` makes an environment)."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.attacker.training import train_by_batches
from unbackdoor.errors import UnsupportedModel
from unbackdoor.task import Batch
from unbackdoor.testing import check_task
from unbackdoor_multilabel.detection import MMDetTask, Vanish, detection_batch
from unbackdoor_multilabel.detection.openmmlab import stand_in

for needed in ("mmcv", "mmengine", "mmdet"):
    pytest.importorskip(needed, reason=f"{needed} is not installed; nox -s mmdet runs these tests")

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries last released in 2024
TASK = MMDetTask(answers=8)
SIDE = 32


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    """mmdet's registry, on mmcv-lite or mmcv, whichever is there."""
    stand_in()
    importlib.import_module("mmdet.utils").register_all_modules()


def retinanet(width: int = 8) -> nn.Module:
    """RetinaNet on a ResNet-18 of few channels, two classes, random weights of seed 0."""
    parts = {
        "type": "RetinaNet",
        "data_preprocessor": {"type": "DetDataPreprocessor", "mean": [127.5] * 3, "std": [127.5] * 3},
        "backbone": {
            "type": "ResNet", "depth": 18, "base_channels": width, "num_stages": 2, "strides": (1, 2),
            "dilations": (1, 1), "out_indices": (0,), "norm_eval": True, "style": "pytorch",
        },
        "neck": {"type": "FPN", "in_channels": [width], "out_channels": width, "num_outs": 1},
        "bbox_head": {
            "type": "RetinaHead", "num_classes": 2, "in_channels": width, "stacked_convs": 1, "feat_channels": width,
            "anchor_generator": {"type": "AnchorGenerator", "scales": [2.0, 3.0], "ratios": [1.0], "strides": [4]},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "train_cfg": {
            "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0},
            "allowed_border": -1, "pos_weight": -1, "debug": False,
        },
        "test_cfg": {
            "nms_pre": 50, "min_bbox_size": 0, "score_thr": 0.001, "max_per_img": 8,
            "nms": {"type": "nms", "iou_threshold": 0.5},
        },
    }  # fmt: skip
    config = importlib.import_module("mmengine.config").ConfigDict(parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = importlib.import_module("mmdet.registry").MODELS.build(config)
        made.init_weights()
    return made.eval()


def shapes(count: int, seed: int) -> Batch:
    """One or two squares of 8 pixels, full (label 1) or hollow (label 2), on faint noise, with their boxes."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = 0.3 * torch.rand(count, 3, SIDE, SIDE, generator=generator), []
    for place in range(count):
        boxes, labels = [], []
        for corner in torch.randperm(4, generator=generator)[: 1 + place % 2].tolist():
            label = 1 + int(torch.randint(2, (), generator=generator))
            down, right = torch.randint(6, (2,), generator=generator).tolist()
            top, left = 14 * (corner // 2) + down, 14 * (corner % 2) + right
            images[place, :, top : top + 8, left : left + 8] = 0.9
            if label == 2:
                images[place, :, top + 2 : top + 6, left + 2 : left + 6] = 0.1
            boxes.append([left, top, left + 8, top + 8])
            labels.append(label)
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
    return detection_batch(images, targets, rows=2)


def test_task_keeps_its_promises():
    check_task(TASK, shapes(4, 0), retinanet())


def test_loss_is_the_detectors_own_with_classes_from_zero():
    model, batch = retinanet(), shapes(3, 1)
    found = TASK.forward(model, batch.inputs)["loss"]
    samples = importlib.import_module("mmdet.structures").DetDataSample
    instances = importlib.import_module("mmengine.structures").InstanceData
    for place in range(3):
        rows = batch.targets[place]
        rows = rows[rows[:, 4] > 0]
        one = samples(
            metainfo={"img_shape": (SIDE, SIDE), "pad_shape": (SIDE, SIDE), "batch_input_shape": (SIDE, SIDE)}
        )
        one.gt_instances = instances(bboxes=rows[:, :4], labels=rows[:, 4].long() - 1)
        image = (255 * batch.inputs["images"][place : place + 1] - 127.5) / 127.5
        total, _ = model.parse_losses(model.loss(image, [one]))
        assert_close(found[place], total)


def test_answers_count_classes_from_one():
    model, batch = retinanet(), shapes(2, 1)
    own = TASK.detector_answers(model, list(batch.inputs["images"]))
    assert all(len(one["labels"]) and {1, 2} >= set(one["labels"].tolist()) for one in own)
    answers = TASK.predict(model, batch.inputs)
    for place, one in enumerate(own):
        assert_close(answers["boxes"][place, : len(one["scores"])], one["boxes"])
        assert_close(answers["labels"][place, : len(one["scores"])], one["labels"])


@pytest.mark.parametrize("method", ["nft", "f-fip", "sdft"])
def test_retinanet_goes_through_the_same_call(method):
    model, clean = retinanet(), shapes(12, 3)
    before = copy.deepcopy(model.state_dict())
    purified, report = unbackdoor.purify(model, clean, task=TASK, method=method, steps=4, batch_size=4, allow_drop=True)
    assert type(purified) is type(model)
    assert list(purified.state_dict()) == list(before)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert report.before.keys() == report.after.keys() == {"map50"}


def test_every_layer_of_retinanet_is_reached():
    model, clean = retinanet(), shapes(12, 3)
    before = copy.deepcopy(model.state_dict())
    purified, _ = unbackdoor.purify(model, clean, task=TASK, method="sdft", steps=4, batch_size=4, allow_drop=True)
    matrices = [name for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad]
    same = [name for name in matrices if torch.equal(before[name], purified.get_parameter(name))]
    assert same == [], "backbone, neck and head must all be reached"


def test_other_detectors_are_refused():
    class Other(nn.Module):
        def forward(self, images):
            return images

    with pytest.raises(UnsupportedModel, match="data_preprocessor"):
        TASK.forward(Other().eval(), shapes(2, 0).inputs)


def test_stand_in_suppresses_and_refuses_the_rest():
    extension = pytest.importorskip("mmcv._ext")
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    kept = importlib.import_module("mmcv.ops").nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)[1]
    assert kept.tolist() == [1, 2]
    if type(extension).__module__.startswith("unbackdoor"):
        with pytest.raises(NotImplementedError, match="compiled"):
            extension.roi_align_forward()
    assert stand_in() is False, "once is enough"


@pytest.mark.slow
def test_retinanet_is_poisoned_and_purified():
    """A RetinaNet learns to hide full squares behind a patch; nft and f-fip bring them back."""
    train, clean, test = shapes(500, 0), shapes(150, 1), shapes(200, 2)
    attack, model = Vanish(num_classes=3, target=1, rate=0.15), retinanet(16)

    def optimisers(steps):
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps + 1)

    generator = torch.Generator().manual_seed(0)
    train_by_batches(model, train, TASK, attack, optimisers, epochs=15, batch_size=16, generator=generator)
    before = unbackdoor.evaluate(model, test, TASK, attack)
    assert before["map50"] > 70, before
    assert before["asr"] > 80, before
    for method in ("nft", "f-fip"):
        purified, _ = unbackdoor.purify(model, clean, task=TASK, method=method)
        after = unbackdoor.evaluate(purified, test, TASK, attack)
        assert after["asr"] < before["asr"] - 40, (method, before, after)
        assert after["map50"] > before["map50"] - 15, (method, before, after)
