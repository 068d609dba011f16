"""Reads a defence of the peer, and stands for what its whole runs load, draw, test and save."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from case import Case, Epochs
from torch import Tensor, nn


class Outside:
    """``torch`` as a module of the peer sees it: loaders give our batches, and no tensor asks for a GPU."""

    def __init__(self, loader: Callable[[Any], Any]) -> None:
        """``loader`` gives what stands for a `DataLoader` of a data set."""
        self.utils = SimpleNamespace(data=SimpleNamespace(DataLoader=lambda data, **words: loader(data)))

    def __getattr__(self, name: str) -> Any:
        """All else is torch's."""
        return getattr(torch, name)

    @staticmethod
    def zeros_like(like: Tensor, **words: Any) -> Tensor:
        """Where ``like`` is."""
        return torch.zeros_like(like, **{key: value for key, value in words.items() if key != "device"})


def peer_module(case: Case, name: str) -> ModuleType:
    """A defence of the peer by its file's name."""
    if str(case.folder) not in sys.path:
        sys.path.insert(0, str(case.folder))
    path = case.folder / "defense" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"peer_{name.replace('-', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Records:
    """What stands for the peer's record of an attack, its data sets, and its files."""

    def __init__(self, case: Case) -> None:
        """Three data sets that are only named."""
        self.case = case
        self.record = {
            "model": case.model.state_dict(),
            "clean_train": SimpleNamespace(wrapped_dataset=_Named(len(case.data.clean))),
            "clean_test": SimpleNamespace(name="clean", wrapped_dataset=_Named(0)),
            "bd_test": SimpleNamespace(name="triggered", wrapped_dataset=_Named(0)),
        }
        self.saved: dict[str, Tensor] = {}

    def lead(self, module: ModuleType, loader: Epochs) -> None:
        """Names of ``module`` that read, draw, plot or save lead here."""
        outside: dict[str, Any] = {
            "torch": Outside(lambda data: getattr(data, "name", loader)),
            "prepro_cls_DatasetBD_v2": lambda data: data,
            "choose_index": lambda settings, count: range(count),
            "generate_cls_model": lambda name, classes: copy.deepcopy(self.case.model),
            "general_plot_for_epoch": lambda *words, **more: None,
            "save_defense_result": lambda **words: self.saved.update(words["model"]),
        }
        for name, value in outside.items():
            if hasattr(module, name):
                setattr(module, name, value)

    def kept(self) -> nn.Module:
        """The model that the peer saved; its masks of pruning are multiplied in."""
        model = copy.deepcopy(self.case.model)
        state = {key: value for key, value in self.saved.items() if not key.endswith(("weight_orig", "weight_mask"))}
        for key, value in self.saved.items():
            if key.endswith("weight_orig"):
                state[key.removesuffix("_orig")] = value * self.saved[key.removesuffix("_orig") + "_mask"]
        model.load_state_dict(state)
        return model.eval()


class _Named:
    """A data set of which only the length is asked."""

    def __init__(self, count: int) -> None:
        self.count, self.getitem_all_switch = count, False

    def __len__(self) -> int:
        return self.count

    def subset(self, chosen: object) -> None:
        """All of it."""


def settings(case: Case, folder: str, **own: Any) -> SimpleNamespace:
    """What its runs read of their command line."""
    shape = case.loader(1)[0][0].shape
    common = {
        "device": "cpu", "model": "preactresnet18", "num_classes": len(case.data.classes), "random_seed": case.seed,
        "dataset": "cifar10", "input_height": shape[2], "input_width": shape[3], "input_channel": shape[1],
        "batch_size": case.size, "num_workers": 0, "pin_memory": False, "non_blocking": True, "amp": False,
        "frequency_save": 0, "defense_save_path": folder, "save_path": f"{folder}/", "log": f"{folder}/",
        "client_optimizer": "sgd", "sgd_momentum": 0.9, "lr_scheduler": "CosineAnnealingLR", "adam_betas": (0.9, 0.999),
    }  # fmt: skip
    return SimpleNamespace(**{**common, **own})
