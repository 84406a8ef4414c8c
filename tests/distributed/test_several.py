"""Several trainings in one process, launched or not, and a user's mistake that one rank alone finds."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.distributed import several
from tests.distributed.ranks import on_ranks
from tests.tiers import long_tier
from tests.training import runs, world
from ulmfit import train_language_model
from ulmfit.errors import UserError


def check_models(one, two) -> None:
    """Two ranks trained the models of one process, each as if it were the first training there."""
    for name, tolerance in (("lm", 1e-10), ("clf", 1e-10), ("again", 1e-10)):
        assert runs.distance(runs.weights(one / name), runs.weights(two / name)) < tolerance, name
    for folder in (one, two):
        assert runs.distance(runs.weights(folder / "clf"), runs.weights(folder / "again")) == 0
        assert json.loads((folder / "bf16" / "status.json").read_text())["state"] == "done"


@pytest.fixture(scope="module", autouse=True)
def _without_what_other_tests_hold():
    """Tests of this process that build a Runtime of their own do not close it. Between trainings nothing is reset."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory, reviews):
    """The trainings in this process."""
    folder = tmp_path_factory.mktemp("one")
    runs.write_reviews(folder / "reviews.csv", 120)
    several.pipeline(folder)
    return folder


def launch(launcher: str, folder, *arguments: str) -> str:
    """What two ranks of `several` print."""
    runs.write_reviews(folder / "reviews.csv", 120)
    command = [sys.executable, "-m", *world.LAUNCHERS[launcher], "2", "-m", "tests.distributed.several", str(folder)]
    done = subprocess.run([*command, *arguments], cwd=runs.ROOT, env=runs.environment(folder / "cache"),
                          capture_output=True, text=True, timeout=280)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@long_tier("the same trainings under torchrun, with mistakes between them; a script under accelerate launch")
@pytest.mark.slow
def test_two_ranks_of_accelerate_train_several_times(one, tmp_path):
    launch("accelerate", tmp_path)
    check_models(one, tmp_path)


@pytest.mark.slow
def test_two_ranks_agree_on_mistakes_between_trainings(one, tmp_path):
    told = launch("torchrun", tmp_path, "mistakes")
    check_models(one, tmp_path)
    for name, words in {
        "data": "nowhere.csv",
        "init": "nowhere",
        "option": "--clip is -1; give 0 or more",
        "device": "--precision fp16 needs a GPU",
        "other data": "the data of rank 1 (host ",
        "other options": "would train another run than rank 0",
        "training": "shard 7 is damaged",
    }.items():
        for rank in (0, 1):
            (line,) = [line for line in told.splitlines() if f"mistake {name} on rank {rank}: rank 1: " in line]
            assert words in line
    for rank in (0, 1):
        assert f"mistake checkpoint on rank {rank}: rank 0: the checkpoint is damaged" in told
    assert told.count("start the script again") == 2  # ranks in different collectives cannot train together
    status = json.loads((tmp_path / "stumbled" / "status.json").read_text())
    assert status["state"] == "failed" and status["rank"] == 1 and "shard 7" in status["error"]


@pytest.mark.skipif("ULMFIT_LONG" not in os.environ, reason="a minute: set ULMFIT_LONG, as tests/run_long.sh does")
def test_thirty_trainings_of_one_launch(one, tmp_path):
    """Each wraps a model in DDP anew, after the one before is gone. Once, long ago, this ended with a SIGSEGV."""
    runs.write_reviews(tmp_path / "reviews.csv", 40)

    def action(rank: int) -> list[str]:
        data = {
            "data": str(tmp_path / "reviews.csv"),
            "preset": "tiny",
            "max_steps": 2,
            "batch_size": 4,
            "save_every": 0,
        }
        return [train_language_model(runs.lm_config(tmp_path / f"run{number}", **data)).state for number in range(30)]

    assert on_ranks(2, action, tmp_path / "ranks", seconds=3600) == [["done"] * 30] * 2


@pytest.mark.slow
def test_a_training_leaves_the_configuration_and_the_process_as_they_were(reviews, tmp_path):
    """The caller may hold an Accelerator of other settings, and count on torch's."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    config = runs.lm_config(tmp_path / "run", data=str(reviews), preset="tiny", max_steps=1, threads=None)
    config.deterministic = True
    given = dict(vars(config))
    try:
        several.train_language_model(dataclasses.replace(config, threads=before[0] + 1))
        assert several.train_language_model(config).state == "done"  # a resume, with the stored number of threads
        assert vars(config) == given
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
        assert accelerator.state.mixed_precision == "bf16" and accelerator.process_index == 0
        with pytest.raises(UserError):
            several.train_language_model(dataclasses.replace(config, clip=-1.0))
        assert accelerator.state.mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def two_processes(command: list[str], *options: list[str], cache) -> list[subprocess.Popen]:
    """A command as ranks 0 and 1, without a launcher that would flatten exit codes; each with options of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [*command, *more],
            env=runs.environment(cache, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", **place),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, more in enumerate(options)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "rank"), [("--data", 1), ("--config", 0)])
def test_a_mistake_of_one_rank_is_told_by_it_once_and_ends_all(flag, rank, reviews, tmp_path):
    """`--config` is read before the process group is joined."""
    common = runs.arguments(runs.lm_config(tmp_path / "run", preset="tiny"))
    good = [*common, "--data", str(reviews)]
    wrong = [*good, flag, str(tmp_path / "nowhere.csv")]
    options = [wrong if number == rank else good for number in (0, 1)]
    processes = two_processes([sys.executable, str(runs.ROOT / "train_lm.py")], *options, cache=tmp_path / "cache")
    told = [process.communicate(timeout=100)[1].strip() for process in processes]
    assert [process.returncode for process in processes] == [2, 2], told
    assert "nowhere.csv" in told[rank].splitlines()[-1] and told[rank].count("error") == 1
    assert not told[1 - rank]
    assert not os.path.exists(tmp_path / "run")
