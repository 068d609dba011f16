"""Files in the forms of ``torch.save`` whose pickles call something, or take all memory or time; written by hand.

`hostile_pickles` gives a name and the bytes of each. None may be read without an error of ours, within a second, and
nothing of it may run: whatever runs writes the file that the caller names.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path

__all__ = ["as_legacy", "as_zip", "hostile_pickles"]

_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_VERSION = b"\x80\x02M\xe9\x03."
_MACHINE = b"\x80\x02}."


def text(value: str) -> bytes:
    """Instructions that push a text."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    """Instructions that push a whole number."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def name(full: str) -> bytes:
    """Instructions that push a class or function."""
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def row(*parts: bytes) -> bytes:
    """Instructions that push a tuple."""
    return b"(" + b"".join(parts) + b"t"


def call(full: str, *parts: bytes) -> bytes:
    """Instructions that call a function."""
    return name(full) + row(*parts) + b"R"


def table(**entries: bytes) -> bytes:
    """Instructions that push a dictionary."""
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def stored(kind: str, count: int, key: str = "0") -> bytes:
    """Instructions that push a storage of ``count`` elements, in the form of zip archives."""
    return row(text("storage"), name(f"torch.{kind}Storage"), text(key), text("cpu"), number(count)) + b"Q"


def tensor(size: tuple[int, ...], stride: tuple[int, ...], count: int = 4, offset: int = 0) -> bytes:
    """Instructions that push a tensor of floats on a storage of ``count`` elements."""
    sizes, strides = (row(*map(number, values)) for values in (size, stride))
    hooks = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2", stored("Float", count), number(offset), sizes, strides, b"\x89", hooks
    )


def as_zip(body: bytes, head: bytes = b"\x80\x02", *, packed: bool = False, **more: bytes) -> bytes:
    """A file of ``torch.save`` with this pickle and one storage of four floats."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", head + body + b".")
        for path, content in {"byteorder": b"little", "data/0": bytes(16), "version": b"3\n", **more}.items():
            file.writestr(f"archive/{path}", content)
    return buffer.getvalue()


def as_legacy(body: bytes, head: bytes = b"\x80\x02") -> bytes:
    """The same as PyTorch wrote it before version 1.6."""
    return _MAGIC + _VERSION + _MACHINE + head + body + b"." + b"\x80\x02]."


def hostile_pickles(ran: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file.

    Args:
        ran: The file that a call writes.
    """
    forms = cycle(("zip", "legacy", "beside weights", "in a namespace", "deep"))
    for what, body in _calls(ran).items():
        form = next(forms)
        yield f"{what}, {form}", _formed(body, form)
    for what, body in _bombs().items():
        yield what, as_zip(body)
    for what, body in _bombs().items():
        if "storage" not in what and "tensor" not in what:
            yield f"{what}, legacy", as_legacy(body)
    yield from _whole(ran)


def _formed(body: bytes, form: str) -> bytes:
    weights = table(**{"0.weight": tensor((2, 2), (2, 1))})
    if form == "legacy":
        return as_legacy(body)
    if form == "beside weights":
        return as_zip(table(state_dict=weights, evil=body))
    if form == "in a namespace":
        namespace = name("argparse.Namespace") + b")\x81" + table(evil=body) + b"b"
        return as_zip(table(model=weights, args=namespace))
    if form == "deep":
        return as_zip(table(models=table(latest=weights), more=b"](" + row(b"](" + body + b"e") + b"e"))
    return as_zip(body)


def _calls(ran: Path) -> Mapping[str, bytes]:
    """Instructions that call something."""
    command, code = text(f"touch {ran}"), text(f"open({str(ran)!r}, 'w').close()")
    path = text(str(ran))
    system = name("os.system")
    module = call("importlib.import_module", text("os"))
    found = {
        full: call(full, command)
        for full in (
            "os.system", "posix.system", "nt.system", "os.popen", "subprocess.getoutput", "commands.getoutput",
            "platform.popen", "pty.spawn", "pydoc.pipepager", "shutil.rmtree", "webbrowser.open", "ctypes.CDLL",
            "importlib.import_module", "builtins.__import__", "socket.create_connection", "urllib.request.urlopen",
            "asyncio.create_subprocess_shell", "torch.hub.load", "torch.utils.cpp_extension.load",
            "torch._utils._import_dotted_name", "numpy.testing._private.utils.runstring", "pip.main",
            "multiprocessing.util.spawnv_passfds", "logging.config.fileConfig", "distutils.spawn.spawn",
        )
    }  # fmt: skip
    found |= {
        full: call(full, code)
        for full in (
            "builtins.eval", "builtins.exec", "__builtin__.eval", "__builtin__.execfile", "timeit.timeit",
            "cProfile.run", "profile.run", "bdb.run", "pdb.run", "code.interact", "doctest.debug_script",
            "torch.fx._exec", "numpy.f2py.crackfortran.myeval", "pandas.eval", "IPython.embed",
        )
    }  # fmt: skip
    found |= {
        full: call(full, path)
        for full in (
            "runpy.run_path", "runpy.run_module", "numpy.load", "numpy.fromfile", "torch.load", "torch.jit.load",
            "torch.package.PackageImporter", "torch.storage._load_from_bytes", "pickle.loads", "_pickle.loads",
            "dill.loads", "joblib.load", "cloudpickle.loads", "marshal.loads", "shelve.open", "builtins.open",
            "io.open", "pathlib.Path.unlink", "os.remove", "tempfile.mkdtemp", "zipfile.ZipFile", "tarfile.open",
        )
    }  # fmt: skip
    found |= {
        "partial": call("functools.partial", name("builtins.exec"), code) + b")R",
        "attrgetter": call("operator.attrgetter", text("system"))
        + row(call("importlib.import_module", text("os")))
        + b"R",
        "methodcaller": call("operator.methodcaller", text("system"), command),
        "getattr chain": call("builtins.getattr", name("builtins.__import__"), text("__call__"))
        + row(text("os"))
        + b"R",
        "getattr of a class": call("builtins.getattr", name("collections.OrderedDict"), text("__subclasses__")) + b")R",
        "map": call("builtins.list", call("builtins.map", system, row(command))),
        "function of marshalled code": call("types.FunctionType", call("marshal.loads", text("c")), b"}"),
        "state with __setstate__": name("argparse.Namespace")
        + b")\x81"
        + table(__setstate__=system)
        + b"b"
        + command
        + b"b",
        "state of a function": system + table(x=code) + b"b",
        "state of a module": module + table(x=code) + b"b",
        "new object of a function": system + row(command) + b"\x81",
        "new type": call("builtins.type", text("Evil"), b")", table(__del__=system)),
        "reconstructor": call("copyreg._reconstructor", name("subprocess.Popen"), name("builtins.object"), b"N"),
        "extension 1": b"\x82\x01" + row(command) + b"R",
        "extension 2": b"\x83\x01\x00" + row(command) + b"R",
        "extension 4": b"\x84\x01\x00\x00\x00" + row(command) + b"R",
        "instance": b"(" + command + b"ios\nsystem\n",
        "object": b"(" + system + command + b"o",
        "stack global": text("os") + text("system") + b"\x93" + row(command) + b"R",
        "new object with words": system + row(command) + b"}\x92",
        "persistent text": b"Pos.system\n",
        "persistent call": row(text("storage"), call("os.system", command), text("0"), text("cpu"), number(4)) + b"Q",
        "persistent module": row(text("module"), system, text("a.py"), text("source")) + b"Q",
        "persistent path": row(text("storage"), name("torch.FloatStorage"), text("../version"), text("cpu"), number(4))
        + b"Q",
        "rebuild of a type": call(
            "torch._tensor._rebuild_from_type_v2", system, name("torch.Tensor"), row(command), b"N"
        ),
        "factory": call("collections.defaultdict", call("functools.partial", system, command)),
        "codec": call("_codecs.encode", command, text("zlib_codec")),
        "decoding": call("codecs.decode", command, text("zlib_codec")),
        "date": call("datetime.datetime", call("os.system", command)),
        "whole model": name("__main__.Net") + b")\x81" + table(_parameters=b"}", _buffers=b"}", _modules=b"}") + b"b",
        "layer": name("torch.nn.modules.linear.Linear") + b")\x81" + table(forward=system) + b"b",
    }
    return found


def _bombs() -> Mapping[str, bytes]:
    """Instructions that take all memory or time, or reach where they must not."""
    doubled = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    lists = b"]" + b"".join(b"q" + bytes([i]) + b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(40))
    dtype = call("numpy.dtype", text("O8"), b"\x89", b"\x88")
    state = row(number(3), text("|"), b"NNN", number(8), number(8), number(0))
    floats = call("numpy.dtype", text("f8"), b"\x89", b"\x88")
    octets = call("_codecs.encode", text("x" * 8), text("latin1"))
    rebuilt = "numpy._core.multiarray._reconstruct"
    scalar = "numpy._core.multiarray.scalar"
    empty = row(number(0))
    array = call(rebuilt, name("numpy.ndarray"), empty, text("b"))
    huge = 10**12
    return {
        "doubled tuple as a key": b"}" + doubled + b"Ns",
        "doubled tuple in a set": call("builtins.set", b"](" + doubled + b"e"),
        "doubled tuple in a frozen set": call("builtins.frozenset", b"](" + doubled + b"e"),
        "doubled tuple counted": call("collections.Counter", b"](" + doubled + b"e"),
        "doubled tuple in pairs": call("collections.OrderedDict", b"](](" + doubled + b"Nee"),
        "doubled tuple": table(weights=doubled),
        "doubled lists": table(weights=b"](" + lists + b"e"),
        "deep tuple": b")" + b"\x85" * 20_000,
        "deep tuple as a key": b"})" + b"\x85" * 20_000 + b"Ns",
        "deep list": b"]" * 20_000 + b"a" * 19_999,
        "list in itself": b"]q\x00h\x00a",
        "dictionary in itself": b"}q\x00" + text("state_dict") + b"h\x00s",
        "giant number": b"}\x8a\xff" + b"\x7f" * 255 + b"Ns",
        "giant number of four bytes": b"\x8b\xff\xff\xff\x7f" + b"\xff" * 64,
        "giant number in digits": b"L" + b"9" * 10_000 + b"L\n",
        "giant text": b"X\xff\xff\xff\xffabc",
        "giant text of eight bytes": b"\x8d" + b"\xff" * 7 + b"\x7fabc",
        "frame": b"\x95" + b"\xff" * 7 + b"\x7f",
        "no end": b"(" * 20_000,
        "nothing": b"",
        "memo that is not there": b"h\x07",
        "memo far away": b"]r\xff\xff\xff\x7fj\xfe\xff\xff\x7f",
        "bytes without end": call("builtins.bytearray", number(huge)),
        "tensor without end": call("torch.FloatTensor", number(huge)),
        "untyped storage without end": call("torch.storage.UntypedStorage", number(huge)),
        "tensor beyond its storage": table(w=tensor((5,), (1,))),
        "tensor far beyond its storage": table(w=tensor((huge,), (1,))),
        "tensor repeated without end": table(w=tensor((huge,), (0,))),
        "tensor repeated in many ways": table(w=tensor((10**6, 10**6, 10**6), (0, 0, 0))),
        "tensor with a far offset": table(w=tensor((2,), (1,), offset=huge)),
        "tensor with a negative stride": table(w=tensor((2,), (-1,), offset=2)),
        "tensor with a negative size": table(w=tensor((-2,), (1,))),
        "storage larger than its entry": table(w=tensor((huge,), (1,), count=huge)),
        "storage a little larger than its entry": table(w=tensor((5,), (1,), count=5)),
        "storage that is not there": table(w=stored("Float", 4, key="7")),
        "sparse tensor without end": table(
            w=call("torch._utils._rebuild_sparse_tensor", name("torch.sparse_coo"), b")")
        ),
        "tensor without values": call(
            "torch._utils._rebuild_meta_tensor_no_storage", name("torch.float32"), b")", b")", b"\x89"
        ),
        "tensor that only wraps": call("torch._utils._rebuild_wrapper_subclass", name("torch.Tensor"), b")"),
        "array of pointers": call(scalar, dtype + state + b"b", octets),
        "array larger than its bytes": array + row(number(1), row(number(huge)), floats, b"\x89", octets) + b"b",
        "array made anew without end": call(rebuilt, name("numpy.ndarray"), row(number(huge)), text("b")),
        "dtype of its own": floats
        + row(number(3), text("<"), row(text("a")), b"NN", number(huge), number(1), number(63))
        + b"b",
        "scalar shorter than its type": call(scalar, floats, call("_codecs.encode", text("x"), text("latin1"))),
        "path of numbers": call("pathlib.PosixPath", number(1)),
        "size of texts": call("torch.Size", row(text("a"))),
    }


def _whole(ran: Path) -> Iterator[tuple[str, bytes]]:
    """Files that are odd as a whole."""
    evil = call("os.system", text(f"touch {ran}"))
    for protocol in (0, 1, 3, 4, 5):
        head = b"" if protocol == 0 else b"\x80" + bytes([protocol])
        yield f"protocol {protocol}, plain", head + evil + b"."
        yield f"protocol {protocol}, zip", as_zip(evil, head)
    yield "protocol 0 in letters", b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR."
    yield "plain pickle", b"\x80\x02" + evil + b"."
    yield "call in the head of a legacy file", _MAGIC.removesuffix(b".") + b"0" + evil + b"." + _VERSION + _MACHINE
    yield (
        "call for the version of a legacy file",
        _MAGIC + b"\x80\x02" + evil + b"." + _MACHINE + b"\x80\x02}.\x80\x02].",
    )
    yield "call for the keys of a legacy file", _MAGIC + _VERSION + _MACHINE + b"\x80\x02}.\x80\x02" + evil + b"."
    owner = row(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(10**12), b"N") + b"Q"
    yield "storage without end, legacy", as_legacy(table(w=owner))
    yield "zip bomb", as_zip(b"]" + b"N" * 5_000_000, packed=True)
    yield "zip bomb of a storage", as_zip(table(w=tensor((2,), (1,))), packed=True, **{"data/1": bytes(5_000_000)})
    yield "TorchScript", as_zip(b"}", **{"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"import os"})
    twice = io.BytesIO(as_zip(table(w=tensor((2,), (1,)))))
    with zipfile.ZipFile(twice, "a") as file:
        file.writestr("archive/data_pkl", b"\x80\x02" + evil + b".")
    yield "two pickles under one name", twice.getvalue().replace(b"archive/data_pkl", b"archive/data.pkl")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for part in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(part)
            content = b"\x80\x02" + evil + b"."
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    yield "tar of the oldest files", tar.getvalue()
    yield "zip behind a pickle", b"\x80\x02" + evil + b"." + as_zip(b"}")
    yield "zip in a zip", as_zip(b"}", **{"data/1": as_zip(evil)}).replace(b"data.pkl", b"data.pkI")
