"""Load examples/serve.py on the loopback: requests a second, latencies, and what a SIGTERM under load loses.

    python benchmarks/serve_load.py --model EXPORTED --words 30 300 --clients 1 8 32 --seconds 5

Each client has a connection of its own and sends a text a request, the next when the answer is there. At the end the
server gets SIGTERM while all clients send. A request is lost if its whole body was sent before the signal and no
answer came.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import side_by_side as sides

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PATIENCE = 60  # seconds until the server must be there or gone


class Request(NamedTuple):
    sent: float  # seconds, when the body was written
    seconds: float
    answered: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of ulmfit export --to onnx")
    parser.add_argument("--words", type=int, nargs="+", default=[30, 300], help="words of a text")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="connections at a time")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    print(sides.machine())
    print("| words | clients | requests/s | p50 ms | p99 ms | not answered |\n|---|---|---|---|---|---|")
    for words in options.words:
        for clients in options.clients:
            server, port = start(options.model)
            try:
                requests = load(port, clients, words, options.seconds)
            finally:
                stop(server)
            times = sorted(request.seconds * 1e3 for request in requests)
            lost = sum(not request.answered for request in requests)
            print(
                f"| {words} | {clients} | {len(requests) / options.seconds:.0f} | {times[len(times) // 2]:.1f} | "
                f"{times[int(0.99 * len(times))]:.1f} | {lost} |",
                flush=True,
            )
    answered, lost = terminate_under_load(options.model, max(options.clients), options.words[0])
    print(f"SIGTERM under load: {answered} requests answered, {lost} lost")


def start(model: str) -> tuple[subprocess.Popen, int]:
    """A server and its port. Returns when it is healthy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "serve:app", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--no-access-log", "--log-level", "warning"], env=os.environ | {"MODEL": str(model)}
    )
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request("GET", "/health")
            assert json.load(connection.getresponse())["status"] == "ok"
            return server, port
        except OSError:
            assert server.poll() is None and time.monotonic() < limit, "the server does not start"
            time.sleep(0.05)


def stop(server: subprocess.Popen) -> None:
    server.send_signal(signal.SIGTERM)
    server.wait(PATIENCE)


def load(port: int, clients: int, words: int, seconds: float) -> list[Request]:
    """What the clients saw until the time is over, or the server closes their connection."""
    found: list[Request] = []
    end = time.monotonic() + seconds

    def client(seed: int) -> None:
        rng = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        while time.monotonic() < end:
            text = " ".join(rng.choice(("the", "film", "was", "good", "bad", "and", "long")) for _ in range(words))
            begun, sent, answered = time.monotonic(), float("inf"), False
            try:
                connection.request("POST", "/predict", json.dumps({"texts": [text]}))
                sent = time.monotonic()
                answer = connection.getresponse()
                answered = answer.status == 200 and len(json.load(answer)) == 1
            except (OSError, http.client.HTTPException):
                pass
            found.append(Request(sent, time.monotonic() - begun, answered))
            if not answered:
                return

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def terminate_under_load(model: str, clients: int, words: int) -> tuple[int, int]:
    """How many requests were answered, and how many were lost that had been sent before the signal."""
    server, port = start(model)
    at: list[float] = []

    def signal_it() -> None:
        time.sleep(2)
        at.append(time.monotonic())
        server.send_signal(signal.SIGTERM)

    thread = threading.Thread(target=signal_it)
    thread.start()
    requests = load(port, clients, words, PATIENCE)
    thread.join()
    assert server.wait(PATIENCE) in (0, -signal.SIGTERM)
    lost = [request for request in requests if not request.answered and request.sent < at[0] - 0.05]
    return sum(request.answered for request in requests), len(lost)


if __name__ == "__main__":
    main()
