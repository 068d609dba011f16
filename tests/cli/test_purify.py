from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import unbackdoor
from unbackdoor.report import Report


def test_purify_of_a_victim_measures_the_attack(call, victim, folder):
    payload = call("purify", victim, "--method", "ft", "--steps", 5, "--out", "p.safetensors", "--json").json
    assert payload["asr"] == "measured"
    assert list(payload["before"]) == ["accuracy", "asr", "lcr"]
    assert payload["before"]["asr"] >= 80
    assert "did not see" in payload["measured_on"]


def test_purified_weights_have_the_same_names_shapes_and_types(call, victim, folder):
    call("purify", victim, "--method", "ft", "--steps", 5, "--out", "p.safetensors")
    before, after = load_file(victim / "model.safetensors"), load_file(folder / "p.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_purify_writes_a_report_that_reads_back(call, victim, folder):
    call("purify", victim, "--method", "nft", "--steps", 5, "--lr", "0.25", "--seed", 4, "--out", "p.safetensors")
    report = Report.from_json((folder / "p.report.json").read_text())
    assert (report.method, report.seed, report.options["steps"], report.options["lr"]) == ("nft", 4, 5, 0.25)


def test_purify_takes_a_preset_and_overrides_it(call, victim, folder):
    call("purify", victim, "--method", "ft", "--preset", "paper", "--steps", 2, "--out", "p.safetensors")
    options = json.loads((folder / "p.report.json").read_text())["options"]
    assert (options["steps"], options["schedule"]) == (2, "constant")


def test_purify_of_any_checkpoint_says_that_asr_is_unverified(call, victim, samples, folder):
    torch.save({"state_dict": load_file(victim / "model.safetensors")}, folder / "theirs.pt")
    words = ["--task", "toy", "--model", "mlp", "--data", samples, "--method", "ft", "--steps", 5]
    result = call("purify", "theirs.pt", *words, "--out", "out/p.safetensors")
    assert result.code == 0, result.err
    assert "ASR unverified: no trigger given" in result.out
    assert (folder / "out" / "p.report.json").is_file()
    payload = call("purify", "theirs.pt", *words, "--out", "again/p.safetensors", "--json").json
    assert payload["asr"] == "ASR unverified: no trigger given"
    assert list(payload["before"]) == ["accuracy"]
    assert any("num-classes" in notice for notice in payload["notices"])


@pytest.mark.parametrize(("given", "missing"), [([], "--model and --data"), (["--model", "mlp"], "--data")])
def test_purify_of_a_checkpoint_wants_model_and_data(call, victim, given, missing):
    words = ["purify", victim / "model.safetensors", "--task", "toy", *given, "--out", "p.safetensors"]
    assert f"so {missing} must be given" in call(*words).error


def test_purify_refuses_a_checkpoint_of_another_shape(call, victim, samples):
    words = [
        "--task",
        "toy",
        "--model",
        "mlp",
        "--model-option",
        "width=8",
        "--data",
        samples,
        "--out",
        "p.safetensors",
    ]
    assert "shapes differ" in call("purify", victim / "model.safetensors", *words).error


def test_purify_refuses_a_pickle(call, samples, folder):
    torch.save({"model": print}, folder / "bad.pt")
    words = ["--task", "toy", "--model", "mlp", "--data", samples, "--out", "p.safetensors"]
    assert "could run code" in call("purify", "bad.pt", *words).error


@pytest.mark.parametrize("name", ["p.safetensors", "p.report.json"])
def test_purify_overwrites_nothing_without_force(call, victim, folder, monkeypatch, name):
    (folder / name).write_text("mine")
    words = ["purify", victim, "--method", "ft", "--steps", 2, "--out", "p.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr(unbackdoor, "purify", lambda *a, **k: pytest.fail("worked before it checked"))
        assert f"{name} exists" in call(*words).error
    assert (folder / name).read_text() == "mine"
    assert call(*words, "--force").code == 0
    assert (folder / name).read_bytes() != b"mine"


def test_purify_takes_another_name_for_the_report(call, victim, folder):
    words = ["purify", victim, "--method", "ft", "--steps", 2, "--out", "p.safetensors", "--report", "evidence.json"]
    assert call(*words).code == 0
    assert (folder / "evidence.json").is_file()
    assert not (folder / "p.report.json").exists()


def test_purify_writes_files_of_weights_only(call, victim):
    assert "must end in .safetensors" in call("purify", victim, "--out", "p.txt").error


def test_purify_with_the_same_seed_gives_the_same_bits(call, victim, folder):
    for name in ("a", "b"):
        assert call("purify", victim, "--steps", 3, "--out", f"{name}/p.safetensors", "--seed", 5).code == 0
    assert (folder / "a" / "p.safetensors").read_bytes() == (folder / "b" / "p.safetensors").read_bytes()


WORDS = [
    "--task", "toy", "--model", "mlp", "--task-option", "mean=0.1", "--max-loss", 100,
    "--method", "tsbd", "--rounds", 1, "--neurons", 0.6, "--weights", 1.0, "--steps", 1, "--lr", 1e-6,
]  # fmt: skip


def purify_own(call, victim, samples, *words):
    return call("purify", victim / "model.safetensors", *WORDS, "--data", samples, "--out", "p.safetensors", *words)


def test_where_nothing_is_within_the_tolerance_the_given_weights_come_back_and_the_exit_code_says_so(
    call, victim, samples, folder
):
    result = purify_own(call, victim, samples)
    assert result.code == 3, result.err
    assert result.err.count("the given model came back, bit for bit") == 1
    assert "--max-clean-drop 3" in result.err
    assert "--allow-drop" in result.err
    assert "the given ones, as they were" in result.out
    given, written = load_file(victim / "model.safetensors"), load_file(folder / "p.safetensors")
    assert all(torch.equal(given[name], written[name]) for name in given)
    assert Report.from_json((folder / "p.report.json").read_text()).given_back


def test_result_beyond_the_tolerance_is_written_on_request(call, victim, samples, folder):
    result = purify_own(call, victim, samples, "--allow-drop")
    assert result.code == 0, result.err
    assert "kept all the same" in result.err
    given, written = load_file(victim / "model.safetensors"), load_file(folder / "p.safetensors")
    assert any(not torch.equal(given[name], written[name]) for name in given)


def test_figures_that_could_not_be_measured_are_no_numbers(call, victim, samples):
    words = ["--task", "toy", "--model", "mlp", "--method", "ft", "--steps", 2, "--holdout", 0, "--data", samples]
    result = call("purify", victim / "model.safetensors", *words, "--out", "p.safetensors")
    assert result.code == 0, result.err
    row = next(line for line in result.out.splitlines() if line.strip().startswith("accuracy"))
    assert row.split() == ["accuracy", "not", "measured", "not", "measured"]
    assert "Not measured: no sample could be held out" in " ".join(result.out.split())
    payload = call("purify", victim / "model.safetensors", *words, "--out", "q.safetensors", "--json").json
    assert payload["before"] == payload["after"] == {"accuracy": None}


def test_figures_of_held_out_samples_come_with_their_intervals(call, victim, samples):
    words = ["--task", "toy", "--model", "mlp", "--method", "ft", "--steps", 2, "--data", samples]
    result = call("purify", victim / "model.safetensors", *words, "--out", "p.safetensors")
    assert "95 %: before " in result.out
    assert "loss of right answers" in result.out
    payload = call("purify", victim / "model.safetensors", *words, "--out", "q.safetensors", "--json").json
    low, high = payload["evidence"]["after"]
    assert low <= payload["after"]["accuracy"] <= high
