"""``python -m unbackdoor_cli`` is the command ``unbackdoor``, and as that it runs no file of the current folder."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, where a file torch.py would be taken for the library

from unbackdoor_cli.main import run

run()
