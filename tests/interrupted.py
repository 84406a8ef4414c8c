"""A user's script that trains for long from Python, for tests that press Ctrl-C.

accelerate launch ... -m tests.interrupted FOLDER         as a script of a launcher
python -m tests.interrupted FOLDER notebook_launcher      as a cell of a notebook that starts two processes
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import ulmfit
from tests.training import runs


def train(folder: str) -> None:
    handler = signal.getsignal(signal.SIGINT)
    config = runs.lm_config(Path(folder) / "run", max_steps=2000, preset="tiny", data=Path(folder) / "reviews.csv")
    rank = os.environ["RANK"]
    try:
        ulmfit.train_language_model(config)
    except ulmfit.TrainingInterrupted as error:
        assert signal.getsignal(signal.SIGINT) == handler
        print(f"rank {rank}: {error.step} steps: {error}", flush=True)


if __name__ == "__main__":
    if "notebook_launcher" in sys.argv:
        import torch
        from accelerate import notebook_launcher

        torch.ones(3, requires_grad=True).sum().backward()  # a parent that has used torch
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        notebook_launcher(train, (sys.argv[1],), num_processes=2, use_port=port)
    else:
        train(sys.argv[1])
