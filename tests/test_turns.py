"""The threads of a process train one after another, and a forked process does not wait for those of its parent."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.training import runs as short
from ulmfit import train_language_model
from ulmfit.turns import own_turn


def test_a_thread_waits_for_its_turn_and_says_so(capsys):
    order, holds = [], threading.Event()

    def other():
        with own_turn(), own_turn():  # a job opens its trainings in its own turn
            holds.set()
            time.sleep(0.3)
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    holds.wait()
    with own_turn():
        order.append("own")
    thread.join()
    assert order == ["other", "own"] and "another training runs in this process" in capsys.readouterr().out


@pytest.mark.slow
def test_the_wait_is_not_counted_as_time_of_the_training(tmp_path):
    holds, result = threading.Event(), []

    def later():
        holds.wait()
        result.append(train_language_model(short.lm_config(tmp_path / "run", max_steps=2, max_time=0.1)))  # six seconds

    thread = threading.Thread(target=later)
    thread.start()
    with own_turn():
        holds.set()
        time.sleep(7)
    thread.join()
    assert result[0].state == "done"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_process_forked_while_a_thread_trains_has_its_own_turn():
    holds, done = threading.Event(), threading.Event()

    def other():
        with own_turn():
            holds.set()
            done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    holds.wait()
    child = os.fork()
    if child == 0:
        taken = threading.Timer(5, lambda: os._exit(1))
        taken.daemon = True
        taken.start()
        with own_turn():
            os._exit(0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
