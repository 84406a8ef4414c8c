"""Joins the process group, and raises a user's mistake on all ranks.

The group is joined once and kept until the process ends, so that one script can train several times. A second group on
the launcher's store would find the addresses of the first one there. accelerate's shared states, which are global to
the process, are restored after every training, because they fix the precision of the first training.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import util
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed.rendezvous import rendezvous

from ulmfit.distributed.launch import check_gpus, check_launch, uses_gpu
from ulmfit.distributed.sharding import processes_only
from ulmfit.errors import RankLost, StoppedEarly, UserError
from ulmfit.private_api import abort_group, group_store, shared_states

# Long, because ranks wait in a collective while rank 0 reads and tokenises a large corpus. In training, the watchdog
# detects a hang.
GROUP_TIMEOUT = timedelta(hours=12)
# What gloo, NCCL and the store say where the other end of a connection is gone.
_GONE = re.compile(
    r"[\w ]*(?:by peer|broken pipe|timed out|timeout|remote process exited|network error|no route to host|unreachable|"
    r"recvvalue failed|failed to recv)[\w ]*", re.IGNORECASE
)  # fmt: skip
HEARD = 5.0  # seconds in which the other ranks notice that a rank has left: gloo ends their collectives
HEARD_ON_GPU = 25.0  # NCCL does not, and their watchdogs look every 10 seconds
_LEFT, _HEARD = "ulmfit/left", "ulmfit/heard"

_unusable = False  # True after a training failed on some ranks, because the ranks may be in different collectives


class Group:
    """The process group of the launch, as seen by this process.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        device: of this process.
        setting_up: True during set-up. Then every collective first checks whether a rank has found a mistake
            (`check_in`). In training it does not; a failing rank leaves the group (`mistakes_end_all`).

    Raises:
        UserError: the launcher's world size differs from the process group's, or an earlier training in this process
            failed with the ranks in different collectives.
    """

    def __init__(self) -> None:
        check_launch()
        if _unusable:
            raise UserError("an earlier training of this process failed on one of its ranks; start the script again")
        check_gpus()
        on_gpu = uses_gpu()
        self._found = [dict(state) for state in shared_states()]
        was_there = dist.is_initialized()
        for found in shared_states():
            found.clear()
        try:
            if not was_there:
                join_after_restart("nccl" if on_gpu else "gloo")
            with processes_only():
                state = PartialState(cpu=not on_gpu, timeout=GROUP_TIMEOUT)
        except BaseException:
            self._restore_states()
            raise
        self._joined = dist.is_initialized()
        if self._joined and not was_there:
            # atexit does not run in the processes of `notebook_launcher`.
            util.Finalize(None, _leave, exitpriority=0)
        self.rank, self.world_size, self.device = state.process_index, state.num_processes, state.device
        self.setting_up = True
        announced = int(os.environ.get("WORLD_SIZE", 1))
        if announced != self.world_size:
            self._restore_states()
            raise UserError(
                f"the launcher started {announced} processes but the process group holds {self.world_size}, so each "
                "would train a model of its own; launch with `accelerate launch --multi_gpu` or `torchrun`"
            )

    def check_in(self, error: UserError | StoppedEarly | None = None) -> None:
        """Exchange the mistakes that ranks have found, and requests to stop (a collective).

        Args:
            error: that of this rank, if any.

        Raises:
            UserError: a rank has one; that of the lowest rank is raised on all ranks, with `rank` set.
            StoppedEarly: likewise, if no rank has found a mistake.
        """
        if self.world_size > 1:
            found = torch.tensor([error is not None], dtype=torch.int32, device=self.device)
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
            if not found.item():
                return
            mine = None if error is None else (isinstance(error, StoppedEarly), str(error))
            told: list[tuple[bool, str] | None] = [None] * self.world_size
            dist.all_gather_object(told, mine)
            is_stop, rank, sentence = min((one[0], rank, one[1]) for rank, one in enumerate(told) if one is not None)
            raise (StoppedEarly if is_stop else UserError)(sentence, rank=rank) from error
        if error is not None:
            raise error

    def broadcast(self, value: Any) -> Any:
        """Rank 0's object on every rank (a collective)."""
        if self.world_size == 1:
            return value
        self.check_in()
        holder = [value]
        broadcast_object_list(holder, from_process=0)
        return holder[0]

    @contextmanager
    def mistakes_end_all(self) -> Iterator[None]:
        """Context in which a UserError of one rank, and in set-up a StoppedEarly, is raised on all ranks.

        In set-up the other ranks get it in their next collective, and the group stays usable. In training they may be
        anywhere in a step. So the failing rank aborts the connections, and the others read its message from the store.
        """
        try:
            yield
            if self.setting_up:
                self.check_in()
        except UserError as error:
            if error.rank is None and self.setting_up:
                self.check_in(error)
            elif error.rank is None and self.world_size > 1:
                self._leave_with(error)
            raise
        except StoppedEarly as error:
            if error.rank is None and self.setting_up:
                self.check_in(error)
            raise
        except Exception as error:
            if not self.setting_up and (mistake := self._mistake_of_another()):
                raise mistake from error
            if lost := self.lost_rank(error):
                raise lost from error
            raise

    def lost_rank(self, error: BaseException) -> RankLost | None:
        """What to tell of an error by which torch tells that another process is gone; None of another error."""
        if self.world_size == 1 or not isinstance(error, RuntimeError):
            return None
        told = str(error)
        reason = _GONE.search(told) if "gloo" in told or isinstance(error, dist.DistError) else None
        return reason and RankLost(
            f"rank {self.rank} cannot reach another rank any more ({reason[0].strip()}): its process has ended or its node is gone; "
            "look for the first error in the output of the others, and start the same command again, it goes on from what "
            "was saved"
        )

    def end_set_up(self) -> None:
        """End set-up: from now on collectives do not call `check_in`."""
        self.check_in()
        self.setting_up = False

    def store(self) -> Any:
        """The key-value store of the process group; None for a single process."""
        return group_store() if self.world_size > 1 else None

    def close(self, *, in_order: bool = True) -> None:
        """End this use of the group.

        Args:
            in_order: False if ranks may be in different collectives. Then the group cannot be used again.
        """
        global _unusable
        if not in_order and self.world_size > 1:
            _unusable = True
        elif dist.is_initialized() and not self._joined:  # a group of one process, made by DeepSpeed
            dist.destroy_process_group()
        self._restore_states()

    def _restore_states(self) -> None:
        for state, found in zip(shared_states(), self._found, strict=True):
            state.clear()
            state.update(found)

    def _leave_with(self, error: UserError) -> None:
        """Abort the group while others may wait for this rank in a collective.

        This process then stays until they have read the reason, because the store may be in this process (rank 0).
        """
        error.rank = self.rank
        store = self.store()
        with suppress(RuntimeError):  # the process with the store has ended: the mistake is told all the same
            store.set(_LEFT, json.dumps({"rank": self.rank, "sentence": str(error)}))
        with suppress(RuntimeError):  # the backend cannot abort; the watchdog of each rank reads the store too
            abort_group(self.device)
        deadline = time.monotonic() + (HEARD_ON_GPU if self.device.type == "cuda" else HEARD)
        with suppress(RuntimeError):
            while store.add(_HEARD, 0) < self.world_size - 1 and time.monotonic() < deadline:
                time.sleep(0.05)

    def _mistake_of_another(self) -> UserError | None:
        return None if self.world_size == 1 else mistake_in(self.store())


def mistake_in(store: Any) -> UserError | None:
    """The mistake with which another rank has left the group; None if none has."""
    try:
        if not store.check([_LEFT]):
            return None
        told = json.loads(store.get(_LEFT))
        store.add(_HEARD, 1)
    except RuntimeError:  # the process with the store has ended
        return None
    return UserError(told["sentence"], rank=told["rank"])


def join_after_restart(backend: str) -> None:
    """Join the process group without accelerate after a launcher has restarted its workers (`--max_restarts`).

    The launcher's store survives its workers. Entries of ended workers make the new ones hang in half of the restarts
    (pytorch#135712). So each attempt uses its own key prefix. accelerate uses the existing group.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0":
        return
    store, rank, world_size = next(rendezvous("env://", timeout=GROUP_TIMEOUT))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=GROUP_TIMEOUT,
    )


def _leave() -> None:
    if dist.is_initialized() and not _unusable:
        dist.destroy_process_group()
