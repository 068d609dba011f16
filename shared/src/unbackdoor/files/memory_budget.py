"""A bound on the memory that foreign words can make this process take: looked at before tensors are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unbackdoor.errors import TooLarge

__all__ = ["at_most"]


@contextmanager
def at_most(size: int, what: str, *, single: int | None = None, count: int | None = None) -> Iterator[None]:
    """Refuse tensors made inside that take more than ``size`` bytes, before they are made.

    Args:
        size: Bytes of all tensors made inside, added up, whether or not they are still there.
        what: What asks for them, for the message.
        single: Bytes of one tensor; None leaves it at ``size``.
        count: How many tensors may be made; None for any number.

    Raises:
        TooLarge: More are asked for.
    """
    with _Counting(size, what, size if single is None else single, count):
        yield


class _Counting(TorchDispatchMode):
    """Sees every operation that makes a tensor."""

    def __init__(self, size: int, what: str, single: int, count: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.what, self.single, self.count = size, what, single, count
        self.taken = self.made = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        needed = _declared(func, args, options)
        if needed:
            self.taken += needed
            self.made += 1
            self._check(needed)
        result = func(*args, **options)
        if not needed and isinstance(result, Tensor) and not any(result is one for one in args):
            self.taken += 0 if result._is_view() else result.untyped_storage().nbytes() if _own(result, args) else 0
            self._check()
        return result

    def _check(self, one: int = 0) -> None:
        if self.taken > self.size or one > self.single:
            allowed = self.single if one > self.single else self.size
            raise TooLarge(f"{self.what} asks for more than {allowed:,} bytes of memory; it is refused.")
        if self.count is not None and self.made > self.count:
            raise TooLarge(f"{self.what} asks for more than {self.count:,} tensors; it is refused.")


def _own(result: Tensor, args: Sequence[Any]) -> bool:
    place = result.untyped_storage()._cdata
    return all(not isinstance(one, Tensor) or one.untyped_storage()._cdata != place for one in args)


def _declared(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> int:
    """Bytes of what a factory of tensors is asked to make; 0 for all else."""
    name = func.overloadpacket.__name__
    made_like = name.startswith("new_")
    given = args[1:] if made_like else args
    lists = [one for one in given if isinstance(one, list | tuple)]
    if any(isinstance(one, Tensor) for one in (*given, *(inner for one in lists for inner in one))):
        return 0
    size = lists[0] if lists else None
    if size is None:
        size = options.get("size")
    width = (options.get("dtype") or torch.get_default_dtype()).itemsize
    if size is not None:
        return width * math.prod(int(side) for side in size)
    count: Callable[..., float] | None = _COUNTS.get(name)
    return 0 if count is None else width * int(count(*given))


_COUNTS: Mapping[str, Callable[..., float]] = {
    "arange": lambda *given: (
        max(0.0, (given[1] - given[0]) / (given[2] if len(given) > 2 else 1)) if len(given) > 1 else given[0]
    ),
    "linspace": lambda start, end, steps, *_: steps,
    "logspace": lambda start, end, steps, *_: steps,
    "eye": lambda rows, columns=None, *_: rows * (rows if columns is None else columns),
    "tril_indices": lambda rows, columns, *_: 2 * rows * columns,
    "triu_indices": lambda rows, columns, *_: 2 * rows * columns,
    "randperm": lambda count, *_: count,
}
"""Elements of the factories that are given no shape."""
