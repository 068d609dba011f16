"""Damaged files for a reader: whatever lies in a file, it must end in a result or in one of this library's errors."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unbackdoor.errors import UnbackdoorError

__all__ = ["check_reader", "mutations"]

_ODD = (b"\x00", b"\xff", b"\x7f", b"{", b"}", b'"', b"[", b",", b"\n", b"-", b"9", b"nan", b"\xff\xff\xff\x7f")


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` damaged forms of ``content``: cut, bits turned, bytes overwritten, pieces doubled or left out.

    Args:
        content: Of an honest file.
        count: How many.
        seed: Of every draw.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    yield from (b"", content[: len(content) // 2], content + content)[:count]
    for _ in range(max(0, count - 3)):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 4, 16))):
            _damage(damaged, draw)
        yield bytes(damaged)


def _damage(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content) + 1)
    length = min(draw.choice((1, 2, 4, 8, 64)), max(len(content), 1))
    match draw.randrange(6):
        case 0 if content:
            content[place % len(content)] ^= 1 << draw.randrange(8)
        case 1:
            odd = draw.choice(_ODD)
            content[place : place + len(odd)] = odd
        case 2:
            content[place : place + length] = draw.randbytes(length)
        case 3:
            del content[place : place + length]
        case 4:
            content[place:place] = content[place : place + length]
        case _:
            del content[place:]


def check_reader(
    read: Callable[[Path], Any],
    honest: Mapping[str, bytes],
    folder: Path,
    *,
    count: int = 2000,
    seed: int = 0,
    allowed: Sequence[type[BaseException]] = (),
) -> None:
    """Let ``read`` read ``count`` damaged forms of honest files; an error that is none of ours fails.

    Args:
        read: Takes the path of a file.
        honest: Contents by file name, which ``read`` reads without an error.
        folder: Where files are written; each damaged one takes the place of the one before.
        count: Damaged forms in all, shared among ``honest``.
        seed: Of every draw.
        allowed: Further errors that are as good as ours.

    Raises:
        AssertionError: ``read`` raised another error; the message names it, and the file that caused it is kept.
    """
    for number, (name, content) in enumerate(honest.items()):
        path = folder / name
        path.write_bytes(content)
        read(path)
        for damaged in mutations(content, count // len(honest), seed + number):
            path.write_bytes(damaged)
            try:
                read(path)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                if isinstance(error, (UnbackdoorError, *allowed)):
                    continue
                raise AssertionError(f"{path} raised {type(error).__name__}: {error}, no error of ours") from error
