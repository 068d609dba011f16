"""Files of the user: read within bounds, with one kind of error; written whole or not at all."""
