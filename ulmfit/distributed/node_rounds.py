"""Finds out which nodes of a job are not fit to train on, before the training.

One process on each node checks it (`node_checks`) and reports to the head through a store. Then the nodes reduce together.
Where that fails, a node alone and pairs of neighbours on a ring do the same, and a node all of whose groups fail is named.
A node that does not report, or hangs, is named by the time limit. Three rounds of pairs are enough for any number of nodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore

from ulmfit.distributed.reduce_check import SIZE_MIB

SKEW = 2.0  # seconds between clocks: more makes the dates of files on a shared disk wrong
LOOK = 0.01
# run(prefix, group): an all-reduce of the nodes `group`; its seconds, or a sentence about what went wrong.
Reduction = Callable[[str, Sequence[int]], "float | str"]


@dataclass(frozen=True)
class Place:
    """This node among those of the job.

    Attributes:
        node: its number, from 0, the head.
        names: of all nodes.
        host, port: where the head can be reached.
        processes: of a node.
        limit: seconds for a report or a reduction.
    """

    node: int
    names: list[str]
    host: str
    port: int
    processes: int
    limit: float


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        lines: for the user.
        bad: the names of the nodes to leave out.
        ok: whether all is well. It may be not, without a node to blame.
    """

    lines: list[str]
    bad: list[str]
    ok: bool


def pair_rounds(nodes: Sequence[int]) -> list[list[list[int]]]:
    """The neighbours on a ring of the nodes as pairs, in as few rounds as each node has one pair of a round."""
    edges = [[nodes[i], nodes[(i + 1) % len(nodes)]] for i in range(len(nodes) if len(nodes) > 2 else len(nodes) - 1)]
    last = [edges.pop()] if len(edges) > 2 and len(edges) % 2 else []
    return [part for part in (edges[::2], edges[1::2], last) if part]


def judge(names: Sequence[str], found: dict[int, list[str]], rounds: Sequence[dict[tuple[int, ...], str]]) -> Verdict:
    """Name the bad nodes.

    Args:
        found: by node, its faults; a node that has not reported is missing.
        rounds: of each round of reductions, by group, what went wrong ("" where nothing did): all nodes, each alone, pairs.
    """
    lines, bad = [], set()
    everywhere = set.intersection(*map(set, found.values())) if len(found) > 1 else set()
    lines += [f"on every node: {fault}" for fault in sorted(everywhere)]
    for node, name in enumerate(names):
        if node not in found:
            bad.add(node)
            lines.append(f"{name}: nothing was heard of it")
        for fault in found.get(node, []):
            if fault not in everywhere:
                bad.add(node)
                lines.append(f"{name}: {fault}")
    groups = {group: fault for one in rounds[1:] for group, fault in one.items()}
    if rounds and any(rounds[0].values()) or groups:
        whole = next(iter(rounds[0].values()))
        lines.append(f"all nodes together: {whole}")
        alone = {group[0]: fault for group, fault in groups.items() if len(group) == 1}
        for node, fault in alone.items():
            if fault:
                bad.add(node)
                lines.append(f"{names[node]}: by itself: {fault}")
        pairs = {group: fault for group, fault in groups.items() if len(group) == 2 and not bad & set(group)}
        for node in sorted({node for pair in pairs for node in pair}):
            own = [fault for pair, fault in pairs.items() if node in pair]
            if len(own) > 1 and all(own):
                bad.add(node)
                lines.append(f"{names[node]}: with each of its neighbours: {own[0]}")
        for pair, fault in pairs.items():
            if fault and not bad & set(pair):
                lines.append(f"{names[pair[0]]} with {names[pair[1]]}: {fault}; leave out either of them")
    failed = bool(lines)
    return Verdict(lines, [names[node] for node in sorted(bad)], not failed)


def clock_faults(ask: Callable[[], float], clock: Callable[[], float] = time.time) -> list[str]:
    """Whether this node's clock is the head's, which `ask` tells. The time that it takes to ask is allowed for."""
    before = clock()
    told = ask()
    after = clock()
    skew = abs(told - (before + after) / 2) - (after - before) / 2
    return [f"its clock is {skew:.0f} s off that of the head"] if skew > SKEW else []


def reduce_in_processes(place: Place) -> Reduction:
    """A reduction in processes that are killed at the limit."""

    def run(prefix: str, group: Sequence[int]) -> float | str:
        size = len(group) * place.processes
        first = group.index(place.node) * place.processes
        command = [sys.executable, "-m", "ulmfit.distributed.reduce_check", place.host, str(place.port), prefix]
        workers = [
            subprocess.Popen(
                [*command, str(first + local), str(size), str(local), str(place.limit)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for local in range(place.processes)
        ]
        seconds, faults, deadline = [0.0], [], time.monotonic() + place.limit
        for worker in workers:
            try:
                out, err = worker.communicate(timeout=max(0.1, deadline - time.monotonic()))
                if worker.returncode == 0:
                    seconds.append(float(out.split()[-1]))
                else:
                    faults.append((err.strip() or "it ended without a word").splitlines()[-1][:200])
            except subprocess.TimeoutExpired:
                faults.append(f"an all-reduce did not end within {place.limit:g} s")
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()
        return faults[0] if faults else max(seconds)

    return run


class Agent:
    """This node's part: it reports, and takes part in the rounds that the head calls for."""

    def __init__(self, place: Place, reduce: Reduction) -> None:
        self.place, self.reduce = place, reduce
        self.store: Any = TCPStore(
            place.host,
            place.port,
            is_master=place.node == 0,
            timeout=timedelta(seconds=place.limit),
            wait_for_workers=False,
        )

    def report(self, faults: list[str]) -> None:
        """Tell the head what this node has found in itself."""
        self.store.set(f"found/{self.place.node}", json.dumps(faults))

    def follow(self, clock: Callable[[], float] = time.time) -> bool:
        """Do as the head says until it ends the check. Returns whether all is well.

        Raises:
            RuntimeError: nothing is heard of the head.
        """

        def ask() -> float:
            self.store.set(f"ask/{self.place.node}", "")
            return float(self.store.get(f"now/{self.place.node}"))

        self.store.set(f"clock/{self.place.node}", json.dumps(clock_faults(ask, clock)))
        number = 0
        while True:
            key = f"round/{number}"
            self._wait(key)
            called = json.loads(self.store.get(key))
            if "ok" in called:
                self.store.add("gone", 1)
                return bool(called["ok"])
            self._take_part(number, called["groups"])
            number += 1

    def _wait(self, key: str) -> None:
        # The head waits for a node up to the limit before it calls the next round.
        deadline = time.monotonic() + 4 * self.place.limit
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                raise RuntimeError("nothing is heard of the head")
            time.sleep(LOOK)

    def _take_part(self, number: int, groups: list[list[int]]) -> None:
        mine = next((group for group in groups if self.place.node in group), None)
        if mine is not None:
            result = self.reduce(f"round {number}", mine)
            self.store.set(f"result/{number}/{self.place.node}", json.dumps(result))

    def lead(self) -> Verdict:
        """The head's part: collect the reports, call for rounds, and judge."""
        found = self._collect(range(len(self.place.names)))
        rounds: list[dict[tuple[int, ...], str]] = []
        present = sorted(found)
        sentence = ""
        if len(present) * self.place.processes > 1:
            results, seconds = self._round(0, [present])
            rounds.append(results)
            if any(results.values()):
                calls = [[[node] for node in present], *pair_rounds(present)]
                rounds += [self._round(number, groups)[0] for number, groups in enumerate(calls, 1)]
            else:
                sentence = f", all-reduce of {SIZE_MIB} MiB in {seconds * 1e3:.0f} ms"
        verdict = judge(self.place.names, found, rounds)
        nodes = "1 node" if len(present) == 1 else f"{len(present)} nodes"
        counts = f"{nodes} with {self.place.processes} process(es) each{sentence}"
        self.store.set(f"round/{len(rounds)}", json.dumps({"ok": verdict.ok}))
        deadline = time.monotonic() + 5  # the store ends with this process
        while self.store.add("gone", 0) < len(present) - 1 and time.monotonic() < deadline:
            time.sleep(LOOK)
        return Verdict([f"preflight: {counts}", *verdict.lines], verdict.bad, verdict.ok)

    def _collect(self, nodes: Sequence[int]) -> dict[int, list[str]]:
        """The faults of the nodes that report within the limit. Meanwhile the time is told to those that ask for it."""
        found: dict[int, list[str]] = {}
        told = {0}
        deadline = time.monotonic() + self.place.limit
        while len(found) < len(nodes) and time.monotonic() < deadline:
            for node in nodes:
                if node not in told and self.store.check([f"ask/{node}"]):
                    self.store.set(f"now/{node}", repr(time.time()))
                    told.add(node)
                keys = [f"found/{node}", *([f"clock/{node}"] if node else [])]
                if node not in found and all(self.store.check([key]) for key in keys):
                    found[node] = [fault for key in keys for fault in json.loads(self.store.get(key))]
            time.sleep(LOOK)
        return found

    def _round(self, number: int, groups: list[list[int]]) -> tuple[dict[tuple[int, ...], str], float]:
        """Let the groups reduce, all at the same time. What went wrong by group, and the longest seconds."""
        self.store.set(f"round/{number}", json.dumps({"groups": groups}))
        self._take_part(number, groups)
        deadline = time.monotonic() + self.place.limit
        seconds, faults = 0.0, {}
        for group in groups:
            results = [self._result(f"result/{number}/{node}", deadline) for node in group]
            told = [result for result in results if isinstance(result, str)]
            faults[tuple(group)] = told[0] if told else ""
            seconds = max([seconds, *(result for result in results if isinstance(result, float))])
        return faults, seconds

    def _result(self, key: str, deadline: float) -> float | str:
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                return "nothing was heard of it any more"
            time.sleep(LOOK)
        return json.loads(self.store.get(key))
