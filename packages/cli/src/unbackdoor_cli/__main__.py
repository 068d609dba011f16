"""``python -m unbackdoor_cli`` is the command ``unbackdoor``, and looks for no library in the current folder either.

What Python itself imports before it comes here it does look for there; ``unbackdoor`` and ``python -P -m`` do not.
"""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, where a file torch.py would be taken for the library

from unbackdoor_cli.main import run

run()
