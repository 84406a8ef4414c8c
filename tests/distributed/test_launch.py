"""The commands under real launchers, with real signals."""

import json
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from tests.tiers import LONG
from tests.training import runs, world
from ulmfit import cli, train_language_model
from ulmfit.cli.options import parse
from ulmfit.config import LMConfig
from ulmfit.distributed import group, launch, runtime, torch_settings
from ulmfit.distributed.launcher_options import with_launcher_options
from ulmfit.errors import UserError
from ulmfit.training.session import open_session


@pytest.mark.slow
def test_a_script_under_accelerate_launch_trains_the_model_of_one_process(tmp_path, monkeypatch, reviews):
    """The command itself; test_worlds.py compares whole recipes of both trainers."""
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    one, two = tmp_path / "one", tmp_path / "two"
    given = {"precision": "fp64", "data": str(reviews), "preset": "tiny"}
    train_language_model(runs.lm_config(one, **given))
    options = runs.arguments(runs.lm_config(two, micro_batches=2, **given))
    command = [sys.executable, "-m", *world.LAUNCHERS["accelerate"], "2", str(runs.ROOT / "train_lm.py"), *options]
    done = subprocess.run(
        command, env=runs.environment(tmp_path / "cache"), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((two / "config.json").read_text())["world_size"] == 2
    assert runs.losses(two) == pytest.approx(runs.losses(one), rel=1e-10)
    assert runs.distance(runs.weights(one), runs.weights(two)) < 1e-10


def test_a_world_that_is_not_the_launchers_is_refused(monkeypatch):
    """As when a launcher starts processes that do not find each other: each would train a model of its own."""

    class Alone:
        process_index, num_processes, device, _shared_state = 0, 1, "cpu", {}

        def __init__(self, **options) -> None:
            pass

    monkeypatch.setattr(group, "PartialState", Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="started 2 processes but the process group holds 1"):
        runtime.Runtime(LMConfig())


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_RESTART_COUNT"])
@pytest.mark.parametrize("value", ["two", "", "1.5", "²", "x" * 100])
def test_a_variable_of_the_launcher_that_is_no_number_is_told(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert cli.main(["--version"]) == cli.USER_ERROR
    assert f"the environment variable {name} is {value[:40]!r} and no whole number; unset it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "environment", "launcher", "taken"),
    [
        ([], {}, [], ("fp32", 1)),
        ([], {"ACCELERATE_MIXED_PRECISION": "no"}, [], ("fp32", 1)),
        ([], {"ACCELERATE_MIXED_PRECISION": "bf16"}, [], ("bf16", 1)),
        (["--precision", "bf16"], {"ACCELERATE_MIXED_PRECISION": "bf16"}, [], ("bf16", 1)),
        (["--precision", "fp64"], {"ACCELERATE_MIXED_PRECISION": "no"}, [], ("fp64", 1)),
        (["--precision", "fp32"], {"ACCELERATE_MIXED_PRECISION": "bf16"}, [], "--precision fp32 differ"),
        ([], {"ACCELERATE_MIXED_PRECISION": "fp8"}, [], "fp8 cannot be had"),
        ([], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, [], ("fp32", 4)),
        ([], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, [], ("fp32", 1)),
        ([], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "-1"}, [], "-1 is no whole number"),
        ([], {}, ["accelerate", "launch", "--gradient_accumulation_steps", "4", "train_lm.py"], ("fp32", 4)),
        ([], {}, ["accelerate", "launch", "--gradient-accumulation-steps=4", "train_lm.py"], ("fp32", 4)),
        (["--micro-batches", "4"], {}, ["--gradient_accumulation_steps=4"], ("fp32", 4)),
        (["--micro-batches", "1"], {}, ["--gradient_accumulation_steps=4"], "--micro-batches 1 differ"),
        (["--micro-batches", "auto"], {}, ["--gradient_accumulation_steps=4"], "--micro-batches auto differ"),
        ([], "{'gradient_accumulation_steps': 2, 'bf16': {'enabled': true}}", [], ("bf16", 2)),
        ([], "{'gradient_accumulation_steps': 'auto', 'bf16': {'enabled': 'auto'}}", [], ("fp32", 1)),
        ([], "damaged", [], ("fp32", 1)),
    ],
)
def test_options_of_the_launcher_become_those_of_the_training(words, environment, launcher, taken, tmp_path):
    if isinstance(environment, str):
        (tmp_path / "deepspeed.json").write_text(environment.replace("'", '"'))
        environment = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "deepspeed.json")}
    config = parse(LMConfig, words)
    if isinstance(taken, str):
        with pytest.raises(UserError, match=taken):
            with_launcher_options(config, environment, lambda: launcher)
        return
    found, sentences = with_launcher_options(config, environment, lambda: launcher)
    assert (found.precision, found.micro_batches) == taken
    assert found.on_command_line == config.on_command_line
    assert len(sentences) == (found.precision != config.precision) + (found.micro_batches != config.micro_batches)


def test_what_the_launcher_asks_for_reaches_the_run_and_divides_no_gradient(tmp_path, monkeypatch, capsys):
    """accelerate would divide every loss by the number of steps to accumulate, beside our own micro-batches."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with open_session(runs.lm_config(tmp_path / "run"), None) as session:
        assert session.config.micro_batches == 2
        weight = torch.ones(1, requires_grad=True)
        session.runtime.accelerator.backward(3 * weight.sum())
        assert weight.grad.item() == 3
    assert "--gradient_accumulation_steps 2 is taken as --micro-batches 2; --batch-size" in capsys.readouterr().out
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with open_session(runs.lm_config(tmp_path / "run"), None) as session:
        assert session.config.precision == "bf16"
    with (
        pytest.raises(UserError, match="mixed_precision bf16 and --precision fp64 differ"),
        open_session(runs.lm_config(tmp_path / "run", precision="fp64"), None),
    ):
        pass


def test_deterministic_means_no_tf32_and_only_deterministic_algorithms():
    assert torch.backends.cudnn.allow_tf32, "the LSTM's products are rounded to TF32 by default"
    with runtime.open_runtime(LMConfig(deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("precision", "deterministic", "in_cudnn", "expected"),
    [
        ("fp32", False, True, (True, True)),
        ("fp32", False, False, (False, False)),  # somebody has switched it off: the products follow the LSTM
        ("fp32", True, True, (False, False)),
        ("fp64", True, True, (False, False)),
        ("fp16", True, True, (True, False)),
        ("bf16", False, True, (True, False)),
        ("bf16", True, True, (True, False)),
        ("bf16", True, False, (True, False)),  # off, torch asks cuDNN for bf16 without tensor cores
    ],
)
def test_tf32_is_alike_in_lstm_and_loss_and_never_off_for_half_precision(precision, deterministic, in_cudnn, expected):
    assert torch_settings.allowed_tf32(precision, deterministic=deterministic, in_cudnn=in_cudnn) == expected


@pytest.mark.parametrize("switch", ["fp32_precision", "cuda.matmul.fp32_precision", "cudnn.rnn.fp32_precision"])
@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_the_newer_switches_of_tf32_are_left_as_they_were(switch, value):
    """torch refuses to read the older ones in a program that has set these."""
    code = f"""
import torch
from ulmfit.config import LMConfig
from ulmfit.distributed.runtime import open_runtime
torch.backends.{switch} = {value!r}
names = ("cudnn.rnn", "cudnn.conv", "cuda.matmul")
def found():
    return [eval(f"torch.backends.{{name}}.fp32_precision").replace("none", "ieee") for name in names]
before = found()
with open_runtime(LMConfig(deterministic=True)):
    assert found() == ["ieee"] * 3, found()
assert found() == before, (before, found())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("environment", "seen", "sentence"),
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, 0, "torch sees none of the 4 GPU(s)"),
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": ""}, 0, None),  # the user hides them
        ({"SLURM_GPUS_ON_NODE": "4", "ACCELERATE_USE_CPU": "true"}, 0, None),
        ({"SLURM_GPUS_ON_NODE": "0"}, 0, None),
        ({"LOCAL_RANK": "3"}, 0, None),
        ({"LOCAL_RANK": "3"}, 4, None),
        ({"LOCAL_RANK": "1"}, 1, "process 2 of this machine has no GPU of its own, for torch sees 1"),
        ({"LOCAL_RANK": "1", "ACCELERATE_USE_CPU": "1"}, 1, None),
    ],
)
def test_each_process_has_a_gpu_where_there_are_some(environment, seen, sentence, monkeypatch):
    for name in ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    assert launch.uses_gpu() is (seen > 0 and "ACCELERATE_USE_CPU" not in environment)
    if sentence is None:
        launch.check_gpus()
    else:
        with pytest.raises(UserError) as caught:
            launch.check_gpus()
        assert str(caught.value).startswith(sentence) and ";" in str(caught.value)


def test_a_deterministic_run_in_bf16_leaves_cudnn_its_switch():
    with runtime.open_runtime(LMConfig(deterministic=True, precision="bf16")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_the_versions_are_told_where_a_package_is_missing(monkeypatch):
    def version(name):
        if name == "datasets":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(runtime, "version", version)
    found = runtime.environment()["versions"]
    assert "datasets" not in found and found["torch"] == found["tokenizers"] == "1"


def test_the_end_of_a_command_imports_no_compiler(monkeypatch):
    """`torch.use_deterministic_algorithms` imports it, which took two seconds of each command, also of one that only
    predicts, and delayed the answer to a request to stop."""
    monkeypatch.setattr(torch, "use_deterministic_algorithms", pytest.fail)
    with runtime.open_runtime(LMConfig()):
        pass


# The other signals go the same way, tested in one process too.
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1] if LONG else [signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(number, tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, str(runs.ROOT / "train_lm.py"), *runs.arguments(runs.lm_config(path, max_steps=400))]
    process = subprocess.Popen(
        command, env=runs.environment(tmp_path / "cache"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() or '"step": 3,' not in (path / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "goes on from there" in out
    status = json.loads((path / "status.json").read_text())
    assert status["state"] == "preempted" and 0 < status["step"] < 400
    # Going on to the end would take a while: a run that resumes says so first.
    process = subprocess.Popen(command, env=runs.environment(tmp_path / "cache"), stdout=subprocess.PIPE, text=True)
    assert any(f"step-{status['step']:08d}" in line for line in process.stdout)
    process.kill()
    process.wait()
