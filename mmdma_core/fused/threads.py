"""The passes on the CPU over several threads: threads of our own, which wait without spinning and survive a fork.

Threads of OpenMP spin while they wait: beside one busy process an epoch then takes many times as long. After a fork
they are gone without OpenMP's knowledge, and the child hangs or is ended. Here a child starts its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch

from mmdma_core import host

Part = Callable[..., Any]

_own = threading.local()  # the `workers` of each thread that calls, and the `process` in which they were started


@contextmanager
def alone() -> Iterator[None]:
    """Compute without PyTorch's own threads, which would spin on while those of the passes want to run."""
    many = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(many)


@contextmanager
def brief_waits() -> Iterator[None]:
    """Let the threads of GNU's OpenMP, PyTorch's, spin only briefly while they wait, unless the environment says how.

    They do where OpenMP has more threads than cores (GOMP_SPINCOUNT in its manual), and a pool of a second thread's
    makes them more. Else an epoch takes many times as long beside another process that computes.
    """
    if any(name in os.environ for name in host.WAITS):
        yield
        return
    has_pool, done = threading.Event(), threading.Event()

    def hold() -> None:
        torch.ones(2**18).exp_()  # so many that all threads take part
        has_pool.set()
        done.wait()

    holder = threading.Thread(target=hold, name="mmdma", daemon=True)
    holder.start()
    has_pool.wait()
    try:
        yield
    finally:
        done.set()
        holder.join()


def in_threads(part: Part, many: int, *arguments: object) -> None:
    """Call part(t, many, *arguments) for t = 0, ..., many - 1, each in a thread of its own, and wait for all.

    part  a function that Numba has compiled with nogil=True, so that the threads run at once
    """
    workers = _workers(many - 1)
    try:
        for t, worker in enumerate(workers, 1):
            worker.begin(part, t, many, *arguments)
        part(0, many, *arguments)
        for worker in workers:
            worker.wait()
    except BaseException:
        del _own.workers  # whose answers nobody awaits any more
        raise


def _workers(count: int) -> list[_Worker]:
    if getattr(_own, "process", None) != os.getpid() or not hasattr(_own, "workers"):
        _own.process, _own.workers = os.getpid(), []
    while len(_own.workers) < count:
        _own.workers.append(_Worker())
    return _own.workers[:count]


class _Worker:
    """A thread that waits for work until this object is gone."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Part, tuple] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._asked, self._done), name="mmdma", daemon=True).start()

    def begin(self, part: Part, *arguments: object) -> None:
        self._asked.put((part, arguments))

    def wait(self) -> None:
        """Wait until the part that `begin` has begun is done. Raises its error."""
        error = self._done.get()
        if error is not None:
            raise error

    def __del__(self) -> None:
        self._asked.put(None)


def _work(asked: SimpleQueue, done: SimpleQueue) -> None:
    while (work := asked.get()) is not None:
        part, arguments = work
        try:
            part(*arguments)
            done.put(None)
        except BaseException as error:
            done.put(error)
        del work, part, arguments  # the arrays are the caller's
