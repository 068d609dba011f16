"""Attacks on sequence-to-sequence models, one module each."""
