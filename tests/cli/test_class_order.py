"""Which class stands for which output: shown, kept, and refused where it cannot be known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from unbackdoor.errors import BadData
from unbackdoor_cli.class_order import check_count, outputs_of, shown_order

ANIMALS = ("cat", "dog", "emu")


def test_a_few_classes_stand_on_a_line_and_many_are_shortened():
    assert shown_order(ANIMALS) == "Classes: 0 cat, 1 dog, 2 emu."
    many = [f"kind {letter}" for letter in "abcdefghijklmnop"]
    assert shown_order(many) == (
        "Classes: 0 kind a, 1 kind b, 2 kind c, ... (16 in all), 13 kind n, 14 kind o, 15 kind p."
    )
    assert shown_order(("0", "1", "2")) == "Classes: 0 to 2, the numbers of the labels."
    assert shown_order(None) == ""


@pytest.mark.parametrize(
    ("classes", "outputs", "named", "told"),
    [
        (ANIMALS, 4, False, r"photos has 3 classes \(cat, dog, emu\), but the model has 4 outputs.*--classes A,B,C"),
        (ANIMALS, 2, False, r"photos has 3 classes .* has 2 outputs; leave out .*--num-classes N"),
        (ANIMALS, 4, True, r"--classes names 3 classes .* has 4 outputs; give as many"),
        (("bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "airplane"), 10, False,
         r"no samples of automobile\. .*--classes airplane,automobile,bird,cat,"),
    ],
)  # fmt: skip
def test_class_names_that_do_not_cover_the_outputs_are_refused(classes, outputs, named, told):
    with pytest.raises(BadData, match=told):
        check_count(classes, outputs, "photos", named=named)


def test_labels_that_are_numbers_need_no_sample_of_every_class():
    check_count(("0", "1", "2"), 10, "clean.npz", named=False)
    check_count(ANIMALS, 3, "photos", named=False)


def test_what_the_model_tells_of_the_classes_is_said():
    with pytest.raises(BadData, match=r"has 4 outputs: 'fox' \(output 1\) is missing\."):
        check_count(ANIMALS, 4, "photos", named=False, tell=lambda: "'fox' (output 1) is missing")


def test_the_number_of_outputs_is_read_off_the_last_layer():
    def build(count: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, count))

    def shapes(count: int, prefix: str = "") -> list[tuple[str, tuple[int, ...]]]:
        return [(prefix + name, tuple(value.shape)) for name, value in build(count).state_dict().items()]

    assert outputs_of(build, 9, shapes(10)) == 10
    assert outputs_of(build, 9, shapes(10, "module.")) == 10
    assert outputs_of(build, 9, [("other", (3, 3))]) is None
    assert outputs_of(build, 9, [("2.weight", (10, 7)), ("2.bias", (10,))]) is None


@pytest.fixture
def wide(folder):
    """A checkpoint of a model with 4 outputs, one more than the toy data have."""
    import unbackdoor_toy

    torch.manual_seed(0)
    torch.save(unbackdoor_toy.mlp(4).state_dict(), folder / "wide.pt")
    return folder / "wide.pt"


def words(checkpoint, samples):
    return [checkpoint, "--task", "toy", "--model", "mlp", "--data", samples]


def test_a_class_short_of_the_checkpoints_outputs_is_one_sentence(call, samples, wide):
    error = call("purify", *words(wide, samples), "--out", "p.safetensors").error
    assert "has 3 classes (left, middle, right), but the model has 4 outputs" in error
    assert "mismatch" not in error
    assert "shapes" not in error


def test_a_wrong_number_of_classes_names_the_right_one(call, samples, wide):
    error = call("evaluate", *words(wide, samples), "--num-classes", 3).error
    assert error == f"error: the last layer in {wide} has 4 outputs, but --num-classes is 3; give --num-classes 4.\n"


def test_all_names_are_taken_for_the_outputs(call, samples, wide):
    named = [*words(wide, samples), "--classes", "left,middle,right,up"]
    assert "--classes" in call("evaluate", *named[:-1], "left,middle").error
    result = call("evaluate", *named)
    assert result.code == 0, result.err
    assert "Classes: 0 left, 1 middle, 2 right, 3 up." in " ".join(result.out.split())
    assert call("evaluate", *named, "--json").json["classes"] == ["left", "middle", "right", "up"]


def test_the_report_says_what_was_purified_and_how(call, victim, samples, folder):
    given = [
        "purify", victim / "model.safetensors", "--task", "toy", "--model", "mlp", "--model-option", "width=16",
        "--data", samples, "--task-option", "mean=0.1", "--method", "ft", "--steps", 2, "--out", "p.safetensors",
    ]  # fmt: skip
    result = call(*given)
    assert result.code == 0, result.err
    assert "after (held out)" in result.out
    assert "Classes: 0 left, 1 middle, 2 right." in " ".join(result.out.split())
    subject = json.loads((folder / "p.report.json").read_text())["subject"]
    assert subject["source"] == str(victim / "model.safetensors")
    assert len(subject["sha256"]) == 64
    assert (subject["model"], subject["model_options"]) == ("mlp", {"num_classes": 3, "width": 16})
    assert (subject["task_options"]["mean"], subject["input_shapes"]) == (0.1, [[8]])
    assert (subject["classes"], subject["data"]) == (["left", "middle", "right"], str(samples))
    assert (subject["task_package"], subject["unbackdoor"]) == ("unbackdoor-toy 0.1.0", "0.1.0")
    assert subject["command"].startswith("unbackdoor purify ")
    assert "--steps 2" in subject["command"]


def test_two_results_in_a_folder_have_reports_of_their_own(call, victim, folder):
    for name in ("a", "b"):
        assert call("purify", victim, "--method", "ft", "--steps", 2, "--out", f"{name}.safetensors").code == 0
    assert {path.name for path in folder.glob("*.report.json")} == {"a.report.json", "b.report.json"}


def test_limits_hold_for_what_is_read(call, victim, samples):
    given = ["evaluate", *words(victim / "model.safetensors", samples)]
    assert call(*given).code == 0
    assert "the limit 'memory'" in call(*given, "--limit", "memory=100").error
    assert "must be a whole number" in call(*given, "--limit", "memory=much").error
    assert "--limit pixels=500000000" in call(*given, "--limit", "memory").error
