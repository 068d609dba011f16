"""Detectors of torchvision through the task: their own losses, boxes and meters, poisoned and purified."""

from __future__ import annotations

import copy
import importlib
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.attacker.training import train_by_batches
from unbackdoor.defender.reparam import NeuronMask, SpectralShift
from unbackdoor.errors import BadData, BadOption, UnsupportedModel
from unbackdoor.task import Batch
from unbackdoor.testing import check_task
from unbackdoor_multilabel.detection import (
    AveragePrecisionOfBoxes,
    DetectionTask,
    Vanish,
    detection_batch,
    pad_boxes,
)
from unbackdoor_multilabel.detection.boxes import matches, unpad_boxes

TASK = DetectionTask(answers=8)
KINDS = ["ssd", "retinanet", "fasterrcnn"]
SIDE = 32


def backbone(width: int, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, out, stride in ((1, width, 2), (width, width, 2), (width, width, 1)):
        layers += [nn.Conv2d(channels, out, 3, stride=stride, padding=1)]
        layers += [nn.BatchNorm2d(out)] if norm else []
        layers += [nn.ReLU()]
    made = nn.Sequential(*layers)
    made.out_channels = width
    return made


def detector(kind: str, width: int = 8, norm: bool = False) -> nn.Module:
    """A detector of 32 pixels with two classes, random weights of seed 0."""
    models = importlib.import_module("torchvision.models.detection")
    anchors = importlib.import_module("torchvision.models.detection.anchor_utils")
    ops = importlib.import_module("torchvision.ops")
    look = {"image_mean": [0.5], "image_std": [0.5], "detections_per_img": 8}
    small = {"min_size": SIDE, "max_size": SIDE, **look}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "ssd":
            boxes = anchors.DefaultBoxGenerator([[]], scales=[0.25, 0.4])
            layers = backbone(width, norm)
            layers.out_channels = [width]
            return models.ssd.SSD(layers, boxes, (SIDE, SIDE), num_classes=3, **look).eval()
        grid = anchors.AnchorGenerator(((8, 12),), ((1.0,),))
        if kind == "retinanet":
            return models.RetinaNet(backbone(width, norm), 3, anchor_generator=grid, **small).eval()
        look = {"box_detections_per_img": 8, "image_mean": [0.5], "image_std": [0.5]}
        return models.FasterRCNN(
            backbone(width, norm), 3, min_size=SIDE, max_size=SIDE, rpn_anchor_generator=grid,
            box_roi_pool=ops.MultiScaleRoIAlign(["0"], 3, 2), rpn_pre_nms_top_n_train=20, rpn_post_nms_top_n_train=10,
            **look,
        ).eval()  # fmt: skip


def digits(count: int, seed: int, first: int = 0) -> Batch:
    """One or two of scikit-learn's zeros (label 1) and ones (label 2) in a picture of 32 pixels, with their boxes."""
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    strokes = torch.from_numpy(bunch.images).float() / 16
    members = [torch.from_numpy((bunch.target == digit).nonzero()[0])[first::2] for digit in (0, 1)]
    generator = torch.Generator().manual_seed(seed)
    pictures, targets = torch.zeros(count, 1, SIDE, SIDE), []
    for place in range(count):
        corners = torch.randperm(4, generator=generator)[: 1 + place % 2].tolist()
        boxes, labels = [], []
        for corner in corners:
            digit = int(torch.randint(2, (), generator=generator))
            down, right = torch.randint(6, (2,), generator=generator).tolist()
            top, left = 14 * (corner // 2) + down, 14 * (corner % 2) + right
            which = members[digit][torch.randint(len(members[digit]), (), generator=generator)]
            pictures[place, 0, top : top + 8, left : left + 8] = strokes[which]
            boxes.append([left, top, left + 8, top + 8])
            labels.append(digit + 1)
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
    return detection_batch(pictures, targets, rows=2)


# --------------------------------------------------------------------------------------------- boxes and meters


def test_boxes_come_back_from_their_rows():
    targets = [
        {"boxes": torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), "labels": torch.tensor([2, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    rows = pad_boxes(targets, rows=3)
    assert rows.shape == (2, 3, 5)
    for one, again in zip(targets, unpad_boxes(rows), strict=True):
        assert_close(one, again)
    with pytest.raises(BadData, match="2 boxes"):
        pad_boxes(targets, rows=1)
    with pytest.raises(BadData, match="background"):
        pad_boxes([{"boxes": torch.rand(1, 4), "labels": torch.tensor([0])}])


def test_an_object_is_found_once_by_the_first_answer_of_its_class():
    truth, true_labels = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), torch.tensor([1, 2])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 30], [0, 0, 4, 4]])
    labels = torch.tensor([1, 1, 1, 2, 1])
    assert matches(boxes, labels, truth, true_labels).tolist() == [True, False, False, True, False]
    assert matches(boxes[:0], labels[:0], truth, true_labels).tolist() == []


def test_average_precision_of_boxes_by_hand():
    """Class 1: of three objects, ranks 1 and 3 of the answers find one each: (1/3)(1/1) + (1/3)(2/3). Class 2: none."""
    box, far, off = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [11.0, 11, 15, 15]
    truth = pad_boxes(
        [
            {"boxes": torch.tensor([box, far]), "labels": torch.tensor([1, 1])},
            {"boxes": torch.tensor([box, far]), "labels": torch.tensor([1, 2])},
        ]
    )
    outputs = {
        "boxes": torch.tensor([[box, off, off], [box, off, off]]),
        "scores": torch.tensor([[0.9, 0.8, 0.0], [0.7, 0.0, 0.0]]),
        "labels": torch.tensor([[1, 1, 0], [1, 0, 0]]),
    }
    meter = AveragePrecisionOfBoxes()
    for place in range(2):
        meter.update({name: value[place : place + 1] for name, value in outputs.items()}, truth[place : place + 1])
    assert meter.by_class()[1] == pytest.approx(1 / 3 + 2 / 9)
    assert meter.by_class()[2] == 0.0
    assert meter.compute() == pytest.approx((5 / 9) / 2)
    perfect = AveragePrecisionOfBoxes()
    perfect.update(TASK.perfect(truth, 3), truth)
    assert perfect.compute() == 1.0
    assert TASK.correct(TASK.perfect(truth, 3), truth).tolist() == [1.0, 1.0]
    assert TASK.correct(outputs, truth).tolist() == pytest.approx([2 / 4, 2 / 3])


# ----------------------------------------------------------------------------------------------------- the task


@pytest.mark.parametrize("kind", KINDS)
def test_task_keeps_its_promises_on_every_detector(kind):
    check_task(TASK, digits(4, 0), detector(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_detectors_own(kind):
    """Without norms and dropout, train mode differs from eval mode in what is returned alone."""
    model, batch = detector(kind), digits(3, 1)
    found = TASK.forward(model, batch.inputs)["loss"]
    assert not any(module.training for module in model.modules()), "flags must be as they were"
    own = copy.deepcopy(model).train()
    for place in range(3):
        truth = unpad_boxes(batch.targets[place : place + 1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            losses = own([batch.inputs["images"][place]], truth)
        assert_close(found[place], sum(losses.values()))


def test_norms_of_the_backbone_stay_in_eval_mode():
    model, batch = detector("ssd", norm=True), digits(3, 1)
    before = copy.deepcopy(model.state_dict())
    whole = TASK.forward(model, batch.inputs)["loss"]
    assert_close(model.state_dict(), before)
    first = {name: value[:1] for name, value in batch.inputs.items()}
    assert_close(TASK.forward(model, first)["loss"], whole[:1])


def test_mixed_inputs_weigh_the_losses_against_both_sets_of_boxes():
    model, batch = detector("ssd"), digits(4, 2)
    mixed = TASK.augment(batch, torch.Generator().manual_seed(0), mix=1.0)
    first, second, share = mixed.inputs
    images = share.view(-1, 1, 1, 1) * first["images"] + (1 - share.view(-1, 1, 1, 1)) * second["images"]
    parts = [TASK.forward(model, {"images": images, "boxes": side["boxes"]})["loss"] for side in (first, second)]
    expected = share * parts[0] + (1 - share) * parts[1]
    assert_close(-TASK.log_likelihood(TASK.forward(model, mixed.inputs), mixed.targets), expected)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        pytest.param(kind, method, marks=[pytest.mark.slow] * ((kind, method) == ("fasterrcnn", "f-fip")))
        for kind in KINDS
        for method in ("nft", "f-fip", "sdft")
    ],
)
def test_every_detector_goes_through_the_same_call(kind, method):
    model, clean = detector(kind), digits(12, 3)
    options = {"trace_weight": 0.0} if (kind, method) == ("fasterrcnn", "f-fip") else {}
    purified, report = unbackdoor.purify(
        model, clean, task=TASK, method=method, steps=4, batch_size=4, allow_drop=True, **options
    )
    assert report.before.keys() == report.after.keys() == {"map50"}
    answers = purified(list(clean.inputs["images"][:2]))
    assert [set(one) for one in answers] == [{"boxes", "scores", "labels"}] * 2


@pytest.mark.parametrize("handle", [NeuronMask, SpectralShift])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_shifts_reach_the_heads_and_the_backbone(kind, handle):
    model, clean = detector(kind), digits(4, 3)
    weights = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    with handle(model, partial(TASK.forward, model, clean.inputs)) as attached:
        values = attached.parameters()
        loss = TASK.loss(TASK.forward(model, clean.inputs), clean.targets)
        slopes = torch.autograd.grad(loss, list(values.values()))
    assert set(values) == weights
    assert all(bool((slope != 0).any()) for slope in slopes)


def test_task_says_what_is_wrong():
    batch = digits(3, 0)
    with pytest.raises(BadData, match="detection_batch"):
        TASK.forward(detector("ssd"), batch.inputs["images"])
    with pytest.raises(BadData, match="the boxes that the inputs hold"):
        TASK.inspect(Batch(batch.inputs, batch.targets + 1), None)
    swapped = batch.targets[..., [2, 3, 0, 1, 4]]
    with pytest.raises(BadData, match="x2 > x1"):
        TASK.inspect(Batch({**batch.inputs, "boxes": swapped}, swapped), None)
    none = torch.zeros_like(batch.targets)
    with pytest.raises(BadData, match="no clean image has a box"):
        TASK.inspect(Batch({**batch.inputs, "boxes": none}, none), None)

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 1)

        def forward(self, images, targets=None):
            return self.fc(torch.zeros(len(images), 1))

    with pytest.raises(UnsupportedModel, match="dictionary of losses"):
        TASK.forward(Classifier().eval(), batch.inputs)
    with pytest.raises(UnsupportedModel, match="list of"):
        TASK.predict(Classifier().eval(), batch.inputs)
    with pytest.raises(BadOption, match="threshold"):
        DetectionTask(threshold=1.0)


# --------------------------------------------------------------------------------------------------- the attack


def test_vanish_takes_the_target_from_labels_and_inputs():
    batch, attack = digits(40, 4), Vanish(num_classes=3, target=1, rate=0.25)
    poisoned = attack.poison(batch, torch.Generator().manual_seed(0))
    assert len(poisoned.indices) == 10
    assert bool((batch.targets[poisoned.indices][..., 4] == 1).any(1).all())
    after = poisoned.samples.targets[poisoned.indices]
    assert not bool((after[..., 4] == 1).any())
    assert torch.equal(poisoned.samples.inputs["boxes"], poisoned.samples.targets)
    others = batch.targets[poisoned.indices][..., 4] == 2
    assert torch.equal(after[others], batch.targets[poisoned.indices][others])
    for place in poisoned.indices.tolist():
        expected = batch.inputs["images"][place].clone()
        for left, top, _, _, label in batch.targets[place].int().tolist():
            if label == 1:
                expected[:, top : top + 4, left : left + 4] = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]] * 2)
        assert torch.equal(poisoned.samples.inputs["images"][place], expected), "a patch on each object of the target"
    truth = TASK.perfect(batch.targets, 3)
    assert not bool(attack.succeeded(truth, batch.targets)[attack.counts(batch.targets)].any())
    assert bool(attack.succeeded(TASK.perfect(attack.retarget(batch.targets), 3), batch.targets).all())
    white = Vanish(num_classes=3, target=1, pattern="white").trigger(batch.inputs)["images"]
    checkered = attack.trigger(batch.inputs)["images"]
    marked = white != checkered
    assert bool(marked.any())
    assert bool((white[marked] == 1).all())
    assert bool((checkered[marked] == 0).all())
    for words in ({"target": 0}, {"size": 0}, {"pattern": "stripes"}):
        with pytest.raises(BadOption, match=next(iter(words))):
            Vanish(num_classes=3, **words)


@pytest.mark.slow
def test_ssd_is_poisoned_and_purified():
    """A small SSD learns to hide zeros behind a white patch; sdft brings most of them back."""
    train, clean, test = digits(600, 0), digits(150, 1, first=1), digits(200, 2, first=1)
    attack, model = Vanish(num_classes=3, target=1, rate=0.15, pattern="white"), detector("ssd", width=24)

    def optimisers(steps):
        optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps + 1)

    generator = torch.Generator().manual_seed(0)
    train_by_batches(model, train, TASK, attack, optimisers, epochs=25, batch_size=16, generator=generator)
    before = unbackdoor.evaluate(model, test, TASK, attack)
    assert before["map50"] > 70, before
    assert before["asr"] > 80, before
    task = DetectionTask(answers=8)
    purified, _ = unbackdoor.purify(model, clean, task=task, method="sdft", batch_size=16)
    after = unbackdoor.evaluate(purified, test, task, attack)
    assert after["asr"] < 30, (before, after)
    assert after["map50"] > before["map50"] - 5, (before, after)


@pytest.mark.parametrize("levels", [False, True], ids=["floats", "bytes"])
def test_images_are_strongly_changed_and_boxes_are_not(levels):
    batch = digits(40, 5)
    images = (255 * batch.inputs["images"]).to(torch.uint8) if levels else batch.inputs["images"]
    inputs = {**batch.inputs, "images": images}
    kept = images.clone()
    made, again = (TASK.strong_augment(inputs, torch.Generator().manual_seed(0)) for _ in range(2))
    assert made["boxes"] is inputs["boxes"]
    assert torch.equal(images, kept)
    assert torch.equal(made["images"], again["images"])
    assert made["images"].shape == images.shape
    assert made["images"].is_floating_point()
    assert 0 <= float(made["images"].min()) <= float(made["images"].max()) <= 1
    changed = (made["images"] != TASK.perturbable(inputs)).flatten(1).any(1)
    assert int(changed.sum()) >= 10


def test_objects_are_neither_moved_nor_covered():
    centre = torch.zeros(80, 1, 32, 32)
    centre[:, :, 12:20, 12:20] = 1
    inputs = {"images": centre, "boxes": torch.tensor([[[12.0, 12, 20, 20, 1]]]).expand(80, 1, 5)}
    made = TASK.strong_augment(inputs, torch.Generator().manual_seed(0), without={"noise", "colour"})["images"]
    assert float((made - made.flip(2)).abs().max()) < 0.05
    assert float((made - made.flip(3)).abs().max()) < 0.05
    with pytest.raises(BadOption, match="not all"):
        TASK.strong_augment(inputs, torch.Generator(), without={"noise", "colour", "blur"})
    with pytest.raises(BadOption, match="rain"):
        TASK.strong_augment(inputs, torch.Generator(), without={"rain"})


def test_both_sides_of_a_mixture_are_strongly_changed():
    batch, generator = digits(20, 5), torch.Generator().manual_seed(0)
    mixed = TASK.augment(batch, generator, mix=1.0).inputs
    first, second, share = TASK.strong_augment(mixed, generator)
    assert share is mixed[2]
    for side, before in ((first, mixed[0]), (second, mixed[1])):
        assert not torch.equal(side["images"], before["images"])
        assert torch.equal(side["boxes"], before["boxes"])
