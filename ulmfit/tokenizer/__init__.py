"""Texts to token ids and back. Of this package it imports only errors."""
