"""No command opens a connection unless an option names something that is not here."""

import os
import socket

import pytest

from ulmfit.cli import DONE, USER_ERROR, main


@pytest.fixture
def attempts(monkeypatch):
    """Addresses that this process tries to look up or reach, each refused."""
    import datasets
    from huggingface_hub import constants

    seen = []

    def refuse(*arguments, **_):
        address = next((value for value in arguments if not isinstance(value, socket.socket)), None)
        seen.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return seen


@pytest.mark.slow
def test_only_a_name_that_is_no_file_reaches_for_the_network(attempts, reviews, runs, tmp_path, capsys):
    tiny = ["--preset", "tiny", "--max-steps", "2", "--batch-size", "8", "--bptt", "20"]
    data = ["--data", str(reviews)]
    commands = [
        ["train-lm", *tiny, *data, "--output-dir", str(tmp_path / "lm")],
        ["train-clf", *tiny, *data, "--output-dir", str(tmp_path / "clf"), "--encoder", "none"],
        ["predict", *data, "--model", str(runs.clf), "--output", str(tmp_path / "out.csv")],
        ["evaluate", *data, "--model", str(runs.clf)],
        ["generate", "--model", str(runs.lm), "a film"],
    ]
    for words in commands:
        assert main(words) == DONE, (words, capsys.readouterr().err)
    assert attempts == []
    hub = ["train-lm", *tiny, "--data", "someone/something", "--output-dir", str(tmp_path / "hub")]
    assert main(hub) == USER_ERROR and "hub cannot be reached" in capsys.readouterr().err
    assert attempts and not os.path.exists(tmp_path / "hub")
