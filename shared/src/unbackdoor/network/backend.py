"""The switches of PyTorch that belong to the whole process, in one room: who sets one, for how long, and who waits.

Kernel choices, the global generator and the list of warning filters are shared by all threads. A purification that ran
beside another would compute with that one's switches, and the one that ended last would leave those of the first. So
purifications take turns, and whatever sets a switch goes through here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["alone", "exclusive", "plain_kernels", "seeded", "without_fastpath", "without_fused_layers"]

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

_turn = threading.RLock()
_fastpath = threading.Lock()
_users: list[bool] = []
"""What attention's fast path was before each of those who want it off came."""


@contextmanager
def exclusive() -> Iterator[None]:
    """One thread at a time inside; a thread that is inside may enter again."""
    with _turn:
        yield


def alone(function: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
    """Let ``function`` run in one thread at a time, with gradients, however its caller computes.

    Under ``torch.no_grad`` and ``torch.inference_mode`` nothing could be tuned.
    """

    @wraps(function)
    def turn(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        with exclusive(), torch.inference_mode(False), torch.enable_grad():
            return function(*args, **kwargs)

    return turn


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """PyTorch's global generator starts at ``seed`` inside and goes on afterwards as if nothing had been drawn.

    For what knows no other generator: the initialisers of ``torch.nn`` and dropout. One thread at a time is inside.

    Args:
        seed: Of the generators of the CPU and, where that is a GPU, of ``device``.
        device: Where the drawing happens.
    """
    place = torch.device(device)
    with exclusive(), torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if place.type == "cuda":
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)
        yield


class without_fastpath:  # noqa: N801 - used as a function
    """Attention without its fast path, which reads weights past the layers' forward.

    Several threads may be inside; the first remembers how it was, and the last to leave brings that back.
    """

    def __enter__(self) -> None:
        """Switch it off."""
        with _fastpath:
            _users.append(torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *error: object) -> None:
        """Switch it on again if nobody else wants it off and it was on."""
        with _fastpath:
            first = _users[0]
            _users.pop()
            if not _users:
                torch.backends.mha.set_fastpath_enabled(first)


@contextmanager
def plain_kernels(*, recurrent: bool) -> Iterator[None]:
    """Kernels that can be differentiated twice: attention by matrix products, and no fused recurrent layers.

    Args:
        recurrent: Whether there are recurrent layers; else their switches stay as they are.
    """
    with exclusive(), sdpa_kernel(SDPBackend.MATH), without_fused_layers() if recurrent else nullcontext():
        yield


@contextmanager
def without_fused_layers() -> Iterator[None]:
    """Neither cuDNN nor oneDNN inside; of their other switches none is touched."""
    with exclusive():
        before = bool(torch.backends.cudnn.enabled), bool(torch.backends.mkldnn.enabled)
        _switch(False, False)
        try:
            yield
        finally:
            _switch(*before)


def _switch(cudnn: bool, mkldnn: bool) -> None:
    with torch.backends.__allow_nonbracketed_mutation():
        torch.backends.cudnn.enabled = cudnn
        torch.backends.mkldnn.enabled = mkldnn  # type: ignore[assignment]
