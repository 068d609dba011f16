"""Memory that is kept from step to step: how a process that computes on a CPU is spared most page faults."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

_SAID = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**30
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed blocks of up to 1 GiB for the next step.

    PyTorch allocates its CPU tensors anew in every step. As it comes, glibc takes each of more than 32 MiB from the
    kernel and gives it back, and the kernel clears its pages every time. Results are the same to the bit; the largest
    amount of memory in use grows, by 1 % in the demo of clips and by 38 % in a loop over one large convolution, since
    what was freed lies between what is used. It holds for the whole process, so ``unbackdoor``, the program, does it
    and ``import unbackdoor`` does not.

    Returns:
        Whether it was done. Nothing is changed where the environment already says how (``MALLOC_TRIM_THRESHOLD_``,
        ``GLIBC_TUNABLES`` and so on), nor by other C libraries than glibc.
    """
    if any(name in os.environ for name in _SAID) or platform.libc_ver()[0] != "glibc":
        return False
    tell = ctypes.CDLL(None).mallopt
    return bool(tell(_M_MMAP_THRESHOLD, _LARGEST)) and bool(tell(_M_TRIM_THRESHOLD, _NEVER))
