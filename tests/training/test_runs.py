"""Whole runs: equal however the batch is cut and however often the run is interrupted."""

import errno
import json
import math
import weakref
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.training import runs
from ulmfit import cli, train_classifier, train_language_model
from ulmfit.device import cpu_multiplies_bf16
from ulmfit.distributed.runtime import Runtime
from ulmfit.errors import UserError
from ulmfit.run import checkpoint
from ulmfit.run.saver import Saver
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.lm_task import LanguageModelTask
from ulmfit.training.loop import Loop

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULMFIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def ask_at_every_step(monkeypatch):
    """Stop requests are looked at about once a second of work; here at every step."""

    def agreed(self):
        return self.stop.requested()

    monkeypatch.setattr(Loop, "_stop_agreed", agreed)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, cache, reviews):
    """A language model of a few steps on a small corpus, in fp64."""
    SMALL["data"] = str(reviews)
    path = tmp_path_factory.mktemp("encoder") / "lm"
    train_language_model(runs.lm_config(path, precision="fp64", **SMALL))
    return path


SMALL = {"preset": "tiny"}  # and the data: its evaluations take a tenth of those of the embedded sample


def train(task, path, encoder, stop=None, **options):
    options = SMALL | options
    if task == "sampled":
        options["sampled_softmax"] = 100
    if task != "clf":
        return train_language_model(runs.lm_config(path, **options), stop)
    return train_classifier(runs.clf_config(path, **{"encoder": str(encoder)} | options), stop)


def mixture(folder):
    for name, number, first in (("most", 60, 0), ("some", 20, 100)):
        runs.write_reviews(folder / f"{name}.csv", number, first=first)
    (folder / "mixture.toml").write_text(
        '[most]\ndata = "most.csv"\nweight = 0.7\n[some]\ndata = "some.csv"\nweight = 0.3\nvalid = 0.4\n'
    )
    return {"data": str(folder / "mixture.toml"), "preset": "tiny", "init": "none"}


@pytest.mark.parametrize("task", ["lm", "sampled", "clf"])
def test_micro_batches_change_nothing(task, tmp_path, encoder):
    train(task, tmp_path / "whole", encoder, precision="fp64")
    train(task, tmp_path / "cut", encoder, precision="fp64", micro_batches=4)
    assert runs.losses(tmp_path / "cut") == pytest.approx(runs.losses(tmp_path / "whole"), rel=1e-10)
    assert runs.distance(runs.weights(tmp_path / "whole"), runs.weights(tmp_path / "cut")) < 1e-10


@pytest.mark.parametrize("task", ["lm", "sampled", "clf", "stream", "mixture", "mixed stream"])
def test_an_interrupted_run_ends_with_the_same_bits(task, tmp_path, encoder):
    options = {"streaming": True} if "stream" in task else {}
    if "mix" in task:
        options |= mixture(tmp_path)
    task = task if task in ("sampled", "clf") else "lm"
    assert train(task, tmp_path / "straight", encoder, **options).state == "done"
    # Two stops: with the blog's four stages in 12 steps, in the middle of a stage and near its edge.
    assert train(task, tmp_path / "stopped", encoder, runs.StopAtCall(5), **options).state == "preempted"
    assert json.loads((tmp_path / "stopped" / "status.json").read_text())["state"] == "preempted"
    assert train(task, tmp_path / "stopped", encoder, runs.StopAtCall(4), **options).state == "preempted"
    assert train(task, tmp_path / "stopped", encoder, **options).state == "done"
    straight, stopped = runs.weights(tmp_path / "straight"), runs.weights(tmp_path / "stopped")
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)
    assert runs.metrics(tmp_path / "stopped") == runs.metrics(tmp_path / "straight")


def test_a_mixture_tells_its_shares_and_the_losses_of_its_sources(tmp_path, encoder, capsys):
    given = mixture(tmp_path)
    train("lm", tmp_path / "run", encoder, max_steps=30, **given)
    told = capsys.readouterr().out
    assert "mixture, by tokens: most 70.0% (" in told and ", some 30.0% (" in told and " times an epoch)" in told
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]
    (event,) = runs.events(tmp_path / "run", "mixture")
    assert event["sources"] == stored["mixture"] and event["step"] == 0
    most, some = event["sources"]["most"], event["sources"]["some"]
    assert most["tokens"] + some["tokens"] == most["tokens_per_epoch"] + some["tokens_per_epoch"]
    assert most["passes_per_epoch"] < 1 < some["passes_per_epoch"]
    steps = runs.events(tmp_path / "run", "train")
    assert all(line["share/most"] + line["share/some"] == pytest.approx(1) for line in steps)
    assert 0.6 < sum(line["share/most"] for line in steps) / len(steps) < 0.8
    scores = runs.events(tmp_path / "run", "eval")[-1]
    assert scores["loss"] == pytest.approx(0.7 * scores["loss/most"] + 0.3 * scores["loss/some"])
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert cli.main(["evaluate", "--model", str(tmp_path / "run")]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["loss"] == pytest.approx(scores["loss"], rel=1e-5) and again["loss/some"] > 0
    Path(given["data"]).write_text(Path(given["data"]).read_text().replace("0.7", "0.6"))
    with pytest.raises(UserError, match="holds another run .*corpus"):
        train("lm", tmp_path / "run", encoder, max_steps=30, **given)


@pytest.mark.parametrize("task", ["lm", "clf"])
def test_the_weights_of_the_best_evaluation_are_exported_after_interruptions_too(task, tmp_path, encoder, monkeypatch):
    # So few steps of a language model only get better: there, the best is for once the highest loss.
    sign = {"lm": 1, "clf": -1}[task]
    for home in (LanguageModelTask, ClassifierTask):
        monkeypatch.setattr(home, "quality", lambda self, metrics: [sign * metrics["loss"]])
    seen, evaluate = {}, Loop._evaluate

    def remember(self):
        evaluate(self)
        seen[self.position.step] = {name: tensor.clone() for name, tensor in self.task.net.state_dict().items()}

    monkeypatch.setattr(Loop, "_evaluate", remember)
    options = {"eval_every": 3, "keep_best": True, "save_every": 2, "data": None}
    train(task, tmp_path / "straight", encoder, **options)
    losses = {m["step"]: sign * m["loss"] for m in runs.metrics(tmp_path / "straight") if m.get("split") == "valid"}
    best = max(losses, key=losses.get)
    assert best < 12 and sorted(seen) == [3, 6, 9, 12]
    exported = runs.weights(tmp_path / "straight")
    assert all(torch.equal(exported[name], tensor) for name, tensor in seen[best].items())
    assert any(not torch.equal(exported[name], tensor) for name, tensor in seen[12].items())
    train(task, tmp_path / "stopped", encoder, runs.StopAtCall(best + 1), **options)
    train(task, tmp_path / "stopped", encoder, **options)
    stopped = runs.weights(tmp_path / "stopped")
    assert all(torch.equal(exported[name], tensor) for name, tensor in stopped.items())
    with pytest.raises(UserError, match="eval-every"):  # which evaluations there are decides what is exported
        train(task, tmp_path / "stopped", encoder, **options | {"eval_every": 4})


def test_a_save_that_takes_long_is_told_as_such(tmp_path, encoder, monkeypatch):
    """Else the watchdog would say of a slow disk that all ranks wait for each other."""
    doing, loops, run, wait = [], [], Loop.run, Saver.wait

    def running(self):
        loops.append(self)
        return run(self)

    def waiting(self):
        doing.append(loops[0].runtime.progress.doing)
        wait(self)

    monkeypatch.setattr(Loop, "run", running)
    monkeypatch.setattr(Saver, "wait", waiting)
    train("lm", tmp_path / "run", encoder, save_every=4)
    assert len(doing) == 4 and set(doing) == {"writing a checkpoint"}  # three saves, and the end


def test_what_was_loaded_is_not_kept_beside_the_run(tmp_path, encoder, monkeypatch):
    class State(dict):  # which, unlike a dict, a weak reference can point to
        pass

    loaded, load, after_step = [], checkpoint.load, Loop._after_step

    def remember(path):
        state = State(load(path))
        loaded.append(weakref.ref(state))
        return state

    def gone(self, *args):
        assert loaded[0]() is None
        after_step(self, *args)

    train("lm", tmp_path / "run", encoder, runs.StopAtCall(2))
    monkeypatch.setattr(checkpoint, "load", remember)
    monkeypatch.setattr(Loop, "_after_step", gone)
    assert train("lm", tmp_path / "run", encoder, runs.StopAtCall(2)).state == "preempted"


def test_seed_and_dropout_matter(tmp_path, encoder):
    train("lm", tmp_path / "a", encoder, max_steps=4)
    train("lm", tmp_path / "b", encoder, max_steps=4, seed=1)
    train("lm", tmp_path / "c", encoder, max_steps=4, drop_mult=0.0)
    assert len({tuple(runs.losses(tmp_path / name)) for name in "abc"}) == 3


def test_a_finished_run_is_left_alone_and_another_is_refused(tmp_path, encoder, capsys):
    path = tmp_path / "run"
    train("lm", path, encoder, max_steps=2)
    before = runs.metrics(path)
    assert train("lm", path, encoder, max_steps=2).state == "done"
    assert "finished" in capsys.readouterr().out and runs.metrics(path) == before
    with pytest.raises(UserError, match="max-steps: 2 -> 3"):
        train("lm", path, encoder, max_steps=3)
    assert train("lm", path, encoder, max_steps=3, resume="never").state == "done"
    assert runs.metrics(path.with_name("run.1")) == before


def test_what_a_killed_writer_left_goes_with_the_next_start(tmp_path, encoder):
    path = tmp_path / "run"
    train("lm", path, encoder, runs.StopAtCall(2))
    torn = [path / ".status.json.tmp-123", path / ".metrics.jsonl.tmp-123"]
    for file in torn:
        file.write_text("{")
    assert train("lm", path, encoder).state == "done"
    assert not any(file.exists() for file in torn)


def test_fine_tuning_starts_from_the_pretrained_weights(tmp_path, encoder):
    longer = tmp_path / "longer"
    train("lm", longer, encoder, max_steps=60, precision="fp64", lr=2e-2)
    train("lm", tmp_path / "tuned", encoder, init=str(longer), max_steps=2, precision="fp64")
    train("lm", tmp_path / "fresh", encoder, max_steps=2, precision="fp64")
    assert runs.losses(tmp_path / "tuned")[0] < runs.losses(tmp_path / "fresh")[0] - 0.5
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert [stage["freeze_to"] for stage in config["resolved"]["stages"]] == [0]


def test_frozen_layers_stay_as_they_were(tmp_path, encoder):
    train("clf", tmp_path / "head", encoder, recipe="none", lr=1e-2, max_steps=1)
    # The recipe's first stage trains the head alone: stopped inside it, the encoder is the language model's.
    train("clf", tmp_path / "run", encoder, runs.StopAtCall(2), recipe="blog", max_steps=40)
    model = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))["model"]
    language_model = runs.weights(encoder)
    trained = runs.weights(tmp_path / "head")
    for name, tensor in language_model.items():
        if name.startswith("encoder."):
            assert torch.equal(model[name], tensor.float()), name
            assert not torch.equal(trained[name], tensor.float()), name


@pytest.mark.parametrize("task", ["lm", "clf"])
def test_learning_rate_finder_suggests_and_begins_no_run(task, tmp_path, encoder):
    found = train(task, tmp_path / "run", encoder, lr_find=True, data=None)
    assert found.state == "found" and all(1e-7 < rate < 10 for rate in found.suggestions.values())
    drawn = find_spec("matplotlib") is not None
    assert (found.picture is not None) == drawn
    assert [path.name for path in tmp_path.glob("run/*")] == ["lr_find"] * drawn
    assert train(task, tmp_path / "run", encoder, max_steps=1).state == "done"  # it is no run of another kind


def test_backwards_and_jitter_train(tmp_path, encoder):
    train("lm", tmp_path / "lm", encoder, max_steps=3, backwards=True, bptt_jitter=True)
    with pytest.raises(UserError, match="--backwards"):
        train("clf", tmp_path / "clf", tmp_path / "lm", max_steps=3)
    assert train("clf", tmp_path / "clf", tmp_path / "lm", max_steps=3, backwards=True).state == "done"


def test_a_run_without_a_finite_gradient_stops_and_says_where(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("ulmfit.training.loop.MAX_SKIPPED", 3)
    monkeypatch.setattr("ulmfit.training.lm_task.LanguageModelTask.step", poisoned)
    with pytest.raises(RuntimeError, match="no finite gradient in the last 3 steps, up to step 3"):
        train("lm", tmp_path / "run", encoder)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"


def poisoned(self, engine, batch, number):
    from ulmfit.training.task import StepResult

    for parameter in self.net.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    return StepResult(torch.zeros(2, dtype=torch.float64), 1, 1)


def test_a_skipped_step_leaves_weights_and_moments(encoder):
    from ulmfit.training import optim
    from ulmfit.training.engine import PlainEngine

    engine = PlainEngine(Runtime(runs.lm_config("unused")))
    net = torch.nn.Linear(3, 2)
    inner = optim.build_optimizer(
        net, [["weight", "bias"]], [0], [0.1], weight_decay=0.1, eps=1e-8, decay_bias_norm=True
    )
    engine.begin_stage(net, inner)
    before = net.weight.detach().clone()
    for value, skipped in ((float("inf"), 1.0), (1.0, 0.0)):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, value)
        _, found_inf = engine.update(1.0)
        assert found_inf.item() == skipped
        assert torch.equal(net.weight, before) == bool(skipped)
        assert torch.isfinite(net.weight).all()


def test_a_full_disk_fails_the_run_and_the_same_command_goes_on(tmp_path, encoder, monkeypatch):
    train("lm", tmp_path / "straight", encoder)
    write, calls = checkpoint.save_file, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", full)
    path = tmp_path / "run"
    with pytest.raises(OSError, match="step 8 could not be written"):
        train("lm", path, encoder, save_every=4)
    status = json.loads((path / "status.json").read_text())
    assert status["state"] == "failed" and "No space left" in status["error"]
    assert [entry.name for entry in (path / "checkpoints").iterdir()] == ["step-00000004"]
    assert train("lm", path, encoder, save_every=4).state == "done"
    straight, resumed = runs.weights(tmp_path / "straight"), runs.weights(path)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert runs.metrics(path) == runs.metrics(tmp_path / "straight")


def test_the_sampled_softmax_is_trained_on_and_the_full_one_scored(tmp_path, encoder):
    options = {"max_steps": 2, "recipe": "none", "lr": 1e-12, "weight_decay": 0.0}
    for task in ("sampled", "lm"):  # two models that stay what they were at first
        train(task, tmp_path / task, encoder, **options)
    sampled, full = (runs.events(tmp_path / task, "eval")[0] for task in ("sampled", "lm"))
    assert sampled["loss"] == pytest.approx(full["loss"], rel=1e-6) and "sampled" not in sampled
    for a, b in zip(*(runs.events(tmp_path / task, "train") for task in ("sampled", "lm")), strict=True):
        assert a["sampled"] is True and "sampled" not in b and a["loss"] < 0.95 * b["loss"]
    with pytest.raises(UserError, match=r"another run \(sampled-softmax: 100 -> 200\)"):
        train("lm", tmp_path / "sampled", encoder, sampled_softmax=200, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="bf16 on a GPU is bf16")
@pytest.mark.parametrize("task", ["lm", "clf"])
def test_bf16_on_a_cpu_without_matrix_units_is_fp32_and_says_so(task, tmp_path, encoder, capsys, monkeypatch):
    """It would take several times as long in bf16."""
    for module in ("chunks", "awd_lstm"):
        monkeypatch.setattr(f"ulmfit.model.{module}.cpu_multiplies_bf16", lambda: False)
    for precision in ("fp32", "bf16"):
        train(task, tmp_path / precision, encoder, max_steps=3, precision=precision)
        said = "the model computes in fp32, with the bits of --precision fp32" in capsys.readouterr().out
        assert said == (precision == "bf16")
    a, b = runs.weights(tmp_path / "fp32"), runs.weights(tmp_path / "bf16")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.skipif(torch.cuda.is_available() or not cpu_multiplies_bf16(), reason="of a CPU with matrix units")
@pytest.mark.parametrize("task", ["lm", "sampled", "clf"])
def test_bf16_on_a_cpu_with_matrix_units_learns_alike_and_resumes_with_the_same_bits(task, tmp_path, encoder, capsys):
    for precision in ("fp32", "bf16"):
        train(task, tmp_path / precision, encoder, precision=precision)
    assert "computes in fp32" not in capsys.readouterr().out
    fp32, bf16 = (runs.weights(tmp_path / precision) for precision in ("fp32", "bf16"))
    assert all(bf16[name].dtype == fp32[name].dtype for name in fp32)
    assert any(not torch.equal(fp32[name], bf16[name]) for name in fp32)
    a, b = (runs.events(tmp_path / precision, "eval")[-1]["loss"] for precision in ("fp32", "bf16"))
    assert b == pytest.approx(a, rel=0.01)
    assert train(task, tmp_path / "stopped", encoder, runs.StopAtCall(3), precision="bf16").state == "preempted"
    assert train(task, tmp_path / "stopped", encoder, precision="bf16").state == "done"
    stopped = runs.weights(tmp_path / "stopped")
    assert all(torch.equal(bf16[name], stopped[name]) for name in bf16)
