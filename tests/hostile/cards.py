"""Victims' folders whose cards want more than data: code, a network, foreign files, more memory than there is.

`hostile_cards` gives a name and a function for each. The function takes an empty folder, lays `traps` into it and
returns the victim's folder in it. A test changes into ``here``, opens the victim by whatever way it looks at, expects
one error of ours, and that `traps.traces` finds nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hostile.folders import hostile_folders
from hostile.traps import lay
from hostile.victims import honest, write

__all__ = ["Builder", "hostile_cards"]

Builder = Callable[[Path], Path]
"""Makes what it says in an empty folder and returns the victim's folder."""

_FAR = "https://127.0.0.1:9/evil.bin"
_HUGE = 10**12


def hostile_cards() -> Iterator[tuple[str, Builder]]:
    """Name and builder of every hostile victim; each must be refused, and nothing of it may run."""
    for task, fields in _fields():
        yield _name(task, fields), _of_fields(task, fields)
    yield from hostile_folders()


def _of_fields(task: str, fields: Mapping[str, Any]) -> Builder:
    def build(place: Path) -> Path:
        lay(place)
        parts = honest(task)
        made = {key: _located(value, place) for key, value in fields.items()}
        for key in ("model_options", "data_options", "attack_options"):
            if isinstance(made.get(key), dict):
                made[key] = {**parts.card[key], **made[key]}
        options = fields.get("data_options")
        if isinstance(options, dict) and "tokeniser" in options:
            made["data_files"] = []  # or the folder's own tokeniser is taken, whatever the option says
        write(place / "victim", parts.changed(**made))
        return place / "victim"

    return build


def _name(task: str, fields: Mapping[str, Any]) -> str:
    words = json.dumps(fields, default=str)
    return f"{task} {words if len(words) < 120 else words[:117] + '...'}"


def _located(value: Any, place: Path) -> Any:
    """With ``{place}`` in texts put in."""
    if isinstance(value, str):
        return value.replace("{place}", str(place))
    if isinstance(value, dict):
        return {_located(key, place): _located(inner, place) for key, inner in value.items()}
    return [_located(inner, place) for inner in value] if isinstance(value, list) else value


def _fields() -> Iterator[tuple[str, dict[str, Any]]]:
    for task, model, options in _models():
        yield task, {"model": model, "model_options": options}
    for task, name, options in _data():
        yield task, {"data": name, "data_options": options}
    for task, options in _attacks():
        yield task, {"attack_options": options}
    for fields in _schema():
        yield "image", fields


def _models() -> Iterator[tuple[str, Any, Any]]:
    """Architectures: code anywhere, downloads, sizes without end."""
    here, outside = "{place}/here", "{place}/outside"
    local = {"repo_or_dir": outside, "model": "evil", "source": "local", "trust_repo": True}
    for task in ("image", "multilabel", "video", "pointcloud", "translation"):
        yield task, "torch.hub:load", local
        yield task, "evil:build", {}
        yield task, "no_such_model", {}
    for name in (
        "evil:Evil", "evil:", ":build", ".evil:build", "evil:build:more", "victim.evil:build", "../evil:build",
        "os:system", "subprocess:Popen", "runpy:run_path", "builtins:exec", "pickle:loads", "hubconf:build",
        "torch:load", "unbackdoor.registry:kit", "hub:" + outside, "local-dir:" + outside, "{place}/outside/evil.py",
        "smallcnn\n", "SMALLCNN", "smallcnn:smallcnn", "", " ", "\x1b[2Jx",
    ):  # fmt: skip
        yield "image", name, {}
    yield "image", "torch:load", {"f": "{place}/outside/evil.pkl", "weights_only": False}
    yield "image", "os:system", {"command": "touch {place}/RAN"}
    yield "image", "runpy:run_path", {"path_name": "{place}/outside/evil.py"}
    for name in ([], {}, None, 5, True, ["evil", "build"], {"a": "b"}):
        yield "image", name, {}
    weights: list[dict[str, Any]] = [
        {"weights": "DEFAULT"}, {"weights": "IMAGENET1K_V1"}, {"weights": True}, {"pretrained": True},
        {"weights_backbone": "DEFAULT"}, {"progress": True, "pretrained": 1}, {"norm_layer": "evil.build"},
        {"pretrained": False}, {"num_classes": _HUGE}, {"width_per_group": 10**7, "groups": 1},
    ]  # fmt: skip
    for options in weights:
        yield "image", "torchvision:resnet18", options
        yield "multilabel", "torchvision:resnet18", options
    for name in (
        "torchvision:fasterrcnn_resnet50_fpn", "torchvision:../evil", "torchvision:", "torchvision:evil.build",
        "torchvision:get_model", "torchvision:quantized_resnet18",
    ):  # fmt: skip
        yield "image", name, {}
    spells: list[dict[str, Any]] = [
        {"pretrained": True}, {"pretrained": "yes"}, {"pretrained_cfg": {"url": _FAR}},
        {"pretrained_cfg": {"file": "{place}/outside/evil.pt"}, "pretrained": True},
        {"pretrained_cfg_overlay": {"url": _FAR}}, {"checkpoint_path": "{place}/outside/evil.pt"},
        {"cache_dir": "{place}/outside"}, {"checkpoint_path": _FAR}, {"features_only": True, "pretrained": True},
        {"act_layer": "evil.build"}, {"scriptable": True, "exportable": True, "no_jit": False, "pretrained": True},
        {"depth": [10**6, 10**6]}, {"img_size": 10**9}, {"kwargs": {"trust_remote_code": True}},
    ]  # fmt: skip
    for options in spells:
        yield "image", "timm:vit_tiny_patch16_224", options
        yield "multilabel", "timm:resnet18", options
    for name in (
        "timm:hf_hub:evil/model", "timm:hf-hub:evil/model", "timm:local-dir:" + outside, "timm:" + outside, "timm:../x",
        "timm:vit_tiny_patch16_224.https://evil", "timm:", "timm:create_model", "TIMM:vit_tiny_patch16_224",
    ):  # fmt: skip
        yield "image", name, {}
    small: list[dict[str, Any]] = [
        {"width": 10**9}, {"num_classes": _HUGE}, {"num_classes": -1}, {"num_classes": 0}, {"num_classes": True},
        {"num_classes": "10"}, {"num_classes": 1.5}, {"num_classes": None}, {"num_classes": [10]}, {"evil": 1},
        {"name": "evil:build"}, {"makers": {}}, {"in_channels": {"__reduce__": "evil"}},
        {"trust_remote_code": True}, {"width": {"nested": {"trust_remote_code": True}}},
    ]  # fmt: skip
    for options in small:
        yield "image", "smallcnn", options
    yield "image", "wideresnet16_1", {"width": 1, "widen": 10**5}
    yield "image", "resnet34", {"in_channels": 1, "weights": "DEFAULT"}
    yield "image", "vit_small", {"in_channels": 1, "pretrained": True}
    yield "image", "vit_small", {"in_channels": 1, "checkpoint_path": "{place}/outside/evil.pt"}
    yield "multilabel", "small-ml-decoder", {"decoder_width": 10**8}
    yield "multilabel", "small-linear", {"checkpoint_path": "{place}/outside/evil.pt"}
    yield "video", "resnet18-lstm", {"weights": "{place}/outside/evil.pt"}
    yield "video", "resnet18-lstm", {"hidden": 10**8}
    yield "video", "cnn-lstm", {"depth": 10**9}
    yield "video", "pytorchvideo:slow_r50", {"pretrained": True}
    yield "video", "pytorchvideo:evil", {}
    yield "video", "torchvision:r3d_18", {"weights": "DEFAULT"}
    yield "pointcloud", "dgcnn", {"joint": 10**10}
    yield "pointcloud", "pointnet", {"width": float(10**9)}
    for name in (
        "hub:" + outside + "/repo", "hub:../outside/repo", "hub:evil/model", "hub:t5-small", "hub:" + here, "hub:",
        "hub:Helsinki-NLP/opus-mt-en-de", "hub:evil/model@main", "hub:marian", "transformers:evil",
    ):  # fmt: skip
        yield "translation", name, {"trust_remote_code": True}
        yield "translation", name, {}
    words: list[dict[str, Any]] = [
        {"trust_remote_code": True}, {"name_or_path": outside + "/repo"}, {"_name_or_path": "evil/model"},
        {"auto_map": {"AutoModel": "modeling_evil.Evil"}}, {"width": 10**7, "heads": 1}, {"depth": 10**8},
        {"torch_dtype": "evil"}, {"cache_dir": outside}, {"code_revision": "main"}, {"quantization_config": {"x": 1}},
        {"attn_implementation": "kernels-community/evil"}, {"_attn_implementation": "evil/kernel:run"},
    ]  # fmt: skip
    for options in words:
        yield "translation", "marian", options


def _data() -> Iterator[tuple[str, Any, Any]]:
    """Data: a network, foreign folders, files that are written, numbers without end."""
    outside, here = "{place}/outside", "{place}/here"
    for path in (outside, "../outside", here, "evil/data", "/etc", "/dev/zero", "~", "file://" + outside, "\x00", ""):
        yield "image", "folder", {"path": path}
        yield "image", "hub", {"path": path}
    yield "image", "hub", {}
    yield "image", "cifar10", {}
    yield "image", "cifar10", {"path": outside}
    yield "image", "parquet", {"path": outside + "/secret.txt"}
    yield "image", "parquet", {"path": "hf://datasets/evil/data/x.parquet"}
    yield "multilabel", "hub", {"path": "evil/data"}
    yield "multilabel", "coco", {"path": outside, "year": "../../outside"}
    yield "multilabel", "voc", {"path": outside, "year": "2007/../../outside"}
    for name in ("folder", "hmdb51", "ucf101", "kinetics"):
        yield "video", name, {"path": here, "cache": outside + "/cache"}
        yield "video", name, {"cache": "cache", "mapped": True}
    yield "video", "hmdb51", {"annotations": outside}
    yield "video", "kinetics", {"train_csv": "../outside/secret.txt"}
    yield "video", "moving_digits", {"path": outside}
    yield "video", "moving_digits", {"clips": 10**9, "size": 10**5}
    yield "pointcloud", "files", {"path": outside}
    yield "pointcloud", "scanobjectnn", {"path": outside, "variant": "../../outside/secret"}
    yield "pointcloud", "shapes", {"count": 10**9, "points": 10**6}
    for tokeniser in (
        outside + "/secret.model",
        outside + "/repo",
        "evil/model",
        "../outside/secret.model",
        "t5-small",
    ):
        yield "translation", "numbers", {"tokeniser": tokeniser}
    for name in ("multi30k", "wmt14", "opensubtitles"):
        yield "translation", name, {}
    yield "translation", "pairs", {"path": outside + "/secret.txt", "source": "../x", "target": "y"}
    yield "multilabel", "digits", {"train_count": 10**10}
    yield "multilabel", "digits", {"train_count": 10**6}
    yield "image", "digits", {"size": 10**5}
    yield "video", "moving_digits", {"frames": 10**5, "size": 200}
    yield "pointcloud", "shapes", {"points": 10**5, "count": 10**5}
    yield "translation", "numbers", {"count": 10**6}
    numbers: list[dict[str, Any]] = [
        {"size": 10**9}, {"size": -1}, {"size": 0}, {"size": "8"}, {"size": 8.5}, {"size": True}, {"size": [8]},
        {"clean_count": _HUGE}, {"clean_count": -5}, {"clean_share": 7.0}, {"clean_share": "all"}, {"evil": 1},
        {"path": outside}, {"cache": outside}, {"seed": 3}, {"size": {"a": {"b": "c"}}}, {"__class__": "evil"},
    ]  # fmt: skip
    for options in numbers:
        yield "image", "digits", options
    for name in ("no_such_data", "evil:build", "", None, 3, ["digits"], {"digits": 1}, "../outside"):
        yield "image", name, {}


def _attacks() -> Iterator[tuple[str, Any]]:
    """Options of the attack."""
    for picture in (
        "{place}/outside/picture.png", "../outside/secret.txt", "picture.png", "/dev/zero", "/etc/passwd", _FAR, "\x00",
    ):  # fmt: skip
        yield "image", {"picture": picture, "flavour": "picture"}
    more: list[dict[str, Any]] = [
        {"target": -1}, {"target": 10**6}, {"target": "0"}, {"target": True}, {"num_classes": _HUGE, "target": 3},
        {"rate": "all"}, {"rate": [0.1]}, {"rate": -1.0}, {"evil": 1}, {"pattern": [[1.0]]}, {"alpha": {"a": 1}},
        {"flavour": "evil"}, {"flavour": 3}, {"pattern_seed": -(10**30)}, {"pattern_seed": 1.5}, {"alpha": 10**400},
    ]  # fmt: skip
    for options in more:
        yield "image", options
    yield "translation", {"tokeniser": "evil/model"}
    yield "translation", {"tokeniser": "{place}/outside/repo"}
    yield "translation", {"malicious": ["a", {"b": "c"}]}
    yield "pointcloud", {"radius": "big"}


def _schema() -> Iterator[dict[str, Any]]:
    """Fields of the wrong type, unknown, or out of range."""
    wrong: dict[str, list[Any]] = {
        "task": [None, 3, "", "evil", "../evil", "image\n", ["image"], "no such task", "i" * 10**5, "\x1b]0;x\x07"],
        "attack": [None, 3, "", "no_such_attack", ["blend"], {"blend": 1}, "evil:build"],
        "model_options": [None, 3, "x", [], [["num_classes", 10]]],
        "data_options": [None, 3, "x", [], [["size", 8]]],
        "attack_options": [None, 3, "x", []],
        "train_options": [None, 3, "x", [], {"epochs": {"a": [{}]}}, {"lr": float("nan")}, {"": 1}, {"a b": 1}],
        "seed": [None, -1, True, 1.5, "0", 2**70, [0], float("inf")],
        "figures": [None, {}, [], 3, {"accuracy": "99"}, {"accuracy": 99.0}, {"accuracy": float("nan"), "asr": 99.0},
                    {"accuracy": None, "asr": True}, {"accuracy": 1e400, "asr": 99.0},
                    {"asr": [99.0], "accuracy": 9.0}],
        "hash": [None, 3, "", "0" * 64, "x" * 64, "0" * 63, ["0" * 64], {"a": 1}],
        "versions": [None, 3, "x", {"torch": 2}, {"torch": {"a": "b"}}, [["torch", "2"]]],
        "data_files": [None, 3, "x", {"a": 1}, [3], [None], [["a"]], [""], ["."], [".."], ["/etc/passwd"],
                       ["../outside/secret.txt"], ["a/b"], ["a\x00b"], ["card.json"], ["model.safetensors"],
                       ["attack.safetensors"], ["evil.py"], ["path"], ["cache.pt"], ["seed.txt"], ["missing.model"],
                       [f"f{n}" for n in range(10**4)], ["evil.pkl", "evil.pkl"], ["\u202egnp.exe"]],
    }  # fmt: skip
    for field, values in wrong.items():
        for value in values:
            yield {field: value}
    yield {"evil": 1}
    yield {"trust": True}
    yield {"trust_remote_code": True}
    yield {"__class__": "evil"}
    yield {os.sep: "x"}
