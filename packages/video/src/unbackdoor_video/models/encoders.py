"""What looks at one frame: a small convolutional network, or a ResNet of torchvision without its classifier."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.checkpoint import read
from unbackdoor.errors import BadOption, UnsafeCheckpoint

__all__ = ["ResNetEncoder", "SmallEncoder"]


class SmallEncoder(nn.Module):
    """Convolutions 3x3 with BatchNorm, each halved by a max-pool, then an average pool to a few cells.

    Args:
        in_channels: 3 for colour, 1 for grey.
        width: Channels of the first convolution; those that follow have 2 and 4 times as many, at most.
        depth: Number of convolutions.
        grid: Cells a side of the last map: where something is, not only what.
    """

    def __init__(self, in_channels: int = 3, width: int = 16, depth: int = 3, grid: int = 2) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        if min(in_channels, width, depth, grid) < 1:
            raise BadOption(f"in_channels is {in_channels}, width {width}, depth {depth}, grid {grid}; all at least 1.")
        layers: list[nn.Module] = []
        before = in_channels
        for place in range(depth):
            after = width * min(2**place, 4)
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            if place < depth - 1:
                layers.append(nn.MaxPool2d(2))
            before = after
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.features = before * grid * grid

    def forward(self, frames: Tensor) -> Tensor:
        """Frames ``(n, in_channels, h, w)`` to features ``(n, features)``."""
        return self.pool(self.layers(frames)).flatten(1)  # type: ignore[no-any-return]


class ResNetEncoder(nn.Module):
    """A ResNet of torchvision up to its average pool; grey frames are repeated to three channels.

    Args:
        name: Of torchvision's classification models, such as ``"resnet50"``.
        weights: File with its state dict, as torchvision saves it (ImageNet); the classifier in it is not used. None
            starts from random weights.
        small: A stem of 3x3 with stride 1 and no max-pool, for frames of about 32 pixels.
    """

    def __init__(self, name: str, weights: str | Path | None = None, *, small: bool = False) -> None:
        """Build it and load the weights.

        Raises:
            BadOption: The file holds weights of another network, or does not fit with ``small``.
        """
        super().__init__()
        if small and weights is not None:
            raise BadOption("small changes the first convolution, so weights do not fit; give one of the two.")
        network: Any = importlib.import_module("torchvision.models").get_model(name, weights=None)
        self.features = int(network.fc.in_features)
        network.fc = nn.Identity()
        if small:
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        if weights is not None:
            _fill(network, Path(weights), name)
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        """Frames ``(n, 1 or 3, h, w)`` to features ``(n, features)``."""
        colour = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames
        return self.network(colour)  # type: ignore[no-any-return]


def _fill(network: nn.Module, path: Path, name: str) -> None:
    try:
        tensors, _ = read(path)
    except UnsafeCheckpoint as error:
        raise BadOption(f"weights of {name} cannot be read from {path}: {error}") from error
    wanted = network.state_dict()
    given: dict[str, torch.Tensor] = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
    if set(given) != set(wanted) or any(given[key].shape != value.shape for key, value in wanted.items()):
        lacking = [key for key, value in wanted.items() if key not in given or given[key].shape != value.shape]
        raise BadOption(
            f"{path} holds no weights of {name} (such as {(lacking or sorted(set(given) - set(wanted)))[0]}); give "
            "torchvision's state dict of that network."
        )
    network.load_state_dict(given)
