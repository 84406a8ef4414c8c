from __future__ import annotations

import itertools
import threading

import pytest

from ulmfit.batches.prefetch import Prefetcher


def test_yields_everything_in_order_and_then_ends():
    items = [(n, {"step": n}) for n in range(20)]
    prefetcher = Prefetcher(iter(items), depth=3)
    assert list(prefetcher) == items
    assert list(prefetcher) == []


def test_an_exception_arrives_at_its_turn():
    def items():
        yield 1
        yield 2
        raise KeyError("three")

    prefetcher = Prefetcher(items(), depth=5)
    assert [next(prefetcher), next(prefetcher)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(prefetcher)
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_close_stops_an_endless_generator_and_runs_its_cleanup_in_its_thread():
    closed_in = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed_in.append(threading.current_thread())

    with Prefetcher(items(), depth=2) as prefetcher:
        assert next(prefetcher) == 0
        thread = prefetcher._thread
    assert closed_in == [thread] and not thread.is_alive()
    assert list(prefetcher) == []


def test_it_reads_no_further_ahead_than_its_depth():
    made = []
    third = threading.Event()

    def items():
        for n in itertools.count():
            made.append(n)
            if n == 2:
                third.set()
            yield n

    with Prefetcher(items(), depth=2) as prefetcher:
        assert third.wait(10)  # two in the queue, the third waits for room
        assert made == [0, 1, 2]
        assert next(prefetcher) == 0
