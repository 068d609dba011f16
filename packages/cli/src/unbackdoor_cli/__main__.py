"""``python -m unbackdoor_cli`` is the command ``unbackdoor``."""

from __future__ import annotations

from unbackdoor_cli.main import run

run()
