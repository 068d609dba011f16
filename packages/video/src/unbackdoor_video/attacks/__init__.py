"""One file an attack; each class that derives from `unbackdoor.attacker.attack.Attack` is found by its ``name``."""
