"""The reproduction's stages and who waits for whom, by a clock that the tests move. gpu_reproduce.py as a whole, killed
and stalled, is run by ULMFIT_LONG."""

import argparse
import json
from dataclasses import replace

import gpu_reproduce
import gpu_stage
import pytest
import torch
from gpu_plan import Limits
from gpu_stage import Cycle, Training, classifier, found_weights, language_model

from tests.one_gpu.test_packed import written
from ulmfit.run import checkpoint
from ulmfit.training.stages import Stage

SIZES = replace(gpu_stage.SIZES["tiny"], rows=4, bptt=8, documents=8)


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self, now=0.0, tick=1.0):
        self.time, self.tick = now, tick

    def now(self):
        self.time += self.tick
        return self.time

    def wall(self, seconds):
        return seconds


@pytest.fixture
def store(tmp_path):
    return written(tmp_path / "store", 60, labels=True)


def order(**more):
    return {"precision": "fp32", "epochs": 2, "from": [], "end": 100} | more


def trained(store, folder, end, *, weights=(), save=1e9, resume=False, tick=1.0, name="imdb"):
    task, recipe, cycles, runtime, origin = language_model(name, store, SIZES, order(**{"from": list(weights)}))
    told = []
    training = Training(
        task, recipe, cycles, runtime, folder, lambda event, **what: told.append({"event": event} | what)
    )
    if resume:
        assert training.resume(checkpoint.load(checkpoint.latest(folder / "checkpoints")))
    training.run(Ticks(tick=tick), end, save)
    return task, training, [one for one in told if one["event"] == "cycle"], origin, told


def test_a_slow_stage_is_annealed_where_its_share_ends(store, tmp_path):
    """A step takes 2 of 100 seconds or so: by far not all steps are done, and the rate has come down all the same."""
    _, training, cycles, _, told = trained(store, tmp_path / "w", 100, name="wikipedia")
    (cycle,) = cycles
    assert cycle["of"] > training.steps > 20 and cycle["seconds"] <= cycle["given"] + 3
    assert cycle["lr_at_the_end"] < 0.02 * SIZES.wikipedia_lr
    rates = [one["lr"] for one in told if one["event"] == "train"]
    assert max(rates) > 0.9 * SIZES.wikipedia_lr and rates.index(max(rates)) < len(rates) / 2


def test_a_fast_stage_ends_with_its_epochs(store, tmp_path):
    _, training, cycles, _, _ = trained(store, tmp_path / "w", 1e6, name="wikipedia")
    assert training.steps == cycles[0]["steps"] == cycles[0]["of"]


def test_a_killed_stage_goes_on_and_still_ends_annealed(store, tmp_path):
    """The checkpoint of a stage that never came to its end: what is left of the schedule fits into what is left of time."""
    folder = tmp_path / "imdb"
    torch.manual_seed(0)
    (tmp_path / "wikipedia").mkdir()
    first = trained(store, tmp_path / "wikipedia", 30, save=4, name="wikipedia")[1]  # leaves checkpoints, no weights
    task, recipe, cycles, runtime, origin = language_model(
        "imdb", store, SIZES, order(**{"from": [str(tmp_path / "wikipedia")]})
    )
    assert origin.startswith("wikipedia, checkpoint of step ") and int(origin.split()[-1]) <= first.steps

    class Killed(Exception):
        pass

    clock = Ticks()

    def tell(event, **what):
        if clock.time > 70:
            raise Killed

    training = Training(task, recipe, cycles, runtime, folder, tell)
    with pytest.raises(Killed):
        training.run(clock, 100, 6)
    training._saver.wait()
    saved = checkpoint.load(checkpoint.latest(folder / "checkpoints"))
    assert saved["cycle"] == 1 and 0 < saved["over"] < 1, "killed in the middle of the second cycle"
    assert not Training(task, recipe, cycles[1:], runtime, folder, tell).resume(saved), (
        "of a stage that began otherwise"
    )
    _, resumed, cycles, _, told = trained(store, folder, 40, resume=True, weights=[tmp_path / "wikipedia"])
    assert [cycle["cycle"] for cycle in cycles] == ["all groups"] and resumed.steps > saved["steps"]
    assert cycles[0]["lr_at_the_end"] < 0.02 * 4e-3
    assert 0 <= next(one for one in told if one["event"] == "train")["progress"] - saved["over"] < 0.05


def test_the_classifier_takes_the_encoder_and_unfreezes_within_its_share(store, tmp_path):
    lm = language_model("wikipedia", store, SIZES, order())[0]
    (tmp_path / "imdb").mkdir()
    weights = {key: value.contiguous() for key, value in lm.net.state_dict().items()}
    gpu_stage.safetensors.torch.save_file(weights, tmp_path / "imdb" / gpu_stage.WEIGHTS)
    task, recipe, cycles, runtime, origin = classifier(
        store, SIZES, order(**{"from": [str(tmp_path / "none"), str(tmp_path / "imdb")]})
    )
    assert origin == "imdb"
    assert torch.equal(task.net.encoder.embedding.weight, lm.net.encoder.embedding.weight)
    told = []
    training = Training(
        task, recipe, cycles, runtime, tmp_path / "clf", lambda event, **what: told.append({"event": event} | what)
    )
    training.run(Ticks(), 30, 1e9)
    ends = [one for one in told if one["event"] == "cycle"]
    assert [one["cycle"] for one in ends] == ["head", "last 2 groups", "last 3 groups", "all groups"]
    assert all(one["steps"] >= 1 for one in ends) and sum(one["seconds"] for one in ends) < 40
    gpu_stage.test(task, store, runtime, tmp_path, lambda event, **what: told.append({"event": event} | what))
    assert told[-1]["reviews"] == 60 and 0 <= told[-1]["accuracy"] <= 1 and (tmp_path / "test_logits.npz").exists()


def test_weights_that_diverged_are_passed_over(tmp_path):
    for name, value in (("imdb", float("nan")), ("wikipedia", 1.0)):
        (tmp_path / name).mkdir()
        gpu_stage.safetensors.torch.save_file({"a": torch.full((2,), value)}, tmp_path / name / gpu_stage.WEIGHTS)
    weights, word = found_weights([str(tmp_path / "imdb"), str(tmp_path / "wikipedia")])
    assert weights["a"].tolist() == [1, 1] and word == "wikipedia (imdb diverged)"
    assert found_weights([str(tmp_path / "imdb")]) == ({}, "random weights (imdb diverged)")


def test_without_any_weights_nothing_is_frozen(store, tmp_path):
    assert found_weights([str(tmp_path / "none")]) == ({}, "random weights")
    assert [cycle.stage.freeze_to for cycle in language_model("imdb", store, SIZES, order())[2]] == [0]
    assert {cycle.stage.freeze_to for cycle in classifier(store, SIZES, order())[2]} == {0}
    assert Cycle(Stage("x", 0, 1, 1.0), 1, 1.0).weight == 1


# Who waits for whom


class World:
    """Stands in for processes and time: a stage's events, each after so many seconds; `hangs` never comes."""

    def __init__(self, script):
        self.script, self.time, self.orders, self.closed = script, 0.0, [], []

    def now(self):
        return self.time

    def wall(self, seconds):
        return seconds

    speed, origin = 1.0, 0.0


def scripted(world):
    class Stage:
        def __init__(self, name, given):
            self.name, self.seen, self.ended, self.given_up = name, {}, False, False
            self._events = list(world.script[name])

        def send(self, what):
            world.orders.append((self.name, world.time, what))

        def next(self, seconds):
            if self.ended:
                return None
            after, event = self._events.pop(0)
            if after == "hangs" or after > seconds:
                world.time += max(0.0, seconds)
                self._events.insert(0, (after if after == "hangs" else after - max(0.0, seconds), event))
                raise TimeoutError
            world.time += after
            if event is None:
                self.ended = True
                return None
            self.seen[event["event"]] = event
            return dict(event)

        def close(self):
            self.ended = True
            world.closed.append(self.name)

    return Stage


READY = {"event": "ready", "documents": 10, "tokens": 30_000_000, "missing": []}
TRAIN = {"event": "train", "cycle": "all groups", "step": 5, "tokens": 10, "tokens_per_second": 5}
WEIGHTS = {"event": "weights", "steps": 9, "tokens": 20, "tokens_per_second": 400_000}
BEGAN = {"event": "began", "weights": "imdb"}
SCORES = {"event": "scores", "perplexity": 50.0, "accuracy": 0.25}
END = {"event": "end"}
GOOD = [(10, READY), (1, BEGAN), (5, TRAIN), (60, WEIGHTS), (1, SCORES), (0, END)]
TESTED = {"event": "scores", "reviews": 25_000, "accuracy": 0.94, "loss": 0.17}
CLASSIFIER = [(0, READY), (1, BEGAN), (60, WEIGHTS), (5, TESTED), (2, {"event": "model", "parts": 3}), (0, END)]


def reproduced(tmp_path, monkeypatch, world):
    monkeypatch.setattr(gpu_reproduce, "Stage", scripted(world))
    folder = tmp_path / "pieces"
    folder.mkdir(exist_ok=True)
    (folder / "packed.json").write_text("{}")
    options = argparse.Namespace(
        clock=1.0, seconds=495.0, work=str(tmp_path / "work"), output=str(tmp_path / "out"), probe=None, sizes="base",
        threads=None, packed=[str(folder)], stall=None,
    )  # fmt: skip
    job = gpu_reproduce.Reproduction(options)
    job.clock = world
    return job, job.run()


def test_all_goes_well(tmp_path, monkeypatch):
    world = World({"wikipedia": GOOD, "imdb": GOOD, "classifier": CLASSIFIER})
    job, reached = reproduced(tmp_path, monkeypatch, world)
    assert reached and [name for name, *_ in world.orders] == ["wikipedia", "imdb", "classifier"]
    assert world.orders[2][2]["from"] == [str(tmp_path / "work" / name) for name in ("imdb", "wikipedia")]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "**0.9400 of 25,000 test reviews**" in text and "perplexity 50.0" in text and "killed" not in text
    assert (tmp_path / "out" / "results.jsonl").read_text() == (tmp_path / "work" / "results.jsonl").read_text()


@pytest.mark.parametrize("hangs", ["wikipedia", "imdb"])
def test_a_stage_that_hangs_does_not_move_the_classifier(tmp_path, monkeypatch, hangs):
    world = World({"wikipedia": GOOD, "imdb": GOOD, "classifier": CLASSIFIER} | {hangs: GOOD[:3] + [("hangs", None)]})
    job, reached = reproduced(tmp_path, monkeypatch, world)
    (begun,) = (at for name, at, _ in world.orders if name == "classifier")
    assert reached and begun <= job.limits.classifier_at == 370 and hangs in world.closed
    assert f"{hangs} was killed, its time was up" in (tmp_path / "out" / "table.md").read_text()


def test_a_stage_that_had_no_time_for_a_step_is_told(tmp_path, monkeypatch):
    late = [(10, READY), (1, BEGAN), (60, WEIGHTS | {"steps": 0, "tokens": 0, "tokens_per_second": 0}), (0, END)]
    assert reproduced(tmp_path, monkeypatch, World({"wikipedia": late, "imdb": GOOD, "classifier": CLASSIFIER}))[1]
    (line,) = [
        line for line in (tmp_path / "out" / "table.md").read_text().splitlines() if "model of Wikipedia |" in line
    ]
    assert line.endswith("| 0 | 0 | 0 | none |")


def test_a_stage_that_is_slow_to_be_ready_is_not_killed_before_its_turn(tmp_path, monkeypatch):
    world = World({"wikipedia": GOOD, "imdb": [(140, READY), *GOOD[1:]], "classifier": CLASSIFIER})
    assert reproduced(tmp_path, monkeypatch, world)[1]
    assert [name for name, *_ in world.orders] == ["wikipedia", "imdb", "classifier"]


def test_a_stage_that_fails_is_told_and_left_out(tmp_path, monkeypatch):
    world = World({"wikipedia": [(1, None)], "imdb": GOOD, "classifier": CLASSIFIER})
    (tmp_path / "work" / "wikipedia").mkdir(parents=True)
    (tmp_path / "work" / "wikipedia" / "log.txt").write_text("CUDA error: an illegal memory access")
    job, reached = reproduced(tmp_path, monkeypatch, world)
    assert reached and [name for name, *_ in world.orders] == ["imdb", "classifier"]
    assert "illegal memory access" in (tmp_path / "out" / "table.md").read_text()


def test_a_killed_command_goes_on_where_it_was(tmp_path, monkeypatch):
    world = World({"wikipedia": GOOD, "imdb": GOOD[:2], "classifier": CLASSIFIER})
    with pytest.raises(IndexError):  # the script is over: what stands for a kill
        reproduced(tmp_path, monkeypatch, world)
    with open(tmp_path / "work" / "results.jsonl", "a") as file:
        file.write('{"at": 99, "event": "trai')
    world = World({"imdb": GOOD, "classifier": CLASSIFIER})
    job, reached = reproduced(tmp_path, monkeypatch, world)
    assert reached and [name for name, *_ in world.orders] == ["imdb", "classifier"]
    events = [json.loads(line) for line in (tmp_path / "work" / "results.jsonl").read_text().splitlines()]
    assert [event["done"] for event in events if event["event"] == "start"] == [[], ["wikipedia"]]
    world = World({})
    assert reproduced(tmp_path, monkeypatch, world)[1] and not world.orders, "nothing is left to do"


def test_what_came_before_a_finished_stage_is_not_made_again(tmp_path, monkeypatch):
    """Wikipedia's stage failed, IMDb's went well, and then the command was killed."""
    world = World({"wikipedia": [(1, None)], "imdb": GOOD, "classifier": CLASSIFIER[:2]})
    (tmp_path / "work" / "wikipedia").mkdir(parents=True)
    (tmp_path / "work" / "wikipedia" / "log.txt").write_text("broken")
    with pytest.raises(IndexError):
        reproduced(tmp_path, monkeypatch, world)
    world = World({"classifier": CLASSIFIER})
    assert reproduced(tmp_path, monkeypatch, world)[1] and [name for name, *_ in world.orders] == ["classifier"]


def test_a_folder_of_another_reproduction_is_refused(tmp_path, monkeypatch):
    world = World({"wikipedia": GOOD, "imdb": GOOD, "classifier": CLASSIFIER})
    job, _ = reproduced(tmp_path, monkeypatch, world)
    job.options.sizes = "tiny"
    with pytest.raises(SystemExit, match="another reproduction"):
        gpu_reproduce.Reproduction(job.options).run()
    assert Limits().classifier_at == 370
