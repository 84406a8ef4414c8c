"""Corpora as texts and labels. Of this package it imports only errors."""
