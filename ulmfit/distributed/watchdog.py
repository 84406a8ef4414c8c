"""Ends a run that hangs, and reports which rank hangs.

A collective waits for all ranks. So a rank that reads from a dead file system, or whose process was suspended, blocks
the whole job, and the timeout of the process group does not name the rank. Here every rank publishes its activity in
the process group's store. A rank that makes no progress for too long reads the activities of the others. The first
one that can reports the cause to the user.

The machine with the store may be gone too. Then a call of it fails, or does not return at all, so each is made in a thread
of its own.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ulmfit.distributed.group import mistake_in
from ulmfit.distributed.progress import WAITING, Progress

MOST_BETWEEN_BEATS = 10.0  # seconds
_PATIENCE = 5.0  # seconds at least that the store may take to answer, before a run is ended
_KEY = "ulmfit/beat/{}"


class Watchdog:
    """A thread that watches `progress` and ends the process with exit code 1 if no rank makes progress.

    Args:
        store: the process group's (`set`, `get`, `check`); None for a single process.
        limit: seconds without progress.
        tell: called on one rank before the process ends, with a sentence for the user.
    """

    def __init__(
        self, progress: Progress, *, rank: int, world_size: int, store: Any, limit: float, tell: Callable[[str], None]
    ) -> None:
        self._progress, self._rank, self._world_size = progress, rank, world_size
        self._store, self._limit, self._tell = store, limit, tell
        self._period = min(MOST_BETWEEN_BEATS, limit / 6)
        self._beats = 0
        self._asking: threading.Thread | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join(2 * self._period)  # with a limit, because the machine with the store may be gone

    def _watch(self) -> None:
        count, stood, last = -1, 0.0, time.monotonic()
        while not self._stopped.wait(self._period):
            now = time.monotonic()
            # Limited, because if all processes were suspended, much time has passed, but none of them hangs.
            passed, last = min(now - last, 2 * self._period), now
            stood = stood + passed if self._progress.count == count else 0.0
            count = self._progress.count
            self._leave_if_another_has()
            self._publish(stood)
            if stood >= self._limit:
                self._give_up(stood)

    def _leave_if_another_has(self) -> None:
        """End this process if another rank has left with a user's mistake and a collective cannot complete.

        gloo aborts its collectives itself. So this acts only on processes that still hang one period later.
        """
        if self._ask(mistake_in) is None:
            return
        if not self._stopped.wait(self._period):
            os._exit(2)

    def _publish(self, stood: float) -> None:
        self._beats += 1
        state = json.dumps(self._state(stood))
        self._ask(lambda store: store.set(_KEY.format(self._rank), state))

    def _ask(self, question: Callable[[Any], Any], *, patience: float = 0.0) -> Any:
        """What a question to the store gives; None if it fails or takes longer than a period, or than `patience`."""
        if self._store is None:
            return None
        patience = max(patience, self._period)
        if self._asking is not None:
            self._asking.join(patience)
            if self._asking.is_alive():
                return None
        answers = []

        def ask() -> None:
            with suppress(RuntimeError):  # the store is gone
                answers.append(question(self._store))

        self._asking = threading.Thread(target=ask, name="watchdog's question", daemon=True)
        self._asking.start()
        self._asking.join(patience)
        return answers[0] if answers else None

    def _state(self, stood: float) -> dict[str, Any]:
        return {
            "beat": self._beats,
            "step": self._progress.step,
            "doing": self._progress.doing,
            "stood": stood,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    def _give_up(self, stood: float) -> None:
        before = self._others() or {}
        self._stopped.wait(3 * self._period)
        self._publish(stood)
        others = self._others()
        states = (others or {}) | {self._rank: self._state(stood)}
        silent = [
            rank
            for rank in range(self._world_size)
            if rank != self._rank and (rank not in states or states[rank] == before.get(rank))
        ]
        heard = [rank for rank in range(self._world_size) if rank not in silent]
        if self._stopped.is_set() or any(states[rank]["stood"] < self._limit / 2 for rank in heard):
            return  # one rank makes progress, and the others wait for it
        if self._rank == heard[0]:
            sentence = describe(states, silent, self._limit, alone=others is None)
            print(f"failed: {sentence}", file=sys.stderr, flush=True)
            # In a thread, because the report is written to disk, and the disk may be what hangs.
            teller = threading.Thread(target=self._try_to_tell, args=(sentence,), daemon=True)
            teller.start()
            teller.join(MOST_BETWEEN_BEATS)
        else:
            # Wait, because a rank that ends breaks the connection of the reporting rank.
            self._stopped.wait(3 * self._period)
        if self._rank == heard[0] or self._progress.doing != WAITING:
            faulthandler.dump_traceback()
        os._exit(1)

    def _try_to_tell(self, sentence: str) -> None:
        with suppress(OSError):
            self._tell(sentence)

    def _others(self) -> dict[int, dict[str, Any]] | None:
        """What the other ranks have published; None if the store does not answer."""
        if self._store is None:
            return {}
        keys = {rank: _KEY.format(rank) for rank in range(self._world_size) if rank != self._rank}

        def read(store: Any) -> dict[int, dict[str, Any]]:
            return {rank: json.loads(store.get(key)) for rank, key in keys.items() if store.check([key])}

        return self._ask(read, patience=_PATIENCE)


def describe(states: dict[int, dict[str, Any]], silent: list[int], limit: float, *, alone: bool = False) -> str:
    """A sentence for the user about the rank that blocks the run.

    Args:
        states: by rank, the last published state.
        silent: ranks that have not published recently.
        limit: seconds without progress.
        alone: this rank cannot reach the store, through which it hears of the others.
    """

    def place(rank: int) -> str:
        state = states.get(rank)
        if state is None:
            return f"rank {rank}"
        return f"rank {rank} (host {state['host']}, process {state['pid']}) at step {state['step']}, {state['doing']}"

    begun = f"no step has ended for {limit / 60:.3g} minutes (--watchdog)"
    if alone:
        return f"{begun}; {place(min(states))}: the node of rank 0 does not answer, or the network to it is gone"
    if silent:
        return (
            f"{begun}; nothing is heard of {'; '.join(map(place, silent))}: the process was stopped or its node is gone"
        )
    first = min(state["step"] for state in states.values())
    held = [
        rank
        for rank in sorted(states)
        if states[rank]["doing"] != WAITING
        or (states[rank]["step"] == first < max(state["step"] for state in states.values()))
    ]
    if held:
        waits = "; the other ranks wait for it" if len(states) > len(held) else ""
        return f"{begun}; {'; '.join(map(place, held))}{waits}"
    return f"{begun}; all {len(states)} ranks wait for each other at step {first}: look at the network between them"
