"""A fit that torchrun, or srun with its variables, has started as several processes: they meet, and end together.

torchrun ends all ranks of a machine when one has died, in its own words. What it lacks: a rank that hangs, ranks of
other machines, a start by something else, and one line that says which rank it was and why. So each rank has a
watcher, a process forked from it, since the rank itself may be in a long computation that lets no other thread run.
Every second a watcher writes into the store of torch.distributed what it sees of its rank: the processor time that it
has taken, and how many sums over ranks it has begun and ended. The first fault that is written there is the one that
is printed; then every watcher kills its rank.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
from torch import distributed

from mmdma_core.fused.ranks import GroupRanks, world
from mmdma_core.inputs import Ranks, as_device

PATIENCE_S = 40.0  # for the others to come, or to be heard of
HANGING_S = 30.0  # that ranks may do nothing
_BEAT_S = 1.0
_IDLE_S = 0.2  # processor time of a beat that is nothing
_REASON = timedelta(seconds=5)  # that a rank whose sum has failed waits for another to say why
_LONG = timedelta(days=7)  # that a rank waits in a sum: the watchers know sooner why nothing comes
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_and_size() -> tuple[int, int]:
    """Return (rank, number of ranks) as this process was started; (0, 1) for one that was started alone."""
    if not all(os.environ.get(name) for name in _NEEDED):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextmanager
def joined(use_gpu: bool) -> Iterator[Ranks]:
    """Join the processes that were started together, for as long as this lasts; yields the ranks.

    The first error that is raised within ends all of them, and is raised here; in the others SystemExit is.
    Raises RuntimeError if the others do not come within PATIENCE_S.
    """
    rank, size = rank_and_size()
    if size == 1:
        yield Ranks()
        return
    watcher, store = _Watcher(rank, size), None
    try:
        store = _store(PATIENCE_S, _keeps_the_store(rank))
        _meet(store, rank, size)
        if use_gpu:
            torch.cuda.set_device(as_device(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"))
        backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONG)
        yield world()
        watcher.rest()
        store.set(f"left/{rank}", "")
        if rank == 0:  # which may keep the store, and leaves last
            store.wait([f"left/{other}" for other in range(size)], timedelta(seconds=PATIENCE_S))
        distributed.destroy_process_group()
    except BaseException:
        in_a_sum = watcher.end()
        if store is not None and not _is_first(store, in_a_sum):
            sys.exit(2)  # another rank has said why
        raise
    watcher.end()


def _keeps_the_store(rank: int) -> bool:
    """Tell whether the store is this rank's process; else it is torchrun's, or that of another rank."""
    return rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _store(patience_s: float, is_master: bool = False) -> distributed.Store:
    """Return the store that all ranks of this start share. Raises RuntimeError if it is not there in time."""
    host, port, patience = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=patience_s)
    try:
        store = distributed.TCPStore(host, port, is_master=is_master, timeout=patience, wait_for_workers=False)
    except RuntimeError as error:  # torch's DistError is one
        raise RuntimeError(_unreached(patience_s)) from error
    return distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def _meet(store: distributed.Store, rank: int, size: int) -> None:
    """Wait until all ranks are there."""
    keys = {f"here/{other}": other for other in range(size)}
    try:
        store.set(f"here/{rank}", "")
        store.wait(list(keys), timedelta(seconds=PATIENCE_S))
    except RuntimeError as error:
        absent = ", ".join(str(other) for key, other in keys.items() if not store.check([key]))
        raise RuntimeError(f"{_unreached(PATIENCE_S)}: not there is rank {absent}") from error


def _unreached(patience_s: float) -> str:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return f"cannot reach the others at {address} within {patience_s:.0f} s"


def _is_first(store: distributed.Store, in_a_sum: bool = False, if_gone: bool = True) -> bool:
    """Tell all ranks that there is a fault, and tell whether no other one has done so before.

    in_a_sum  the fault may follow from another one at the other end of the sum, which has some time to say so
    if_gone  what to return where the store is there no more
    """
    try:
        if in_a_sum:
            with suppress(RuntimeError):
                store.wait(["fault"], _REASON)
        own = os.urandom(8).hex()
        return store.compare_set("fault", "", own).decode() == own
    except RuntimeError:
        return if_gone


class _Watcher:
    """The watcher of this process, which is one rank of several, as the rank has it: from its making to its `end`."""

    def __init__(self, rank: int, size: int) -> None:
        self._at_rest = multiprocessing.RawValue("b")  # whether the rank may be silent
        gone, self._alive = os.pipe()  # which ends with this process
        sys.stdout.flush()
        sys.stderr.flush()
        parent = psutil.Process()
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()  # torchrun kills the group of a rank that has ended
            os.close(self._alive)
            try:
                _Watching(rank, size, parent, self._at_rest, gone).run()
            finally:
                os._exit(0)
        os.close(gone)

    def rest(self) -> None:
        """Make it no fault if this rank is silent, or ends."""
        self._at_rest.value = True

    def end(self) -> bool:
        """Let the watcher go; tell whether the rank has begun a sum over ranks that has not ended."""
        self.rest()
        os.close(self._alive)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        begun, ended = GroupRanks.waits
        return begun > ended


@dataclass
class _Seen:
    """What is known of a rank: what its watcher has written last, and when it has done something for the last time."""

    used_s: float
    begun: int
    ended: int
    may_be_silent: bool
    stopped: bool
    active: float

    def progress(self) -> tuple[int, ...]:
        """Return how far the rank has come; less than any other if it has been stopped."""
        return not self.stopped, self.ended, self.begun


class _Watching:
    """The watcher itself, in its process."""

    def __init__(self, rank, size, parent, at_rest, gone) -> None:  # noqa: ANN001
        self._rank, self._size, self._parent, self._at_rest, self._gone = rank, size, parent, at_rest, gone
        self._seen: dict[int, _Seen] = {}
        self._store: distributed.Store | None = None

    def run(self) -> None:
        """Watch until the rank goes or is at rest, or until there is a fault; then the first one says it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        stderr = os.fdopen(os.dup(2), "w")  # what torch says of lost connections is nobody's reason
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        fault = self._watch()
        if fault and self._may_say_so():
            print(f"error: {fault}", file=stderr, flush=True)
        if fault is not None:
            with suppress(psutil.NoSuchProcess):
                self._parent.kill()

    def _may_say_so(self) -> bool:
        """Tell whether no other rank has said why.

        Whoever has ended this rank may have ended the store as well: then another one has.
        """
        if_gone = not select.select([self._gone], [], [], 0)[0] or _keeps_the_store(self._rank)
        try:
            self._store = self._store or _store(5.0)
        except RuntimeError:
            return if_gone
        return _is_first(self._store, if_gone=if_gone)

    def _watch(self) -> str | None:
        """Return the fault that comes, "" for one of another rank; None once the rank has gone as it should."""
        gone, begun = select.poll(), time.monotonic()
        gone.register(self._gone, select.POLLIN)
        while not gone.poll(_BEAT_S * 1000):
            try:
                self._store = self._store or _store(5.0)
                self._tell()
                if self._store.check(["fault"]):
                    return ""
                self._hear()
                if (rank := self._hanging()) is not None:
                    waited = f"it has done nothing for {HANGING_S:.0f} s while the others wait for it"
                    return f"rank {rank} hangs: {waited}"
            except RuntimeError as error:
                if time.monotonic() - begun > PATIENCE_S and not self._at_rest.value:
                    return f"rank {self._rank} cannot reach the others: {str(error).partition(chr(10))[0][:120]}"
        if not self._at_rest.value:
            return f"rank {self._rank} ended without a word: it was killed, or has crashed"
        with suppress(RuntimeError):  # the others must know that it is at rest
            self._tell()
        return None

    def _tell(self) -> None:
        """Write into the store what the own rank does."""
        with suppress(psutil.Error):
            used_s = sum(self._parent.cpu_times()[:2])
            stopped = self._parent.status() == psutil.STATUS_STOPPED
            self._store.set(f"of/{self._rank}", json.dumps([used_s, *GroupRanks.waits, self._at_rest.value, stopped]))

    def _hear(self) -> None:
        """Read from the store what each rank does; one that is not heard of does nothing."""
        for rank in range(self._size):
            if self._store.check([f"of/{rank}"]):
                now = _Seen(*json.loads(self._store.get(f"of/{rank}")), active=time.monotonic())
                before = self._seen.get(rank)
                if before and now.used_s - before.used_s <= _IDLE_S and now.progress() == before.progress():
                    now.active = before.active
                self._seen[rank] = now

    def _hanging(self) -> int | None:
        """Return the rank that is behind, where none has done anything for long: the others wait for it in a sum."""
        if len(self._seen) < self._size or any(seen.may_be_silent for seen in self._seen.values()):
            return None
        if any(time.monotonic() - seen.active < HANGING_S for seen in self._seen.values()):
            return None
        return min(self._seen, key=lambda rank: self._seen[rank].progress())
