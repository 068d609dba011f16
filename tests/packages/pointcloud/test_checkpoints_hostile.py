"""Checkpoints of torch-points3d's layout that are damaged, odd or hostile: one error each, and nothing runs."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import torch
from hostile.pickles import as_legacy, as_zip, hostile_pickles, name, row, table, tensor, text
from torch import nn

from unbackdoor.errors import CheckpointMismatch, NonFinite, UnbackdoorError, UnsafeCheckpoint
from unbackdoor.testing import check_reader
from unbackdoor_pointcloud.models import load_points3d, read_points3d

FILES = dict(hostile_pickles(Path("ran")))
OF_OTHERS = ("IPython", "pandas", "pip", "dill", "joblib", "cloudpickle")
WEIGHTS = table(**{"0.weight": tensor((2, 2), (2, 1))})


def content(state):
    buffer = io.BytesIO()
    torch.save({"models": {"latest": state}, "optimizer": ("Adam", {"state": {}})}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("what", FILES)
def test_hostile_checkpoint_runs_nothing(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    Path("latest.pt").write_bytes(FILES[what])
    if what.startswith(OF_OTHERS):  # stood in for by nothing, wherever it lies
        with contextlib.suppress(UnbackdoorError):
            assert all(isinstance(value, torch.Tensor) for value in read_points3d("latest.pt").values())
    else:
        with pytest.raises(UnbackdoorError):
            read_points3d("latest.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]


@pytest.mark.parametrize("written", [as_zip, as_legacy])
@pytest.mark.parametrize("module", ["omegaconf.dictconfig.DictConfig", "somebody.settings.Config", "typing.Any"])
def test_classes_of_configurations_are_left_out_and_never_looked_up(tmp_path, written, module):
    config = name(module) + b")\x81" + table(_content=table(lr=b"K\x01")) + b"b"
    weights = WEIGHTS if written is as_zip else b"}"
    (tmp_path / "c.pt").write_bytes(written(table(models=table(latest=weights), config=config)))
    if written is as_zip:
        assert list(read_points3d(tmp_path / "c.pt")) == ["0.weight"]
    else:
        with pytest.raises(CheckpointMismatch, match="no tensors"):
            read_points3d(tmp_path / "c.pt")


@pytest.mark.parametrize("module", ["os.system", "builtins.eval", "torch.hub.load", "numpy.load", "subprocess.Popen"])
def test_functions_that_attacks_are_made_of_are_refused(tmp_path, module):
    evil = name(module) + row(text("x")) + b"R"
    (tmp_path / "c.pt").write_bytes(as_zip(table(models=table(latest=WEIGHTS), config=evil)))
    with pytest.raises(UnsafeCheckpoint, match=r"refused"):
        read_points3d(tmp_path / "c.pt")


def test_weights_that_are_no_finite_floats_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    good = {n: v.clone() for n, v in model.state_dict().items()}
    for bad, error in ((torch.full((2, 2), torch.nan), NonFinite), (torch.ones(2, 2).long(), CheckpointMismatch)):
        (tmp_path / "c.pt").write_bytes(content({**good, "0.weight": bad}))
        with pytest.raises(error, match=r"0\.weight"):
            load_points3d(model, tmp_path / "c.pt")
        assert torch.equal(model[0].weight, good["0.weight"])


def damage(folder, count):
    model = nn.Sequential(nn.Linear(2, 2))
    check_reader(lambda path: load_points3d(model, path), {"c.pt": content(model.state_dict())}, folder, count=count)


def test_damaged_checkpoint_ends_in_an_error_of_ours(tmp_path):
    damage(tmp_path, 2000)


@pytest.mark.slow
def test_damaged_checkpoint_ends_in_an_error_of_ours_many_times(tmp_path):
    damage(tmp_path, 50_000)
