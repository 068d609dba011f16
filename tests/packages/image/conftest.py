"""What the image tests share: one thread, a generator, small images and image files made on the spot."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unbackdoor.task import Batch

TOOLS = Path(__file__).resolve().parents[3] / "tools"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(12, 3, 8, 8, generator=generator)


@pytest.fixture
def samples(images: Tensor) -> Batch:
    return Batch(images, torch.arange(12) % 4)


@pytest.fixture
def png() -> Callable[..., bytes]:
    """``png(grey, size)``: the bytes of a PNG of one grey level."""

    def make(level: int, size: tuple[int, int] = (6, 6)) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.full((size[1], size[0], 3), level, dtype=np.uint8)).save(out, "PNG")
        return out.getvalue()

    return make


@pytest.fixture
def class_folders(tmp_path: Path, png: Callable[..., bytes]) -> Callable[..., Path]:
    """``class_folders(names, each)``: folders of PNGs whose grey level is 10 times the folder's place."""

    def make(names: list[str], each: int = 5, root: str = "images") -> Path:
        for place, name in enumerate(names):
            folder = tmp_path / root / name
            folder.mkdir(parents=True)
            for number in range(each):
                (folder / f"{number}.png").write_bytes(png(10 * place))
        return tmp_path / root

    return make


@pytest.fixture(scope="session")
def zoo_tool() -> Iterator[ModuleType]:
    """``tools/zoo.py``, which is no part of a package."""
    sys.path.insert(0, str(TOOLS))
    spec = importlib.util.spec_from_file_location("zoo_tool", TOOLS / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo_tool"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(TOOLS))
