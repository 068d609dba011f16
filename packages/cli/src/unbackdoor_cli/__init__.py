"""The command ``unbackdoor``. It reaches task packages through `unbackdoor.registry` alone."""

from __future__ import annotations

__version__ = "0.1.0"
