"""Memory that runs out: the sentence, and the search for micro-batches that fit, with a device that is not there."""

import json

import pytest
import torch

from tests.distributed.ranks import on_ranks
from tests.training import runs
from ulmfit import train_classifier, train_language_model
from ulmfit.distributed import memory
from ulmfit.errors import UserError
from ulmfit.training import run_task
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.lm_task import LanguageModelTask
from ulmfit.training.loop import Loop, TrainingFailed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))


def short_of_memory(task_class, monkeypatch, *, fits):
    """A device on which a step with fewer than `fits` micro-batches runs out of memory, in its backward pass."""
    step, tried = task_class.step, []

    def limited(self, engine, batch, number):
        result = step(self, engine, batch, number)
        if isinstance(engine, memory._Alone):
            tried.append(self.micro_batches)
        if self.micro_batches < fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(task_class, "step", limited)
    return tried


def test_out_of_memory_says_which_option_to_change(tmp_path, monkeypatch):
    short_of_memory(LanguageModelTask, monkeypatch, fits=2)
    with pytest.raises(TrainingFailed, match="out of memory at step 1 on rank 0: give --micro-batches 2"):
        train_language_model(runs.lm_config(tmp_path / "run"))
    assert "--micro-batches 2" in json.loads((tmp_path / "run" / "status.json").read_text())["error"]


def test_other_errors_are_not_taken_for_it():
    assert memory.is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"))
    assert memory.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    assert memory.is_out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"))
    assert not memory.is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lm", "clf"])
def test_the_trial_finds_the_fewest_that_fit_and_leaves_no_trace(task, tmp_path, monkeypatch):
    task_class, train, config = {
        "lm": (LanguageModelTask, train_language_model, runs.lm_config(tmp_path / "run", max_steps=3)),
        "clf": (ClassifierTask, train_classifier, runs.clf_config(tmp_path / "run", max_steps=3)),
    }[task]
    train(type(config)(**vars(config) | {"output_dir": str(tmp_path / "plain"), "micro_batches": 4}))
    tried = short_of_memory(task_class, monkeypatch, fits=4)

    def choose(task, session, directory):
        assert memory.fit_micro_batches(task, session.runtime) == 4

    monkeypatch.setattr(run_task, "_choose_micro_batches", choose)
    config.micro_batches = "auto"
    train(config)
    assert tried == [1, 2, 4]
    plain, found = runs.weights(tmp_path / "plain"), runs.weights(tmp_path / "run")
    assert all(torch.equal(plain[name], found[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [8, 9])
def test_the_classifiers_trial_on_two_ranks_is_of_its_own_documents(batch_size, tmp_path, monkeypatch):
    """No collective may be in it, for only some ranks may run out of memory."""
    gathered = []

    def choose(task, session, directory):
        gathered.append(task.largest_batch().gathered is not None)
        assert memory.fit_micro_batches(task, session.runtime) == 2

    def trained(rank):
        tried = short_of_memory(ClassifierTask, monkeypatch, fits=2)
        monkeypatch.setattr(run_task, "_choose_micro_batches", choose)
        options = {"micro_batches": "auto", "max_steps": 2, "batch_size": batch_size}
        result = train_classifier(runs.clf_config(tmp_path / "run", **options))
        return result.state, tried, gathered

    for state, tried, with_places in on_ranks(2, trained, tmp_path / "ranks"):
        assert state == "done" and tried == [1, 2] and with_places == [True]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "on another rank"])
def test_what_never_fits_is_told_on_every_rank(where, tmp_path, monkeypatch):
    tried = short_of_memory(LanguageModelTask, monkeypatch, fits=99 if where == "here" else 1)

    def choose(task, session, directory):
        if where == "on another rank":
            monkeypatch.setattr(session.runtime, "max", lambda values: [1.0])
        memory.fit_micro_batches(task, session.runtime)

    monkeypatch.setattr(run_task, "_choose_micro_batches", choose)
    with pytest.raises(UserError, match="--batch-size does not fit the GPU's memory, .*; use more processes"):
        train_language_model(runs.lm_config(tmp_path / "run", micro_batches="auto"))
    assert tried == [1, 2, 4, 8, 16]  # rows


@pytest.mark.slow
def test_a_resumed_run_keeps_the_cut_that_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(Loop, "_stop_agreed", lambda loop: loop.position.step == 2)
    config = runs.lm_config(tmp_path / "run", micro_batches="auto", max_steps=4)
    assert train_language_model(config).state == "preempted"
    file = tmp_path / "run" / "config.json"
    stored = json.loads(file.read_text())
    assert stored["resolved"]["micro_batches"] == 1  # no GPU here
    stored["resolved"]["micro_batches"] = 2  # as if it had been found on one
    file.write_text(json.dumps(stored))
    used, step = [], LanguageModelTask.step

    def recorded(self, engine, batch, number):
        used.append(self.micro_batches)
        return step(self, engine, batch, number)

    monkeypatch.setattr(LanguageModelTask, "step", recorded)
    train_language_model(config)
    assert used == [2, 2]
