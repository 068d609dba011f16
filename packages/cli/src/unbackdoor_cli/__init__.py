"""The command ``unbackdoor``. It reaches task packages through `unbackdoor.registry` alone."""

__version__ = "0.1.0"
