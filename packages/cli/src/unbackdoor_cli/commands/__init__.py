"""One module a command. None imports torch before it runs, so that ``--help`` answers at once."""
