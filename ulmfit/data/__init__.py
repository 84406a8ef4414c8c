"""Corpora as texts and labels. Imports nothing of the package but errors."""
