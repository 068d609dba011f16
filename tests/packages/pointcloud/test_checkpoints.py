"""Checkpoints in the layout of torch-points3d, written here."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from unbackdoor.errors import CheckpointMismatch, FileRefused, UnsafeCheckpoint
from unbackdoor_pointcloud.models import build, load_points3d, read_points3d

RAN: list[str] = []


@pytest.fixture
def config_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class in a module of its own, as omegaconf's are; the module is gone when the file is read."""
    module = types.ModuleType("omegaconf.dictconfig")

    class DictConfig:
        def __init__(self) -> None:
            self.content = {"lr": 0.001}

        def __setstate__(self, state: dict[str, object]) -> None:
            RAN.append("state")

    DictConfig.__module__, DictConfig.__qualname__ = module.__name__, "DictConfig"
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return DictConfig


def written(path: Path, state: object, config: object) -> Path:
    torch.save(
        {
            "models": {"latest": state, "best_acc": state},
            "optimizer": ("Adam", {"state": {}, "param_groups": [{"lr": 0.1}]}),
            "schedulers": {"lr": config},
            "run_config": config,
            "dataset_properties": {"feature_dimension": 0, "num_classes": 4},
            "stats": {"train": []},
        },
        path,
    )
    return path


def test_weights_are_read_and_no_class_of_the_file_is_used(
    tmp_path: Path, config_class: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("pointnet2_small", 4, seed=1, width=0.2)
    path = written(tmp_path / "latest.pt", model.state_dict(), config_class())
    monkeypatch.delitem(sys.modules, "omegaconf.dictconfig")
    RAN.clear()
    found = read_points3d(path)
    assert RAN == []
    assert set(found) == set(model.state_dict())
    other = build("pointnet2_small", 4, seed=2, width=0.2)
    assert load_points3d(other, path, "best_acc") == []
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_other_names_are_taken_in_order(tmp_path: Path, config_class: type) -> None:
    theirs = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    mine = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.BatchNorm1d(4)})
    path = written(tmp_path / "c.pt", theirs.state_dict(), config_class())
    (notice,) = load_points3d(mine, path)
    assert "order" in notice
    assert torch.equal(mine["a"].weight, theirs[0].weight[:, :, 0, 0])
    with pytest.raises(CheckpointMismatch, match=r"\(4, 3, 1, 1\)"):
        load_points3d(nn.ModuleDict({"a": nn.Linear(5, 4), "b": nn.BatchNorm1d(4)}), path)
    with pytest.raises(CheckpointMismatch, match="7 tensors, the model 2"):
        load_points3d(nn.Linear(3, 4), path)


def test_what_is_no_such_checkpoint_is_refused(tmp_path: Path, config_class: type) -> None:
    with pytest.raises(FileRefused, match=r"nowhere\.pt"):
        read_points3d(tmp_path / "nowhere.pt")
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointMismatch, match="models"):
        read_points3d(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(UnsafeCheckpoint, match=r"text\.pt"):
        read_points3d(tmp_path / "text.pt")
    path = written(tmp_path / "c.pt", {"w": torch.zeros(1)}, config_class())
    with pytest.raises(CheckpointMismatch, match="latest, best_acc"):
        read_points3d(path, "worst")


def test_a_file_that_calls_something_does_not_run_it(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return RAN.append, ("bomb",)

    class Command:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    RAN.clear()
    for name, config in (("command.pt", Command()), ("bomb.pt", Bomb())):
        torch.save({"models": {"latest": {"w": torch.zeros(1)}}, "run_config": config}, tmp_path / name)
        with pytest.raises(UnsafeCheckpoint, match="refused"):
            read_points3d(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    assert RAN == []
