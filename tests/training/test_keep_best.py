"""Which weights a training keeps: by default those of the last step, unless an evaluation was better by more than chance."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.training import runs
from ulmfit import train_classifier
from ulmfit.errors import UserError
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.loop import Loop
from ulmfit.training.loop_state import Best

OPTIONS = {"preset": "tiny", "encoder": "none", "max_steps": 6, "eval_every": 2, "recipe": "quick"}


@pytest.mark.parametrize(
    "best, last, judged, chance",
    [
        (0.824, 0.819, 376, True),  # less than one standard error
        (0.883, 0.867, 1250, False),
        (1.0, 0.95, 20, True),  # one text of twenty
        (1.0, 0.5, 20, False),
        (0.9, 0.89, 0, False),  # no share of texts
        (0.9, -math.inf, 20, False),  # the last evaluation had a NaN
    ],
)
def test_what_chance_is(best, last, judged, chance):
    assert Best(4, [best, -1.0], {}).is_by_chance([last, -1.0], judged) is chance


@pytest.fixture
def accuracies(monkeypatch):
    """By step, the accuracies that the evaluations of a run find."""
    found: dict[int, float] = {}
    evaluate, step = ClassifierTask.evaluate, ClassifierTask.step

    def stepped(self, engine, batch, number):
        self.at = number + 1
        return step(self, engine, batch, number)

    def scored(self, store=None):
        metrics = evaluate(self, store)
        return metrics | {"accuracy": found[self.at]} if metrics else metrics

    monkeypatch.setattr(ClassifierTask, "step", stepped)
    monkeypatch.setattr(ClassifierTask, "evaluate", scored)
    return found


@pytest.mark.slow
def test_the_best_is_kept_where_it_is_clearly_better(reviews, tmp_path, accuracies, capsys):
    def train(name, **options):
        return train_classifier(runs.clf_config(tmp_path / name, data=str(reviews), **OPTIONS | options))

    accuracies |= {2: 0.6, 4: 0.7, 6: 0.65}
    last = train("last")
    told = capsys.readouterr().out
    assert last.best_step is None and "the evaluation of step 4 was better" in told and "by no more than chance" in told
    asked = train("asked", keep_best=True)
    told = capsys.readouterr().out
    assert asked.best_step == 4 and "kept the weights of step 4" in told and "chance" not in told
    of_last, of_best = runs.weights(last.run_dir), runs.weights(asked.run_dir)
    assert any(not torch.equal(of_last[name], of_best[name]) for name in of_last)
    accuracies |= {4: 1.0, 6: 0.1}
    clear = train("clear")
    assert clear.best_step == 4
    of_clear = runs.weights(clear.run_dir)
    assert all(torch.equal(of_clear[name], of_best[name]) for name in of_best)
    # Both are other runs than each other.
    told = [config(run.run_dir)["identity"]["keep_best"] for run in (last, asked, clear)]
    assert told == ["where clearly better", True, "where clearly better"]
    with pytest.raises(UserError, match=r"holds another run \(keep-best: where clearly better -> True\)"):
        train("last", keep_best=True)


def config(run):
    return json.loads((run / "config.json").read_text())


@pytest.mark.slow
def test_a_run_goes_on_by_the_rule_that_it_began_with(reviews, tmp_path, accuracies, monkeypatch):
    accuracies |= {2: 0.6, 4: 0.7, 6: 0.65}
    for name, rule_is_stored, best_step in (("now", True, None), ("0.2.0", False, 4)):
        options = runs.clf_config(tmp_path / name, data=str(reviews), **OPTIONS)
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "_stop_agreed", lambda loop: loop.position.step == 5)
            assert train_classifier(options).state == "preempted"
        stored = config(tmp_path / name)
        if not rule_is_stored:  # versions up to 0.2.0 kept the best of all
            del stored["resolved"]["best_clearly"]
            stored["identity"]["keep_best"] = True
            (tmp_path / name / "config.json").write_text(json.dumps(stored))
        done = train_classifier(options)
        assert (done.state, done.step, done.best_step) == ("done", 6, best_step)
