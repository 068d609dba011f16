"""The attacker and whoever studies one: attacks, victims, their folders and the plans that make them."""
