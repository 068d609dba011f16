"""Translation and dialogue for `unbackdoor`: `KIT` is what the command line and the benchmark find."""

from __future__ import annotations

__version__ = "0.1.0"
