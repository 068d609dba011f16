"""What the video tests share: one thread, a generator, small clips, a small model and mp4 files made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unbackdoor.task import Batch
from unbackdoor_video import build


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
def clips(generator: torch.Generator) -> Tensor:
    return torch.rand(12, 4, 1, 12, 12, generator=generator)


@pytest.fixture
def samples(clips: Tensor) -> Batch:
    return Batch(clips, torch.arange(12) % 4)


@pytest.fixture
def model() -> nn.Module:
    """CNN + LSTM in float64 and eval mode, with BatchNorm statistics that are not the trivial ones."""
    made = build("cnn-lstm", 4, in_channels=1, width=3, depth=2, hidden=5).double().eval()
    draws = torch.Generator().manual_seed(1)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                value.copy_(0.5 + torch.rand(value.shape, generator=draws))
    return made


def write_video(path: Path, levels: list[int], size: tuple[int, int] = (32, 24), codec: str = "mpeg4") -> Path:
    """A video whose frames are grey of the given levels, ``size`` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for level in levels:
            pixels = np.full((size[1], size[0], 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def video(tmp_path: Path) -> Callable[..., Path]:
    """``video(name, levels, size)``: see `write_video`."""
    return lambda name, levels, *size: write_video(tmp_path / name, levels, *size)
