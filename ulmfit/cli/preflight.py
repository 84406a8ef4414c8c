"""preflight: whether the nodes of a job are fit to train on."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from ulmfit.errors import UserError


@dataclass(kw_only=True)
class PreflightOptions:
    """Check the nodes of a job before its training, and name the bad ones.

    GPUs, disks, inodes, clocks, and an all-reduce over all of them. Started once on each node, as launch/slurm.sbatch does with ULMFIT_PREFLIGHT=1; without options, a check of this machine.
    """

    nodes: str | None = None
    """Names of all nodes, comma-separated, the head first (default: this machine)."""
    node: int | None = None
    """Number of this node among them, from 0 (default: $SLURM_NODEID, else 0)."""
    head: str = "127.0.0.1:29400"
    """Address and a free port of the head, where the others reach it."""
    processes: int | None = None
    """Processes that a node will train with (default: its GPUs, else 1)."""
    output_dir: str | None = None
    """Run directory that must have space (default: the folder of the command)."""
    cache_dir: str | None = None
    """Folder of the token cache that must have space (default: $ULMFIT_CACHE, else ~/.cache/ulmfit)."""
    free: float = 1.0
    """GiB that must be free there, and in the node's own temporary folder."""
    timeout: float = 60.0
    """Seconds that a node may take to report, or to reduce."""


def preflight(options: PreflightOptions) -> None:
    """Print what is wrong, and on the head the line that leaves out the bad nodes. Ends with code 1 where something is."""
    names = [name.strip() for name in (options.nodes or socket.gethostname()).split(",")]
    given = os.environ.get("SLURM_NODEID", "0") if len(names) > 1 else "0"
    node = options.node if options.node is not None else int(given) if given.isdecimal() else 0
    host, _, port = options.head.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--head {options.head} is no address with a port; give one as in n1:29400")
    if node >= len(names):
        raise UserError(f"--node {node} is none of the {len(names)} of --nodes; count from 0")

    import torch

    from ulmfit.cache_folder import cache_folder
    from ulmfit.distributed.node_checks import local_faults, temporary_folder
    from ulmfit.distributed.node_rounds import Agent, Place, reduce_in_processes

    processes = options.processes or max(1, torch.cuda.device_count())
    place = Place(node, names, host, int(port), processes, options.timeout)
    folders = [Path(options.output_dir or ".").absolute(), cache_folder(options.cache_dir), temporary_folder()]
    try:
        agent = Agent(place, reduce_in_processes(place))
        agent.report(local_faults(folders, free=options.free * 2**30))
        if node > 0:
            ok = agent.follow()
        else:
            verdict = agent.lead()
            ok = verdict.ok
            print("\n".join(verdict.lines + (["all is well"] if ok else [])), flush=True)
            if verdict.bad and options.nodes is not None:
                print(f"leave out the bad by: sbatch --exclude={','.join(verdict.bad)} ...", flush=True)
    except RuntimeError as error:  # of torch's store
        print(
            f"failed: {names[node]} does not reach the head {options.head} ({str(error).splitlines()[0]})",
            file=sys.stderr,
        )
        ok = False
    if not ok:
        raise SystemExit(1)
