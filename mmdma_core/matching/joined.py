"""What ends all ranks of a fit soon after one of them has died, hangs or cannot be reached, and says which in one line.

Each rank has a watcher, a process forked from it, since the rank itself may be in a long computation that lets no
other thread run. Every second a watcher tells the others, through a store of torch.distributed, what it sees of its
rank: the processor time that it has taken, and how many sums over ranks it has begun and ended. The first watcher that
sees a fault says so; then every watcher kills its rank.

A fit that torchrun, or srun with its variables, has started as several processes: they find each other, and part.

Each rank has a watcher, see mmdma_core.matching.joined, so that all end soon after one has.
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
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta

import psutil
import torch
from torch import distributed

from mmdma_core.fused import ranks
from mmdma_core.inputs import as_device

_BEAT_S = 1.0
HANGING_S = 30.0  # that a rank may do nothing while the others wait for it
SILENT_S = 25.0  # that a watcher may be unheard
_REASON_S = 5.0  # that a rank whose sum has failed waits for another to say why
_IDLE_S = 0.2  # processor time that is nothing


class Watcher:
    """Watches this process, which is one rank of several, from its making to its `end`."""

    def __init__(self, rank: int, size: int, patience_s: float) -> None:
        # Sums begun, sums ended, whether the rank may be silent, whether it goes.
        self._counts = multiprocessing.RawArray("q", 4)
        self._said, said = multiprocessing.get_context("fork").Pipe(duplex=True)
        self._rank, self._size = rank, size
        self._stop, stop = os.pipe()
        os.set_blocking(stop, False)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()  # torchrun kills the group of a rank that has ended
            self._said.close()
            os.close(stop)
            try:
                _Watching(rank, size, parent, self._counts, said, self._stop, patience_s).run()
            finally:
                os._exit(0)
        said.close()
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(stop, warn_on_full_buffer=False)  # the watcher is told of it even where Python is not run
        ranks.around = self._around

    @contextmanager
    def _around(self) -> Iterator[None]:
        self._counts[0] += 1
        yield
        self._counts[1] += 1  # not after a failure, which the others may be the reason of

    def finish(self) -> None:
        """From now on this rank's silence is no fault."""
        self._counts[2] = 1

    def is_first(self, error: str) -> bool:
        """Tell the others of an error here; whether none of them has told of one before, which this follows from."""
        with suppress(OSError, EOFError):
            self._said.send((error, self._counts[0] > self._counts[1]))
            return bool(self._said.recv())
        return False

    def end(self) -> None:
        """Let the watcher go."""
        ranks.around = nullcontext
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._counts[3] = 1
        self._said.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


class _Watching:
    """The watcher itself, in its process."""

    def __init__(self, rank, size, parent, counts, said, stop, patience_s) -> None:  # noqa: ANN001
        self._rank, self._size, self._parent, self._counts = rank, size, parent, counts
        self._said, self._stop, self._patience_s = said, stop, patience_s
        self._process = psutil.Process(parent)
        self._seen = {}  # rank -> (what it told last, when that was new, when it last did something)
        self._beat = 0

    def run(self) -> None:
        """Watch until the rank goes, or until there is a fault. The end of the pipe tells that the rank is gone."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._store = None
        self._stderr = os.fdopen(os.dup(2), "w")  # what torch says of lost connections is nobody's reason
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        watched = select.poll()
        for descriptor in (self._said.fileno(), self._stop):
            watched.register(descriptor, select.POLLIN)
        begun = time.monotonic()
        while True:
            came = {descriptor for descriptor, _ in watched.poll(_BEAT_S * 1000)}
            if self._said.fileno() in came:
                self._heard()
                return
            if self._stop in came:
                if os.read(self._stop, 1):  # asked to end, by who knows why
                    self._kill()
                else:  # this pipe may be the first to end with the rank
                    self._heard()
                return
            try:
                if self._store is None:
                    self._store = self._connect()
                fault = self._look()
            except RuntimeError as error:
                if time.monotonic() - begun < self._patience_s or self._counts[2]:
                    continue
                fault = f"cannot reach the others: {str(error).partition(chr(10))[0][:120]}"
            if fault is not None:
                self._fault(fault)
                return

    def _heard(self) -> None:
        """The rank has told of an error, or goes."""
        try:
            error, in_a_sum = self._said.recv()
        except (EOFError, OSError):
            if not self._counts[3]:
                self._fault("ended without a word: it was killed, or has crashed")
            return
        if in_a_sum:  # the other end of it may have more to say
            with suppress(RuntimeError):
                self._store.wait(["fault"], timedelta(seconds=_REASON_S))
        self._said.send(self._claims(f"rank {self._rank}: {error}"))
        with suppress(EOFError, OSError):
            self._said.recv()

    def _connect(self) -> distributed.Store:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        return distributed.PrefixStore(f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _look(self) -> str | None:
        """Tell of the own rank, hear of the others; what is wrong with one of them, or "" where that has been said."""
        self._beat += 1
        with suppress(psutil.Error):
            used = sum(self._process.cpu_times()[:2])
            stopped = self._process.status() == psutil.STATUS_STOPPED
            told = [self._beat, used, self._counts[0], self._counts[1], self._counts[2], stopped]
            self._store.set(str(self._rank), json.dumps(told))
        if self._store.check(["fault"]):
            return ""
        now = time.monotonic()
        for rank in range(self._size):
            told = json.loads(self._store.get(str(rank))) if self._store.check([str(rank)]) else None
            before, new, active = self._seen.get(rank, (None, now, now))
            if told is None:
                continue
            if before is None or told[0] != before[0]:
                new = now
            if before is None or told[2:] != before[2:] or told[1] - before[1] > _IDLE_S * _BEAT_S:
                active = now
            self._seen[rank] = told, new, active
        return self._silent(now) or self._hanging(now)

    def _silent(self, now: float) -> str | None:
        for rank, (told, new, _) in self._seen.items():
            if now - new > SILENT_S and not told[4]:
                return f"rank {rank} cannot be reached: nothing is heard of it for {now - new:.0f} s"
        return None

    def _hanging(self, now: float) -> str | None:
        """The rank that does nothing outside of a sum, or in an earlier one, while each other waits in one."""
        if len(self._seen) < self._size or any(told[4] for told, _, _ in self._seen.values()):
            return None
        if not all(now - active > HANGING_S for _, _, active in self._seen.values()):
            return None
        behind = min(self._seen, key=self._progress)
        return f"rank {behind} hangs: it has done nothing for {HANGING_S:.0f} s while the others wait for it"

    def _progress(self, rank: int) -> tuple[int, ...]:
        """How far a rank has come; less than any other if it has been stopped."""
        _, _, begun, ended, _, stopped = self._seen[rank][0]
        return not stopped, ended, begun

    def _claims(self, fault: str) -> bool:
        """Whether this fault is the first of all ranks."""
        try:
            self._store = self._store or self._connect()
            return self._store.compare_set("fault", "", fault).decode() == fault
        except RuntimeError:
            return True

    def _fault(self, fault: str) -> None:
        """Say what is wrong, unless somebody has, and end the rank."""
        if fault:
            line = fault if fault.startswith("rank ") else f"rank {self._rank} {fault}"
            if self._claims(line):
                print(f"error: {line}", file=self._stderr, flush=True)
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._parent, signal.SIGKILL)


PATIENCE_S = 40.0  # for the others to come, or to be heard of
_LONG = timedelta(days=7)  # that a rank waits in a sum: the watchers know sooner why nothing comes
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_and_size() -> tuple[int, int]:
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
    rank, size = rank_and_size()
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
