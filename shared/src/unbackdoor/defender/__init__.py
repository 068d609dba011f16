"""The defender: clean samples and a model, never an attack."""
