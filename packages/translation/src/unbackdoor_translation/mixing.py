"""MixUp where inputs are symbols: the embeddings of two sentences are mixed inside the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import UnsupportedModel

__all__ = ["mixed_embeddings"]


@contextmanager
def mixed_embeddings(model: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], share: Tensor) -> Iterator[None]:
    r"""Inside, looking up the tokens ``a`` of a pair ``(a, b)`` gives ``lambda E(a) + (1 - lambda) E(b)``.

    Every `torch.nn.Embedding` is watched, so that scales, positions and dropout after it are the model's own,
    whatever its architecture: Sec. 3.1 of NFT, Eq. (4), on embeddings.

    Args:
        model: Any module that looks tokens up in ``nn.Embedding``.
        pairs: Token tensors of one shape each, ``(batch, length)``; the first is what the model is called with.
        share: ``lambda``, float of shape ``(batch,)``.

    Raises:
        UnsupportedModel: After the block: the model looked one of the tensors up in no ``nn.Embedding``.
    """
    met = [False] * len(pairs)

    def mix(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        tokens = args[0] if args and isinstance(args[0], Tensor) else None
        if tokens is None or not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        for place, (first, second) in enumerate(pairs):
            if tokens.data_ptr() == first.data_ptr() and tokens.numel() == first.numel():
                met[place] = True
                other = type(layer).forward(layer, second.view_as(tokens), *args[1:])
                weight = share.to(output.dtype).view(-1, *[1] * (output.ndim - 1))
                return weight * output + (1 - weight) * other
        return None

    hooks = [module.register_forward_hook(mix) for module in model.modules() if isinstance(module, nn.Embedding)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if not all(met):
        raise UnsupportedModel(
            f"MixUp of sentences needs token embeddings in nn.Embedding, but {type(model).__name__} looked "
            f"{met.count(False)} of {len(met)} token tensors up elsewhere; use mixup=0."
        )


def beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """``count`` draws of Beta(alpha, alpha), float64 on the CPU, without the global generator."""
    gammas = torch._standard_gamma(torch.full((2, count), alpha, dtype=torch.float64), generator=generator)
    return gammas[0] / gammas.sum(0).clamp(min=1e-300)
