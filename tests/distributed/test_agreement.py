"""What ranks agree on between steps, and what they gather for a checkpoint."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import on_ranks
from tests.training import runs
from ulmfit import train_language_model
from ulmfit.config import LMConfig
from ulmfit.distributed import runtime as runtime_module
from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.stop import SAVE_FILE, STOP_FILE, StopRequest
from ulmfit.errors import UserError
from ulmfit.run import checkpoint
from ulmfit.run.saver import Saver
from ulmfit.training import agreement
from ulmfit.training.agreement import Agreement
from ulmfit.training.loop import Loop


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(runs.write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", 40))


def a_runtime() -> Runtime:
    runtime = Runtime(LMConfig(threads=1))
    runtime.group.end_set_up()
    return runtime


def test_rank_0_alone_collects_and_holds_little_of_the_others_at_a_time(tmp_path):
    sent: list[int] = []

    def collect(rank: int) -> tuple:
        gather = dist.gather

        def counted(own, parts=None, *, dst):
            sent.append(own.nbytes)
            assert (parts is None) == (rank != dst), "only the receiver has room for all"
            gather(own, parts, dst=dst)

        dist.gather, runtime_module.COLLECTED = counted, 2 * 3 * 5 * 4  # three rows of each rank
        values = torch.arange(8 * 5, dtype=torch.float32).reshape(8, 5) + 1000 * rank
        runtime = a_runtime()
        return runtime.collect(values.requires_grad_()), runtime.collect_objects({"rank": rank}), sent

    (whole, objects, sizes), (nothing, none, theirs) = on_ranks(2, collect, tmp_path)
    assert nothing is None and none is None and objects == [{"rank": 0}, {"rank": 1}]
    rows = torch.arange(8 * 5, dtype=torch.float32).reshape(8, 5)
    assert torch.equal(whole, torch.cat([rows, rows + 1000])) and not whole.requires_grad
    assert sizes == theirs == [60, 60, 40]


def test_all_ranks_stop_after_the_same_step_one_later_than_the_rank_that_was_asked(tmp_path):
    def steps(rank: int) -> list[tuple]:
        stop = SimpleNamespace(
            requested=lambda: rank == 1 and step >= 5, save_requested=lambda: rank == 0 and step == 2
        )
        agreement.SECONDS = 1e-9  # they ask each other after every step
        meeting, seen = Agreement(a_runtime(), stop, Saver(tmp_path, keep=1, before=lambda: None), None), []
        for step in range(1, 9):
            seen.append((step, meeting.after_step(step)))
            if seen[-1][1] and seen[-1][1].stop:
                break
        return [(step, tuple(agreed)) for step, agreed in seen if agreed and any(agreed)]

    first, second = on_ranks(2, steps, tmp_path)
    assert first == second == [(3, (False, True, False)), (6, (True, False, False))]


def test_a_checkpoint_that_is_due_is_written_once(tmp_path):
    def steps(rank: int) -> list[int]:
        due = [rank == 0]  # until it is written
        stop = SimpleNamespace(requested=lambda: False, save_requested=lambda: due[0])
        agreement.SECONDS = 1e-9  # they ask each other after every step
        meeting, seen = Agreement(a_runtime(), stop, Saver(tmp_path, keep=1, before=lambda: None), None), []
        for step in range(1, 9):
            if (agreed := meeting.after_step(step)) and agreed.save:
                seen.append(step)
                due[0] = False
        return seen

    assert on_ranks(2, steps, tmp_path) == [[2], [2]]


def test_an_answer_that_is_still_to_be_read_is_read_at_the_end_of_a_stage(tmp_path):
    def rest(rank: int) -> tuple:
        stop = SimpleNamespace(requested=lambda: rank == 1, save_requested=lambda: False)
        meeting = Agreement(a_runtime(), stop, Saver(tmp_path, keep=1, before=lambda: None), None)
        return meeting.after_step(1), tuple(meeting.rest()), meeting.rest()

    assert on_ranks(2, rest, tmp_path) == [(None, (True, False, False), None)] * 2


def test_ranks_ask_each_other_once_a_second_and_seldom_enough(monkeypatch):
    clock, asked = [0.0], []
    monkeypatch.setattr(agreement.time, "perf_counter", lambda: clock[0])
    stop = SimpleNamespace(requested=lambda: asked.append(step) or False, save_requested=lambda: False)
    saver = SimpleNamespace(failed=False)
    meeting = Agreement(SimpleNamespace(world_size=1, max_later=lambda values: lambda: values), stop, saver, None)
    for step in range(1, 100):
        clock[0] += 0.001 if step < 60 else 0.4
        meeting.after_step(step)
    assert asked[:6] == [1, 2, 4, 8, 16, 20] and asked[6:8] == [40, 60]
    later = [step for step in asked if step > 80]
    assert later == list(range(82, 100, 2)), "0.4 s a step: every second one"


# Checkpoints by the clock and on demand


@pytest.fixture
def unhurried(monkeypatch):
    """Ranks ask each other after steps 1, 2, 4, 8 and so on, however slow the steps are."""
    monkeypatch.setattr(agreement, "SECONDS", 1e9)


def train(path: Path, data: str, **options):
    return train_language_model(runs.lm_config(path, data=data, preset="tiny", bptt=6, **options))


def saved_steps(path: Path) -> list[int]:
    return sorted(int(entry.name.removeprefix("step-")) for entry in (path / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_run_saved_by_the_clock_resumes_with_the_same_bits(tmp_path, data, unhurried):
    options = {"max_steps": 6, "keep": 9}
    train(tmp_path / "straight", data, **options)
    train(tmp_path / "run", data, **options, save_every=None, save_minutes=1e-9)
    assert saved_steps(tmp_path / "straight") == [6] and saved_steps(tmp_path / "run") == [1, 2, 4, 6]
    for step in (6, 4):
        path = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        path.rename(tmp_path / path.name)
    (tmp_path / "run" / "status.json").write_text('{"state": "preempted", "step": 2}')
    train(tmp_path / "run", data, **options, save_minutes=1e6)
    ours, theirs = runs.weights(tmp_path / "run"), runs.weights(tmp_path / "straight")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert runs.metrics(tmp_path / "run") == runs.metrics(tmp_path / "straight")
    assert saved_steps(tmp_path / "run") == [1, 2, 6]


@pytest.mark.parametrize(
    ("options", "every"),
    [({}, 500), ({"save_minutes": 5.0}, 0), ({"save_minutes": 5.0, "save_every": 7}, 7), ({"save_every": 0}, 0)],
)
def test_minutes_stand_in_for_steps_unless_both_are_given(options, every):
    assert LMConfig(**options).steps_between_saves == every


def test_minutes_below_zero_are_refused(tmp_path, data):
    with pytest.raises(UserError, match="--save-minutes"):
        train(tmp_path / "run", data, save_minutes=-1.0)


def test_a_file_asks_for_a_checkpoint_and_the_training_goes_on(tmp_path, data, unhurried, monkeypatch):
    after = Loop._after_step

    def ask(loop, *arguments):
        after(loop, *arguments)
        if loop.position.step in (3, 5):
            (tmp_path / "run" / SAVE_FILE).touch()

    monkeypatch.setattr(Loop, "_after_step", ask)
    assert train(tmp_path / "run", data, max_steps=9, keep=9).state == "done"
    assert saved_steps(tmp_path / "run") == [4, 8, 9]
    assert not (tmp_path / "run" / SAVE_FILE).exists()


def test_a_job_has_such_a_file_for_all_its_trainings(tmp_path):
    stop = StopRequest()
    stop.watch(tmp_path / "job" / "lm", None, 0.0)
    stop.watch_job(tmp_path / "job")
    (tmp_path / "job" / "lm").mkdir(parents=True)
    assert not stop.save_requested()
    (tmp_path / "job" / SAVE_FILE).touch()
    assert stop.save_requested()
    stop.take_save_request()
    assert not stop.save_requested() and not (tmp_path / "job" / SAVE_FILE).exists()


@pytest.mark.slow
def test_two_ranks_save_by_the_clock_what_one_process_saves(tmp_path, data, unhurried):
    """The same steps on both, the whole hidden state in the checkpoint, and the weights of a run without."""
    options = {"max_steps": 5, "keep": 9, "precision": "fp64"}

    def run(rank: int) -> str:
        return train(tmp_path / "two", data, **options, save_every=None, save_minutes=1e-9).state

    train(tmp_path / "one", data, **options, save_every=1)
    assert on_ranks(2, run, tmp_path / "launch") == ["done", "done"]
    assert saved_steps(tmp_path / "two") == [2, 5]  # asked after 1 and 4; after 2 one is being written
    one, two = (checkpoint.load(tmp_path / name / "checkpoints" / "step-00000002") for name in ("one", "two"))
    assert one["position"] == two["position"]
    for ours, theirs in zip(two["carried"]["hidden"], one["carried"]["hidden"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape and len(a) == 16
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert runs.distance(runs.weights(tmp_path / "one"), runs.weights(tmp_path / "two")) < 1e-10


def test_a_request_that_cannot_be_removed_asks_once(tmp_path, monkeypatch, capsys):
    stop = StopRequest()
    stop.watch_job(tmp_path)
    (tmp_path / SAVE_FILE).mkdir()
    assert not stop.save_requested(), "a directory is no request"
    (tmp_path / SAVE_FILE).rmdir()
    (tmp_path / SAVE_FILE).touch()
    assert stop.save_requested()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    stop.take_save_request()
    assert not stop.save_requested()
    assert "cannot be removed (Permission denied)" in capsys.readouterr().err


def test_a_disk_that_does_not_answer_asks_for_nothing(tmp_path, monkeypatch):
    stop = StopRequest()
    stop.watch(tmp_path, None, 0.0)
    (tmp_path / SAVE_FILE).touch()
    (tmp_path / STOP_FILE).touch()

    def stale(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("pathlib.Path.stat", stale)
    assert not stop.save_requested() and not stop.requested()
    stop.take_save_request()
    monkeypatch.undo()
    assert stop.save_requested() and stop.requested()
