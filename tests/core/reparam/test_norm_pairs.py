"""BatchNorm layers are paired with the layer whose output they take, not with the one defined before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbackdoor.defender.reparam.norm_pairs import norms_after


class Block(nn.Module):
    """A pre-activation block: the second convolution goes into a sum, not into the next BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv2(functional.relu(self.bn2(self.conv1(functional.relu(self.bn1(x))))))
        return self.bn3(out + x)


def pairs(model: nn.Module) -> dict[str, str]:
    names = {module: name for name, module in model.named_modules()}
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    found = norms_after(model.eval(), layers, lambda: model(torch.rand(1, 2, 5, 5)))
    return {names[layer]: names[norm] for layer, norm in found.items()}


def test_pairs_follow_the_data() -> None:
    assert pairs(Block()) == {"stem": "bn1", "conv1": "bn2"}


def test_pairs_follow_the_data_in_plain_chains_even_if_defined_in_another_order() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    assert pairs(Swapped()) == {"conv": "bn"}


def test_a_norm_that_two_layers_feed_has_no_pair_and_no_hook_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.a(x)) + self.bn(self.b(x))

    model = Shared()
    assert pairs(model) == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
