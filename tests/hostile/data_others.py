"""Hostile clips, clouds and sentences, made at run time."""

from __future__ import annotations

from collections.abc import Iterator

from hostile.clips import hostile_clips
from hostile.clouds import hostile_clouds
from hostile.samples import HostileData
from hostile.sentences import hostile_sentences

__all__ = ["hostile_data_others"]


def hostile_data_others(address: str = "127.0.0.1:9") -> Iterator[HostileData]:
    """All cases.

    Args:
        address: Host and port that some of them would connect to.
    """
    yield from hostile_clips(address)
    yield from hostile_clouds(address)
    yield from hostile_sentences(address)
