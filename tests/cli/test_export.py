"""export: the same model in a folder of its own, whole or in 8 bits, and the script that makes an encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import runs
from ulmfit.model.pretrained import load_model

ROOT = Path(__file__).resolve().parents[2]


def ulmfit(*words, **options):
    return subprocess.run([sys.executable, "-m", "ulmfit", *words], capture_output=True, text=True, **options)


@pytest.mark.slow
def test_a_model_is_exported_whole_and_in_8_bits(tmp_path):
    whole = ulmfit("export", "--model", "english", "--output", str(tmp_path / "whole"))
    small = ulmfit("export", "--model", str(tmp_path / "whole"), "--output", str(tmp_path / "small"), "--bits", "8")
    assert (whole.returncode, small.returncode) == (0, 0), whole.stderr + small.stderr
    assert "31.3 MiB" in whole.stdout and "8.4 MiB" in small.stdout
    nets = [load_model(tmp_path / name)[0].state_dict() for name in ("whole", "small")]
    for name, tensor in nets[0].items():  # weights of 8 bits are rounded to themselves
        torch.testing.assert_close(nets[1][name], tensor, rtol=0, atol=1e-6)
    again = ulmfit("export", "--model", "english", "--output", str(tmp_path / "small"))
    assert again.returncode == 2 and "exists; name another" in again.stderr


@pytest.mark.slow
def test_pretrain_makes_an_encoder_and_goes_on_after_a_stop(tmp_path):
    most = runs.write_reviews(tmp_path / "reviews.csv", 300)
    data = f"most=0.8:{most},some=0.2:{runs.write_reviews(tmp_path / 'others.csv', 60, first=300)}"
    venv = Path(sys.executable).parents[1]
    if not (ROOT / ".venv").is_dir() or venv != ROOT / ".venv":
        pytest.skip("the script takes the environment of the checkout")
    options = ["--max-steps", "6", "--threads", "1", "--preset", "tiny", "--bptt", "10", "--valid", "0.1"]
    options += ["--vocab-size", "300", "--sampled-softmax", "64"]
    command = ["bash", str(ROOT / "launch" / "pretrain.sh"), str(data), str(tmp_path / "run"), *options]
    environment = os.environ | {"ULMFIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    stopped = subprocess.run([*command, "--max-time", "1e-6"], env=environment, capture_output=True, text=True)
    assert stopped.returncode == 0 and not (tmp_path / "run" / "encoder").exists(), stopped.stderr
    assert "preempted" in stopped.stderr
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    load_model(tmp_path / "run" / "encoder")
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0  # finds all done
