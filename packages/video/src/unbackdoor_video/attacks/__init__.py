"""One file an attack; each class that derives from `unbackdoor.attack.Attack` is found by its ``name``."""
