"""Points of a mesh's surface, out of the files in which meshes are passed on; no other file is looked at."""

from __future__ import annotations

import importlib
import io
import logging
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from unbackdoor.errors import BadData, TooLarge
from unbackdoor.files.reading import check_file, limits, reading, shown

__all__ = ["MESHES", "read_mesh"]

MESHES = (".off", ".ply", ".obj", ".stl")
_OFF_HEADER = re.compile(rb"\A\s*OFF[ \t]*(?=[0-9])")
_PLY_ELEMENT = re.compile(rb"^[ \t]*element[ \t]+(\S+)[ \t]+(\S+)", re.MULTILINE)
_OBJ_LINE = re.compile(rb"[vf][ \t]")
_OBJ_REFERENCE = re.compile(rb"/\S*")
_REPLACE = "remove or replace it"

logging.getLogger("trimesh").addHandler(logging.NullHandler())  # what is wrong with a file is said by an error


def read_mesh(path: Path, points: int, generator: torch.Generator) -> tuple[Tensor, bool]:
    """``points`` points of a mesh's surface, even by area, as trimesh samples them.

    A file without faces is a cloud, whose points are given as they are.
    The header of many files of ModelNet40, ``OFF490 518 0`` on one line, is mended. Materials and pictures that a mesh
    names are not looked for.

    Returns:
        float32 of shape ``(points, 3)``, or all points of a file without faces; and whether it was sampled.

    Raises:
        BadData: It is no mesh, or its faces have no area.
        TooLarge: It declares more than it holds.
        FileRefused: There is no such file.
    """
    trimesh, name, kind = importlib.import_module("trimesh"), shown(path), path.suffix.lower()
    if kind not in MESHES:
        raise BadData(f"{name} is no file of a mesh; give one of {', '.join(MESHES)}.")
    path = check_file(path, what="mesh", at_most=limits().memory)
    with reading(name, _REPLACE):
        content = path.read_bytes()
        loaded = trimesh.load(
            io.BytesIO(_prepared(content, kind, name)),
            file_type=kind[1:],
            process=False,
            skip_materials=True,
            resolver=_Nothing(),
        )
        parts = list(loaded.geometry.values()) if hasattr(loaded, "geometry") else [loaded]
        solid = [part for part in parts if len(getattr(part, "faces", ()))]
        if not solid:
            clouds = [np.asarray(part.vertices, dtype=np.float64).reshape(-1, 3) for part in parts]
            return _checked(np.concatenate(clouds) if clouds else np.empty((0, 3)), name), False
        mesh = trimesh.util.concatenate(solid)
        _checked(mesh.vertices, name)
        area = float(mesh.area)
        if not 0 < area < float("inf"):
            raise BadData(f"the faces of {name} have no area that could be sampled; {_REPLACE}.")
        seed = int(torch.randint(2**31, (), generator=generator))
        return _checked(trimesh.sample.sample_surface(mesh, points, seed=seed)[0], name), True


class _Nothing:
    """What trimesh asks for other files."""

    def get(self, name: str) -> NoReturn:
        raise BadData(f"a mesh refers to another file ({shown(name)}), which is not opened; {_REPLACE}.")

    __getitem__ = get


def _prepared(content: bytes, kind: str, name: str) -> bytes:
    """What trimesh reads of a file."""
    if kind == ".off":
        return _OFF_HEADER.sub(b"OFF\n", content, count=1)
    if kind == ".ply":
        _check_ply(content, name)
    if kind == ".obj":  # corners and faces alone: neither materials, groups nor textures change where points lie
        lines = content.replace(b"\r\n", b"\n").replace(b"\\\n", b" ").split(b"\n")
        kept = (_OBJ_REFERENCE.sub(b"", line.strip()) for line in lines)
        return b"\n".join(line for line in kept if _OBJ_LINE.match(line))
    return content


def _check_ply(content: bytes, name: str) -> None:
    head, end, body = content.partition(b"end_header")
    if not end:
        raise BadData(f"the header of {name} has no end; {_REPLACE}.")
    counts = [int(count) for _, count in _PLY_ELEMENT.findall(head)]
    if any(not 0 <= count <= len(body) for count in counts):
        raise TooLarge(f"{name} declares {max(counts, key=abs):,} elements in {len(body):,} bytes; {_REPLACE}.")
    if b"ascii" in head.split(b"element")[0] and len(body.strip().splitlines()) < sum(counts):
        raise BadData(f"{name} ends too early: {sum(counts):,} lines are declared; fetch it again.")


def _checked(points: Any, name: str) -> Tensor:
    with np.errstate(over="ignore"):
        found = torch.from_numpy(np.asarray(points, dtype=np.float32))
    if not bool(torch.isfinite(found).all()):
        raise BadData(f"{name} has points that are not finite; {_REPLACE}.")
    return found
