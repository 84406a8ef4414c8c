"""A place of its own for all that tests write, two trained runs that tests may read but not change, and commands."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tiers import position
from ulmfit import cli
from ulmfit.distributed.stop import SIGNALS

# Before torch and datasets are imported, and seen by the processes that tests start.
_SCRATCH = tempfile.TemporaryDirectory(prefix="ulmfit-tests-")
os.environ["ULMFIT_CACHE"] = os.path.join(_SCRATCH.name, "cache")
os.environ["HF_DATASETS_CACHE"] = os.path.join(_SCRATCH.name, "datasets")
os.environ.setdefault("OMP_NUM_THREADS", "1")

NUM_REVIEWS = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first (.ci/run turns off xdist's own order, by the number of tests, which puts them last)."""
    items.sort(key=lambda item: position(item.nodeid.partition("::")[0]))


def pytest_unconfigure() -> None:
    _SCRATCH.cleanup()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch):
    """Whatever a test makes of the environment, the next one finds the cache of the tests."""
    monkeypatch.setenv("ULMFIT_CACHE", os.path.join(_SCRATCH.name, "cache"))


@pytest.fixture(autouse=True)
def _own_signals():
    """A training that ran in this process leaves its signal handlers in place; the next test has pytest's."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
    """A small slice of the embedded sample as a CSV file: columns text and label (neg, pos)."""
    from tests.training.runs import write_reviews

    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", NUM_REVIEWS)


@pytest.fixture(scope="session")
def runs(tmp_path_factory, reviews) -> SimpleNamespace:
    """Finished run directories: .lm, a language model, and .clf, a classifier on its encoder (tiny, 6 steps)."""
    from ulmfit import train_classifier, train_language_model
    from ulmfit.cli.options import parse
    from ulmfit.config import ClassifierConfig, LMConfig

    folder = tmp_path_factory.mktemp("runs")
    common = ["--data", str(reviews), "--max-steps", "6", "--batch-size", "8", "--bptt", "20"]
    result = train_language_model(parse(LMConfig, [*common, "--preset", "tiny", "--output-dir", str(folder / "lm")]))
    assert result.state == "done"
    result = train_classifier(
        parse(ClassifierConfig, [*common, "--encoder", str(folder / "lm"), "--output-dir", str(folder / "clf")])
    )
    assert result.state == "done"
    return SimpleNamespace(lm=folder / "lm", clf=folder / "clf")


@pytest.fixture
def command(capsys):
    """Runs a command that must succeed; gives its lines of output."""

    def run(*argv):
        code = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert code == 0, err
        run.err = err
        return out.splitlines()

    return run


@pytest.fixture
def mistake(capsys):
    """Runs a command that must end with 2; gives the sentence that it ends with."""

    def run(*argv):
        assert cli.main([str(word) for word in argv]) == 2
        last = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
        assert last.startswith("error: ")
        return last

    return run
