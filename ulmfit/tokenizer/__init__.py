"""Texts to token ids and back. Imports nothing of the package but errors."""
