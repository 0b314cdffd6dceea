"""A fit that torchrun, or srun with its variables, has started as several processes: they find each other, and part.

Each rank has a watcher, see mmdma_core.matching.watching, so that all end soon after one has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from mmdma_core.matching.watching import Watcher
from mmdma_core.inputs import as_device

PATIENCE_S = 40.0  # for the others to come, or to be heard of
_LONG = timedelta(days=7)  # that a rank waits in a sum: the watchers know sooner why nothing comes
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def ranks() -> tuple[int, int]:
    """(rank, number of ranks) as this process was started; (0, 1) for one that was started alone."""
    if not all(os.environ.get(name) for name in _NEEDED):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextmanager
def joined(use_gpu: bool) -> Iterator[tuple[int, int]]:
    """Join the processes that were started together, for as long as this lasts; gives (rank, number of ranks).

    What is raised within is said in one line, with the rank, and ends all of them: SystemExit is raised in its place.
    Raises RuntimeError if the others do not come within PATIENCE_S.
    """
    rank, size = ranks()
    if size == 1:
        yield rank, size
        return
    watcher = Watcher(rank, size, PATIENCE_S)
    try:
        store = _meet(rank, size)
        if use_gpu:
            torch.cuda.set_device(as_device(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"))
        backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONG)
        yield rank, size
        watcher.finish()
        _part(store, rank, size)
        distributed.destroy_process_group()
    except BaseException as error:
        if watcher.is_first(f"{type(error).__name__}" if not str(error) else str(error).partition("\n")[0]):
            raise
        sys.exit(2)  # another rank has said why
    finally:
        watcher.end()


def _meet(rank: int, size: int) -> distributed.Store:
    """The store of all ranks, once all are there."""
    host, port, patience = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=PATIENCE_S)
    store, holds = None, rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        found = distributed.TCPStore(host, port, is_master=holds, timeout=patience, wait_for_workers=False)
        store = distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), found)
        store.set(f"here/{rank}", "")
        store.wait([f"here/{other}" for other in range(size)], patience)
    except RuntimeError as error:  # torch's DistError is one
        absent = _absent(store, size) if store else ""
        raise RuntimeError(f"cannot reach the others at {host}:{port} within {PATIENCE_S:.0f} s{absent}") from error
    return store


def _absent(store: distributed.Store, size: int) -> str:
    names = [str(rank) for rank in range(size) if not store.check([f"here/{rank}"])]
    return f": not there is rank {', '.join(names)}" if names else ""


def _part(store: distributed.Store, rank: int, size: int) -> None:
    """Rank 0, which may hold the store, leaves last."""
    store.set(f"left/{rank}", "")
    if rank == 0:
        store.wait([f"left/{other}" for other in range(size)], timedelta(seconds=PATIENCE_S))
