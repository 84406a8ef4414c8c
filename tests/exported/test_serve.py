"""examples/serve.py as users start it: answers, limits, nothing of a text in its log, nothing lost at SIGTERM."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ulmfit
from ulmfit.cli import main

for package in ("onnx", "onnxruntime", "fastapi", "uvicorn"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    assert main(["export", "--model", str(runs.clf), "--to", "onnx", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    """The process, its port and its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "serve:app", "--port", str(port)]
    with open(log, "w") as file:
        process = subprocess.Popen(command, env=os.environ | {"MODEL": str(exported)}, stdout=file, stderr=file)
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                assert ask(port, "GET", "/health")[0] == 200
                break
            except OSError:
                time.sleep(0.05)
        yield process, port, log
    finally:
        process.kill()
        process.wait()


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def texts_of(*texts):
    return json.dumps({"texts": texts})


def test_it_answers_refuses_and_ends_without_loss(server, exported):
    process, port, log = server
    model = ulmfit.TextClassifier.from_pretrained(exported)
    texts = ["a good film", "bad " * 300, "", "A secretword, not good.", "\u4e2d\u6587"]
    with ThreadPoolExecutor(16) as executor:  # many at once form batches
        asked = [executor.submit(ask, port, "POST", "/predict", texts_of(text)) for text in texts * 6]
        together = ask(port, "POST", "/predict", texts_of(*texts))[1]
        for text, whole, future in zip(texts * 6, together * 6, asked, strict=True):
            status, (answer,) = future.result()
            expected = dict(zip(model.label_names, map(float, model.probabilities([text])[0]), strict=True))
            assert status == 200 and answer["probabilities"] == pytest.approx(expected, abs=1e-5)
            assert answer["label"] == max(expected, key=expected.get) == whole["label"]
    assert ask(port, "POST", "/predict", '{"texts": ["\\ud800 secretword"]}')[0] == 200

    for body, status in (
        (b"\xff secretword", 422), ("[" * 100_000, 422), ("{}", 422), ('{"texts": "secretword"}', 422),
        ('{"texts": [1]}', 422), (texts_of(), 422), (texts_of(*["secretword"] * 65), 422),
        (texts_of("secretword is " * 3000), 413), (texts_of("x" * 2**20), 413),
    ):  # fmt: skip
        code, answer = ask(port, "POST", "/predict", body)
        assert code == status and "secretword" not in json.dumps(answer), (code, answer)

    long = texts_of(*["good film " * 500] * 64)
    with ThreadPoolExecutor(3) as executor:
        asked = [executor.submit(ask, port, "POST", "/predict", long) for _ in range(3)]
        while ask(port, "GET", "/health")[1]["waiting"] == 0:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert [(code, len(rows)) for code, rows in (future.result() for future in asked)] == [(200, 64)] * 3
    assert process.wait(120) in (0, -signal.SIGTERM)
    written = log.read_text()
    assert "secretword" not in written and "Traceback" not in written and "/predict" in written
