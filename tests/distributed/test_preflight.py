"""ulmfit preflight names the node that is not fit; the nodes are threads here, and their reductions are stood in for."""

from __future__ import annotations

import errno
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ulmfit import cli
from ulmfit.distributed import node_checks
from ulmfit.distributed.node_rounds import Agent, Place, judge, pair_rounds

HANGS = "an all-reduce did not end within 60 s"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def checked(number: int, reduce, faults=lambda node: [], clock=lambda node: time.time):
    """The verdict of the head of so many nodes, and whether each of them was told that all is well."""
    names, port = [f"n{node}" for node in range(number)], free_port()

    def node(index: int):
        place = Place(index, names, "127.0.0.1", port, 2, 60.0)
        agent = Agent(place, lambda prefix, group: reduce(index, group))
        agent.report(faults(index))
        return agent.lead() if index == 0 else agent.follow(clock(index))

    with ThreadPoolExecutor(number) as threads:
        verdict, *told = threads.map(node, range(number))
    assert told == [verdict.ok] * (number - 1)
    return verdict


@pytest.mark.parametrize("number", range(2, 10))
def test_pairs_of_neighbours_take_at_most_three_rounds(number):
    nodes = [3 * node for node in range(number)]
    rounds = pair_rounds(nodes)
    assert len(rounds) <= 3
    for one in rounds:
        assert len({node for pair in one for node in pair}) == 2 * len(one)
    counts = [sum(node in pair for one in rounds for pair in one) for node in nodes]
    assert counts == ([1, 1] if number == 2 else [2] * number)


def test_sound_nodes_are_well():
    verdict = checked(3, lambda node, group: 0.25)
    assert verdict.ok and verdict.bad == []
    assert verdict.lines == ["preflight: 3 nodes with 2 process(es) each, all-reduce of 64 MiB in 250 ms"]


@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_node_whose_network_hangs_is_named(number, bad):
    verdict = checked(number, lambda node, group: HANGS if bad in group and len(group) > 1 else 0.1)
    assert verdict.bad == [f"n{bad}"] and not verdict.ok
    assert verdict.lines[1:] == [f"all nodes together: {HANGS}", f"n{bad}: with each of its neighbours: {HANGS}"]


def test_a_node_that_cannot_reduce_by_itself_is_named():
    verdict = checked(4, lambda node, group: "NCCL fails" if 3 in group else 0.1)
    assert verdict.bad == ["n3"] and verdict.lines[2:] == ["n3: by itself: NCCL fails"]


def test_a_broken_link_between_two_sound_nodes_names_both():
    verdict = checked(4, lambda node, group: HANGS if {1, 2} <= set(group) else 0.1)
    assert verdict.bad == [] and not verdict.ok
    assert verdict.lines[2:] == [f"n1 with n2: {HANGS}; leave out either of them"]


def test_what_a_node_finds_in_itself_and_a_wrong_clock_are_told():
    verdict = checked(
        3,
        lambda node, group: 0.1,
        faults=lambda node: [["/data is full"], ["/data is full", "GPU 1 fails: x"], ["/data is full"]][node],
        clock=lambda node: time.time if node == 1 else lambda: time.time() - 500,
    )
    assert verdict.bad == ["n1", "n2"]
    assert verdict.lines[1:] == [
        "on every node: /data is full",  # a disk that all share is nobody's fault
        "n1: GPU 1 fails: x",
        "n2: its clock is 500 s off that of the head",
    ]


def test_a_node_that_says_nothing_is_named():
    verdict = judge(["a", "b", "c"], {0: [], 2: []}, [{(0, 2): ""}])
    assert verdict.bad == ["b"] and verdict.lines == ["b: nothing was heard of it"]


def test_folders_are_written_and_their_space_is_counted(tmp_path, monkeypatch):
    later = tmp_path / "runs" / "lm"
    assert node_checks.local_faults([later], free=1.0) == []
    assert list(tmp_path.iterdir()) == []
    assert "GiB free and not 1.07374e+09" in node_checks.folder_faults(later, free=2.0**60)[0]
    (fault,) = node_checks.folder_faults(Path("/proc/none"), free=0)
    assert fault.startswith("/proc cannot be written (")
    with monkeypatch.context() as gone:

        def stale(*_, **__):
            raise OSError(errno.ESTALE, "Stale file handle")

        gone.setattr("pathlib.Path.stat", stale)
        assert node_checks.folder_faults(later, free=0) == [f"{later} cannot be written (Stale file handle)"]
    full = os.statvfs(tmp_path)
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda folder: SimpleNamespace(f_bavail=full.f_bavail, f_frsize=full.f_frsize, f_files=9**9, f_favail=5),
    )
    assert node_checks.folder_faults(later, free=1.0) == [f"{tmp_path} has 5 inodes free"]


def test_gpus_that_are_not_there_are_missed(monkeypatch):
    monkeypatch.setattr(node_checks.torch.cuda, "device_count", lambda: 0)
    assert node_checks.gpu_faults({"SLURM_GPUS_ON_NODE": "2"}) == ["SLURM gave 2 GPU(s) and torch sees 0"]
    assert node_checks.gpu_faults({}) == []
    # With GPUs they are checked by a process that ends.
    monkeypatch.setattr(node_checks.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1000")
    [fault] = node_checks.local_faults([], free=0)
    assert fault.startswith("SLURM gave 1000 GPU(s) and torch sees")
    monkeypatch.setattr(node_checks.sys, "executable", "/bin/false")
    assert node_checks.local_faults([], free=0)[0].startswith("the check of its GPUs failed: ")


@pytest.mark.slow
def test_the_command_reduces_in_processes_and_tells_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    head = f"127.0.0.1:{free_port()}"
    options = ["--output-dir", "run", "--cache-dir", str(tmp_path), "--free", "0", "--head", head, "--processes", "2"]
    assert cli.main(["preflight", *options]) == cli.DONE
    printed = capsys.readouterr().out
    assert "preflight: 1 node with 2 process(es) each, all-reduce of 64 MiB in" in printed and "all is well" in printed
    alone = ["--nodes", "n7", "--head", f"127.0.0.1:{free_port()}", "--processes", "1", "--free", "9e6"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["preflight", *options[:4], *alone])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert f"n7: {tmp_path} has" in printed and "sbatch --exclude=n7 ..." in printed
    assert cli.main(["preflight", "--head", "n1"]) == cli.USER_ERROR
    assert cli.main(["preflight", "--nodes", "a,b", "--node", "2"]) == cli.USER_ERROR
