"""Which objects may come out of a pickle beside plain values, and how each may be called.

All are data: tensors, containers, names of files, dates and ``argparse.Namespace``. Arguments are looked at too.
Scalars and arrays of numpy and configurations of well-known libraries become empty stand-ins: numpy's own methods
believe whatever sizes a pickle states and write beyond their memory, and no weight of a network is one of them.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
import pathlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from unbackdoor.checkpoint.pickles import Description, Made, Odd, check_hashable

__all__ = ["CONFIGURATIONS", "Allowed"]

CONFIGURATIONS = (
    "addict.", "easydict.", "lightning.", "lightning_fabric.", "ml_collections.", "mmcv.", "mmengine.", "omegaconf.",
    "pytorch_lightning.", "torch_points3d.", "yacs.",
)  # fmt: skip
"""Beginnings of the names of classes that lie beside honest weights and are left out."""

_TYPES = {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple", "type")}
_TYPES |= {f"numpy.{name}" for name in ("bool", "bool_", "float16", "float32", "float64", "int32", "int64", "uint8")}
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,6}")
_STORAGES = {
    "Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexFloat": 8, "ComplexDouble": 16, "QInt8": 1, "QUInt8": 1, "QInt32": 4, "Untyped": 1,
}  # fmt: skip
_STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
_TORCH = re.compile(r"torch\.(u?int\d+|q?u?int\d+(x\d)?|b?float\w*|double|half|long|short|complex\d+|bool|per_\w+|Size"
                    r"|device|Tensor|nn\.parameter\.Parameter)")  # fmt: skip


class _Nothing:
    """Stands in for a class that a file names; takes whatever it is given and does nothing with it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Allowed:
    """The rules for one file.

    Args:
        stands_in: Which names, beside `CONFIGURATIONS`, may become empty stand-ins.
    """

    def __init__(self, stands_in: Callable[[str], bool] = lambda _: False) -> None:
        """Keep them."""
        self.stands_in = stands_in

    def known(self, name: str) -> bool:
        """Whether a pickle may name it."""
        return name in _CALLS or name in _TYPES or self._is_torch(name) or self._empty(name)

    def _empty(self, name: str) -> bool:
        return name.startswith(CONFIGURATIONS) or (self.stands_in(name) and name not in _CALLS)

    def _is_torch(self, name: str) -> bool:
        storage = _STORAGE.fullmatch(name)
        return bool(_TORCH.fullmatch(name)) or (storage is not None and storage[1] in _STORAGES)

    def call(self, target: Made, given: list[Any], found: Description) -> Made | None:
        """What a call of a function, or setting an object's state, makes; None where that is not allowed.

        Raises:
            Odd: The arguments are not what honest files have.
        """
        if target.kind != "global":
            return _filled(target, given[0])
        if target.name in _CALLS:
            return _CALLS[target.name](given, found)
        if self._empty(target.name) or target.name in _TYPES:
            return Made("object", target.name, given)
        return None

    def substitutes(self, found: Description) -> list[tuple[Any, str]]:
        """What `torch.load` shall use under the names in a file that it does not know by itself."""
        made: list[tuple[Any, str]] = []
        for name in sorted(found.named):
            if name in _REAL:
                made.append((_REAL[name], name))
            elif name in found.filled and self._empty(name):
                made.append(({"dict": OrderedDict, "list": list}[found.filled[name]], name))
            elif self._empty(name) or name in _TYPES or name.startswith("numpy."):
                made.append((type("Nothing", (_Nothing,), {}), name))
        return made


def storage(given: list[Any], found: Description, fields: int) -> Made | None:
    """What a reference to a storage stands for; its bytes are noted.

    Args:
        given: ``("storage", type, key, location, number of elements)`` and, in old files, a view of it.
        found: Where to note them.
        fields: How many that are.
    """
    if len(given) != fields or given[0] != "storage" or not isinstance(given[1], Made):
        return None
    kind, key, count = _STORAGE.fullmatch(given[1].name), given[2], given[4]
    if kind is None or kind[1] not in _STORAGES or not isinstance(key, str) or not _counts([count]):
        return None
    width = _STORAGES[kind[1]]
    size = width * count
    if found.storages.setdefault(key, size) != size and min(found.storages[key], size) > 0:
        raise Odd(f"it states two sizes for the storage {key[:40]!r}")
    if fields == 6 and given[5] is not None:
        view = given[5]
        if not isinstance(view, Made) or len(view.items) != 3 or not _counts(view.items[1:]):
            return None
        if (view.items[1] + view.items[2]) * width > size:
            raise Odd(f"it cuts a view out of the storage {key[:40]!r} that reaches beyond it")
        size = view.items[2] * width
        key = f"{key}[{view.items[1]}]"
    return Made("storage", key, [width, size])


def _counts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 for value in values)


def _tensor(given: list[Any], found: Description) -> Made | None:
    if len(given) < 4 or not isinstance(given[0], Made) or given[0].kind != "storage":
        return None
    return _laid_out(given, given[0].items[0], found)


def _tensor_of_dtype(given: list[Any], found: Description) -> Made | None:
    if len(given) < 7 or not isinstance(given[0], Made) or given[0].kind != "storage" or not isinstance(given[6], Made):
        return None
    dtype = getattr(torch, given[6].name.removeprefix("torch."), None)
    return _laid_out(given, dtype.itemsize, found) if isinstance(dtype, torch.dtype) else None


def _laid_out(given: list[Any], width: int, found: Description) -> Made | None:
    place, offset, size, stride = given[:4]
    if not (isinstance(size, Made) and isinstance(stride, Made)):
        return None
    stored, sides, steps = place.items[1], size.items, stride.items
    if len(sides) != len(steps) or not _counts([offset, *sides, *steps]):
        raise Odd("it holds a tensor whose size and stride are no whole numbers")
    last = offset + sum((side - 1) * step for side, step in zip(sides, steps, strict=True)) + 1
    count = math.prod(sides)
    if count and last * width > stored:
        raise Odd(f"it holds a tensor of shape {_shape(sides)} that reaches beyond its storage")
    found.tensors[place.name, width, offset, tuple(sides), tuple(steps)] = count * width
    return Made("tensor")


def _shape(sides: list[int]) -> str:
    text = str(tuple(sides))
    return text if len(text) < 60 else f"{text[:60]}..."


def _parameter(given: list[Any], _: Description) -> Made | None:
    return given[0] if given and isinstance(given[0], Made) and given[0].kind == "tensor" else None


def _of_type(given: list[Any], found: Description) -> Made | None:
    """``(function, class, arguments, state)``: a tensor with attributes of its own."""
    if len(given) != 4 or not all(isinstance(part, Made) for part in given[:3]):
        return None
    function, cls, inner, _ = given
    if not function.name.startswith("torch._utils._rebuild") or function.name not in _CALLS:
        return None
    if cls.name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return None
    return _CALLS[function.name](inner.items, found)


def _container(kind: str) -> Callable[[list[Any], Description], Made | None]:
    def make(given: list[Any], _: Description) -> Made | None:
        for part in given:
            if isinstance(part, Made):
                for item in part.items:
                    check_hashable(item)
        return Made(kind, items=list(given))

    return make


def _plain(*kinds: type) -> Callable[[list[Any], Description], Made | None]:
    """A call with plain values alone."""

    def make(given: list[Any], _: Description) -> Made | None:
        return Made("plain") if len(given) <= 64 and all(isinstance(part, kinds) for part in given) else None

    return make


def _size(given: list[Any], _: Description) -> Made | None:
    if len(given) == 1 and isinstance(given[0], Made) and given[0].kind in ("tuple", "list"):
        return Made("tuple", items=given[0].items) if _counts(given[0].items) else None
    return None


def _encoded(given: list[Any], _: Description) -> Made | None:
    if len(given) == 2 and isinstance(given[0], str) and given[1] in ("latin1", "latin-1"):
        return Made("bytes", items=[len(given[0])])
    return None


def _bytes(given: list[Any], _: Description) -> Made | None:
    if not given:
        return Made("bytes", items=[0])
    return Made("plain") if len(given) == 1 and isinstance(given[0], Made) and given[0].kind == "bytes" else None


def _date(given: list[Any], found: Description) -> Made | None:
    if len(given) == 1 and isinstance(given[0], Made) and given[0].kind == "bytes":
        return Made("plain") if given[0].items[0] in (4, 6, 10) else None
    return _plain(int)(given, found)


def _dtype(given: list[Any], _: Description) -> Made | None:
    if len(given) == 3 and isinstance(given[0], str) and _DTYPE.fullmatch(given[0]):
        return Made("dtype", given[0])
    return None


def _scalar(given: list[Any], _: Description) -> Made | None:
    if len(given) != 2 or not all(isinstance(part, Made) for part in given):
        return None
    kind, content = given
    if kind.kind != "dtype" or content.kind != "bytes" or content.items[0] != np.dtype(kind.name).itemsize:
        return None
    return Made("plain")


def _array(given: list[Any], _: Description) -> Made | None:
    if len(given) == 3 and isinstance(given[0], Made) and given[0].name == "numpy.ndarray":
        shape = given[1]
        return Made("array") if isinstance(shape, Made) and shape.items == [0] else None
    return None


def _filled(target: Made, state: Any) -> Made | None:
    """Setting the state of an object."""
    if target.kind == "object":
        return target
    parts = state.items if isinstance(state, Made) else []
    if target.kind == "dict":  # `_metadata` of a state dict
        return target if isinstance(state, Made) and state.kind == "dict" and parts[::2] == ["_metadata"] else None
    if target.kind == "dtype" and len(parts) == 8:
        width = np.dtype(target.name).itemsize
        fits = parts[0] == 3 and parts[1] in ("<", "|", "=", ">") and parts[2:5] == [None] * 3
        return target if fits and parts[5] in (-1, width) and parts[6] in (-1, 1, 4) and parts[7] in (0, 8) else None
    if target.kind == "array" and len(parts) == 5:
        version, shape, kind, _, content = parts
        if version == 1 and all(isinstance(part, Made) for part in (shape, kind, content)) and _counts(shape.items):
            fits = kind.kind == "dtype" and content.kind == "bytes"
            if fits and content.items[0] == math.prod(shape.items) * np.dtype(kind.name).itemsize:
                return target
    return None


def _namespace(given: list[Any], _: Description) -> Made | None:
    return Made("object", "argparse.Namespace") if not given else None


def _ordered(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()  # `torch.load` fills no defaultdict


_REBUILD = "torch._utils._rebuild_"
_CALLS: dict[str, Callable[[list[Any], Description], Made | None]] = {
    f"{_REBUILD}tensor": _tensor,
    f"{_REBUILD}tensor_v2": _tensor,
    f"{_REBUILD}tensor_v3": _tensor_of_dtype,
    f"{_REBUILD}parameter": _parameter,
    f"{_REBUILD}parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _size,
    "torch.device": _plain(str, int),
    "collections.OrderedDict": _container("dict"),
    "collections.Counter": _container("dict"),
    "collections.defaultdict": _container("dict"),
    "builtins.set": _container("set"),
    "builtins.frozenset": _container("set"),
    "builtins.complex": _plain(int, float),
    "builtins.slice": _plain(int, type(None)),
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encoded,
    "argparse.Namespace": _namespace,
    "datetime.datetime": _date,
    "datetime.date": _date,
    "datetime.timedelta": _plain(int),
    "numpy.dtype": _dtype,
    "numpy.ndarray": lambda _given, _found: None,
}
_REAL: dict[str, Any] = {
    "collections.defaultdict": _ordered,
    "builtins.frozenset": frozenset,
    "builtins.slice": slice,
    "builtins.bytes": bytes,
    "argparse.Namespace": argparse.Namespace,
    "datetime.datetime": dt.datetime,
    "datetime.date": dt.date,
    "datetime.timedelta": dt.timedelta,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # of numpy 1 and 2
    _CALLS |= {f"{_module}.scalar": _scalar, f"{_module}._reconstruct": _array}
for _module in ("pathlib", "pathlib._local"):  # until and from Python 3.13
    for _name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"):
        _CALLS[f"{_module}.{_name}"] = _plain(str)
        _REAL[f"{_module}.{_name}"] = pathlib.PurePosixPath if "Posix" in _name else pathlib.PureWindowsPath
