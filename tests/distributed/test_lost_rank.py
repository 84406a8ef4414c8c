"""A process of a launch that is gone: the others end with a sentence and not with a traceback of torch."""

from __future__ import annotations

import os
import signal

import pytest

from tests.distributed.ranks import on_ranks
from ulmfit import cli
from ulmfit.distributed.group import Group
from ulmfit.errors import RankLost


@pytest.mark.parametrize("setting_up", [True, False])
def test_a_rank_that_is_killed_is_told_in_a_sentence_by_the_others(setting_up, tmp_path):
    def action(rank: int) -> str:
        group = Group()
        try:
            with group.mistakes_end_all():
                group.check_in()
                group.setting_up = setting_up
                if rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                group.check_in()
        except RankLost as lost:
            return str(lost)
        return "nothing was noticed"

    (told,) = on_ranks(2, action, tmp_path, killed=[1])
    assert told.startswith("rank 0 cannot reach another rank any more (") and " by peer): its process has ended" in told


@pytest.mark.parametrize(
    "message", ["CUDA error: an illegal memory access", "the size of tensor a (3) timed out", "gloo: bad size"]
)
def test_other_errors_keep_their_traceback(message, monkeypatch):
    group = object.__new__(Group)
    group.rank, group.world_size = 0, 2
    assert group.lost_rank(RuntimeError(message)) is None
    assert group.lost_rank(ValueError("gloo: Connection closed by peer")) is None
    assert group.lost_rank(RuntimeError("[gloo/pair.cc:5] Connection reset by peer [10.0.0.1]")) is not None
    group.world_size = 1
    assert group.lost_rank(RuntimeError("[gloo/pair.cc:5] Connection reset by peer [10.0.0.1]")) is None


def test_the_command_ends_with_the_sentence(monkeypatch, capsys):
    def lose(*_: object) -> None:
        raise RankLost("rank 0 cannot reach another rank any more")

    monkeypatch.setattr(cli, "_run", lose)
    assert cli.main(["train-lm"]) == cli.FAILED
    assert capsys.readouterr().err == "failed: rank 0 cannot reach another rank any more\n"
