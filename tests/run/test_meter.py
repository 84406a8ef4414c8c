"""What a user sees of a long pass: lines at intervals, or a bar on a terminal."""

from __future__ import annotations

import functools
import io
from collections import namedtuple

import pytest
from tqdm import tqdm

from tests.training.runs import write_reviews
from ulmfit.data.corpus import open_corpus
from ulmfit.run.meter import Meter, metered_texts

Batch = namedtuple("Batch", "texts rows after")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def batch(first: int, number: int = 100) -> Batch:
    return Batch(["x" * 9999 + "\n"] * number, list(range(first, first + number)), {"row": first + number})


def passed(console, *, total, first=0, seconds=4.0, batches=6):
    clock = Clock()
    with Meter("tokenising", total=total, console=console, clock=clock) as meter:
        for number in range(batches):
            clock.now += seconds
            meter.add(batch(first + 100 * number))
    return console.getvalue().splitlines()


def test_lines_tell_texts_speed_and_time_left():
    assert passed(io.StringIO(), total=1200) == [
        "tokenising: 300 texts, 0.2 MB/s, left 0:36",
        "tokenising: 600 texts, 0.2 MB/s, left 0:24",
        "tokenising: 600 texts in 0:24",
    ]


def test_the_time_left_of_a_pass_that_goes_on_is_that_of_the_rest():
    assert passed(io.StringIO(), first=600, total=1200)[0] == "tokenising: 300 texts, 0.2 MB/s, left 0:12"


def test_no_time_left_where_the_whole_is_not_known():
    assert passed(io.StringIO(), total=None)[0] == "tokenising: 300 texts, 0.2 MB/s"


@pytest.mark.parametrize("console", [io.StringIO, Terminal])
def test_a_short_pass_and_one_that_did_nothing_leave_no_line(console):
    assert passed(console(), total=1200, batches=0) == []
    assert not any("texts" in line for line in passed(console(), total=1200, seconds=0.1))


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr("ulmfit.run.meter.tqdm", functools.partial(tqdm, mininterval=0))
    shown = Terminal()
    passed(shown, total=1200)
    assert "tokenising" in shown.getvalue() and "MB/s" in shown.getvalue() and "1.20k" in shown.getvalue()


def test_bytes_are_counted_where_files_are_read():
    console, clock = io.StringIO(), Clock()
    with Meter("reading", console=console, clock=clock) as meter:
        for done in range(1, 5):
            clock.now += 5
            meter.count(done * 10**9, 8 * 10**9)
    assert console.getvalue().splitlines()[0] == "reading: 2.0 of 8.0 GB, 200.0 MB/s, left 0:30"


def test_a_console_that_went_away_stops_nothing():
    gone = io.StringIO()
    gone.close()
    clock = Clock()
    with Meter("tokenising", total=9, console=gone, clock=clock) as meter:
        for number in range(3):
            clock.now += 20
            meter.add(batch(100 * number))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_rows_of_a_split_are_estimated_before_a_pass_and_known_after_it(streaming, tmp_path):
    split = open_corpus(str(write_reviews(tmp_path / "a.csv", 30)), task="lm", streaming=streaming).splits["train"]
    assert split.total_rows == (None if streaming else 30)  # the draw of the held-out rows is a pass
    assert 28 <= split.expected_rows() <= 31
    whole = [text for part in split.batches() for text in part.texts]
    assert split.total_rows == split.expected_rows() == 30
    assert list(metered_texts(split, "reading")) == whole
    for most in (1, 7, len(whole), 99):
        assert list(metered_texts(split, "reading", most=most)) == whole[:most]
