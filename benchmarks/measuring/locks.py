"""Locks on this host's devices: whoever has one measures there, and nobody else does."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.measuring import machine

_POLL_S = 0.2


def names(device: str, devices: int = 1) -> list[str]:
    """The names of what a cell measures on: the UUIDs of its GPUs, or the CPU."""
    return [str(machine.gpu_uuid(k)) for k in range(devices)] if device == "cuda" else ["CPU"]


@contextmanager
def held(wanted: Iterable[str], wait: bool) -> Iterator[bool]:
    """Hold the locks of these names, as soon as they are free, or give False where one is not and wait is False.

    All take them in the order of their names, so that no two wait for each other.

    A lock is the name of an abstract socket. The kernel keeps it for this host, whoever its user is, and takes it
    back however its holder ends; it needs no file, so that no file system's locks matter. With a word in MMDMA_LOCK it
    is another lock, for tests that do not look at times.
    """
    with ExitStack() as taken:
        for name in sorted({*wanted}):
            lock = taken.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            if _is_taken(lock, name):
                continue
            if not wait:
                taken.close()
                yield False
                return
            print(f"another sweep is measuring on {name}: waiting for it to end", file=sys.stderr, flush=True)
            while not _is_taken(lock, name):
                time.sleep(_POLL_S)
        yield True


def _is_taken(lock: socket.socket, name: str) -> bool:
    """Take the lock; whether it is ours now."""
    try:
        lock.bind(f"\0mmdma-benchmark {name} {os.environ.get('MMDMA_LOCK', '')}")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
