"""Fixtures of the tests that write a corpus."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """The test in a folder and a cache of its own, and without a network."""

    def refuse(*_arguments, **_options):
        raise OSError("no network in this test")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def small_chunks(monkeypatch):
    """Records lie over the ends of chunks."""
    monkeypatch.setattr("ulmfit.data.shards.CHUNK", 100)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The test, with a cache of its own; files are read in small pieces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ulmfit.data.shards.CHUNK", 64)
    monkeypatch.setattr("ulmfit.data.shards.SLICE_BYTES", 200)
    monkeypatch.setattr("ulmfit.data.readers.SLICE_BYTES", 200)
    monkeypatch.setattr("ulmfit.data.hub_sets._STREAM_ROWS", 5)
