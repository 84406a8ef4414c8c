"""DeepSpeed and FSDP2 by the real launcher on two processes, against one plain process.

Recipes of two stages (language model) and four (classifier), so that freezing and unfreezing is part of it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import long_tier
from tests.training import runs
from tests.training.runs import ROOT, arguments, environment
from ulmfit import train_classifier, train_language_model
from ulmfit.distributed import sharding
from ulmfit.errors import UserError

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (the extra of that name)"
)
STEPS, EARLY, LATE = 20, 5, 15  # the language model's second stage begins at step 7
LM = {"max_steps": STEPS, "save_every": 5, "keep": 9}
CLF = {"max_steps": STEPS, "recipe": "blog"}
CLF32 = 5e-4  # 20 steps of sums in another order in fp32: 1.4e-4 was seen on an AMD CPU, less on Intel's


@pytest.fixture(scope="module")
def plain(tmp_path_factory, reviews):
    """In one plain process: fine-tuning a language model and training a classifier, in fp64."""
    path = tmp_path_factory.mktemp("engines")
    for options in (LM, CLF):
        options["data"] = str(reviews)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULMFIT_CACHE", str(path / "cache"))
        train_language_model(runs.lm_config(path / "first", precision="fp64", data=str(reviews), preset="tiny"))
        train_language_model(lm_config(path, "lm"))
        train_classifier(clf_config(path, "clf"))
        yield path


def lm_config(path: Path, name: str, **options):
    return runs.lm_config(path / name, **({"init": str(path / "first"), "precision": "fp64"} | LM | options))


def clf_config(path: Path, name: str, **options):
    return runs.clf_config(path / name, **({"encoder": str(path / "first"), "precision": "fp64"} | CLF | options))


def launch(engine: str, path: Path, *command: str) -> None:
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "launch" / f"{engine}.yaml"),
        "--num_processes",
        "2",
    ]
    env = environment(path / "cache", PYTHONPATH=str(ROOT))
    done = subprocess.run([*launcher, *command], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def train(engine: str, path: Path, config) -> Path:
    launch(engine, path, str(ROOT / f"train_{config.task}.py"), *arguments(config))
    run = Path(config.output_dir)
    written = json.loads((run / "config.json").read_text())
    assert (written["engine"], written["world_size"]) == (engine, 2)
    return run


def interrupted(run: Path, name: str, step: int) -> Path:
    """A copy of a finished run as it stood after its checkpoint of a step."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    (copy / "status.json").unlink()
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return copy


def assert_same(run: Path, reference: Path, tolerance: float) -> None:
    assert len(runs.losses(reference)) == STEPS
    assert runs.losses(run) == pytest.approx(runs.losses(reference), rel=tolerance)
    assert runs.distance(runs.weights(reference), runs.weights(run)) < tolerance
    ours, theirs = (
        [line["loss"] for line in runs.metrics(each) if line["event"] == "eval"] for each in (run, reference)
    )
    assert ours == pytest.approx(theirs, rel=tolerance) and ours


@pytest.mark.slow
def test_fsdp_goes_on_from_a_plain_checkpoint_and_plain_from_one_of_fsdp(plain):
    begun = interrupted(plain / "lm", "lm-fsdp2", EARLY)
    run = train("fsdp2", plain, lm_config(plain, begun.name, micro_batches=2))
    assert_same(run, plain / "lm", 1e-10)
    resumed = interrupted(run, "lm-fsdp2-plain", LATE)
    train_language_model(lm_config(plain, resumed.name))
    assert_same(resumed, plain / "lm", 1e-10)


@pytest.mark.slow
def test_fsdp_trains_the_same_classifier(plain):
    # Three documents a step on 2 processes of 2 micro-batches: some of these have none.
    options = {"batch_size": 3}
    train_classifier(clf_config(plain, "clf-small", **options))
    run = train("fsdp2", plain, clf_config(plain, "clf-fsdp2", micro_batches=2, **options))
    assert_same(run, plain / "clf-small", 1e-9)


@pytest.fixture(scope="module")
def plain32(plain):
    """As `plain`, in the fp32 of DeepSpeed."""
    train_language_model(lm_config(plain, "lm32", precision="fp32"))
    train_classifier(clf_config(plain, "clf32", precision="fp32"))
    return plain


@pytest.fixture(scope="module")
def zero3(plain32):
    return train("zero3", plain32, lm_config(plain32, "lm-zero3", precision="fp32"))


@pytest.mark.slow
@needs_deepspeed
def test_zero3_trains_the_same_language_model_and_plain_goes_on_from_its_checkpoint(plain32, zero3):
    assert_same(zero3, plain32 / "lm32", 1e-4)
    resumed = interrupted(zero3, "lm-zero3-plain", LATE)
    train_language_model(lm_config(plain32, resumed.name, precision="fp32"))
    assert_same(resumed, plain32 / "lm32", 1e-4)


@long_tier("ZeRO 2 of the classifier, ZeRO 3 of the language model")
@pytest.mark.slow
@needs_deepspeed
def test_zero2_trains_the_same_language_model(plain32):
    run = train("zero2", plain32, lm_config(plain32, "lm-zero2", precision="fp32", micro_batches=2))
    assert_same(run, plain32 / "lm32", 1e-4)


@long_tier("a plain run that goes on from ZeRO 3; ZeRO 1 in the skipped steps")
@pytest.mark.slow
@needs_deepspeed
def test_zero1_goes_on_from_a_checkpoint_of_zero3(plain32, zero3):
    resumed = interrupted(zero3, "lm-zero3-zero1", EARLY)
    assert_same(train("zero1", plain32, lm_config(plain32, resumed.name, precision="fp32")), plain32 / "lm32", 1e-4)


@pytest.mark.slow
@needs_deepspeed
def test_zero2_trains_the_same_classifier(plain32):
    run = train("zero2", plain32, clf_config(plain32, "clf-zero2", precision="fp32", micro_batches=2))
    assert_same(run, plain32 / "clf32", CLF32)


@pytest.mark.slow
@needs_deepspeed
def test_steps_without_a_finite_gradient_change_nothing(plain):
    launch(
        "cpu_2_processes",
        plain,
        str(Path(__file__).with_name("skipped_steps.py")),
        "plain",
        "fsdp2",
        "zero1",
        "zero2",
        "zero3",
    )


@pytest.mark.parametrize(
    ("variables", "task", "options", "words"),
    [
        ({sharding.USE_FSDP: "true"}, "lm", {}, "fsdp_version: 2"),
        ({sharding.USE_FSDP: "true", "FSDP_VERSION": "2"}, "lm", {"precision": "fp16"}, "use bf16"),
        ({sharding.USE_DEEPSPEED: "true"}, "lm", {"precision": "fp64"}, "use fp32"),
        ({sharding.USE_DEEPSPEED: "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "clf", {}, "launch/zero2.yaml"),
        ({sharding.USE_DEEPSPEED: "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "lm", {}, "ZeRO stage 0"),
        ({sharding.USE_DEEPSPEED: "true", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "lm", {}, "offload"),
        (
            {sharding.USE_DEEPSPEED: "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "missing.json"},
            "lm",
            {},
            "missing.json",
        ),
    ],
)
def test_what_an_engine_cannot_do_is_refused(variables, task, options, words, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # whether deepspeed is installed or not
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        sharding.wanted_engine((runs.lm_config if task == "lm" else runs.clf_config)(tmp_path, **options))


def test_deepspeed_that_is_not_installed_is_named_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv(sharding.USE_DEEPSPEED, "true")
    with pytest.raises(UserError, match=r"pip install .*\[deepspeed\]"):
        sharding.wanted_engine(runs.lm_config(tmp_path))


def test_the_file_of_deepspeed_gives_the_stage(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1, "round_robin_gradients": True}}))
    monkeypatch.setenv(sharding.USE_DEEPSPEED, "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    assert sharding.wanted_engine(runs.lm_config(tmp_path)) == "zero1"
    assert sharding.zero_settings() == {"stage": 1, "round_robin_gradients": True}
