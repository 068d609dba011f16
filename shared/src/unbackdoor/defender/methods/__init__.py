"""One folder a method: its code and its card. Adding a folder adds a method; there is no list to edit."""
