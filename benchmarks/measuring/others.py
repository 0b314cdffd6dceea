"""What other processes take of the machine meanwhile: shares from 0 to 1 of its cores and its GPUs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Collection
from pathlib import Path
from statistics import fmean

from benchmarks.measuring.machine import device_process_bytes, device_process_shares

NOISY = 0.1  # share above which a measurement counts as noisy
AGAIN = 0.5  # share above which a sweep measures it once more
_STAT = Path("/proc/stat")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")  # in which the kernel tells what the cores do
_TICKS = 20  # fewer of them do not tell a share to 0.1
_LOOK_S = 1.0  # between two looks at a GPU, whose driver takes a sample at least once in a second
_BUSY = (0, 1, 2, 5, 6, 7)  # columns of /proc/stat: user, nice, system, irq, softirq, steal; 3 and 4 are idle


class Others:
    """Count what others take from now on; all that the measurement starts must have been waited for at the end.

    devices  GPUs that the measurement computes on
    """

    def __init__(self, devices: int = 0) -> None:
        self._cores = os.sched_getaffinity(0)
        self._begin = time.perf_counter(), _cores_s(self._cores), _own_s()
        self._gpus = [_Gpu(k) for k in range(devices)]

    def look(self, pids: Collection[int]) -> None:
        """Look once; to be called again and again while the processes of the measurement are there."""
        for gpu in self._gpus:
            gpu.look(pids)

    def cpu_share(self) -> float | None:
        """Return (busy - own) / (cores x seconds): of the core-seconds since the beginning those that others took.

        busy  what the cores did that this process may use, as /proc/stat has it; time that a hypervisor took included
        own   CPU time of this process and of the children that it has waited for

        None where /proc/stat does not tell, or the time was too short for its ticks of 0.01 s.
        """
        (begin, before, own), now = self._begin, _cores_s(self._cores)
        seconds = time.perf_counter() - begin
        if before is None or now is None or seconds < _TICKS * _TICK_S:
            return None
        available = len(self._cores) * seconds
        counted, busy = (after - first for first, after in zip(before, now, strict=True))
        if counted < available / 2:  # in some sandboxes all of it stays 0
            return None
        return min(1.0, max(0.0, busy - (_own_s() - own)) / available)

    def gpu_share(self) -> float | None:
        """Return what others took of the time of a GPU's multiprocessors, the most of several; None: not known."""
        return max((share for gpu in self._gpus if (share := gpu.share()) is not None), default=None)


class _Gpu:
    """What others take of one GPU, a mean over time of the driver's samples.

    A driver that does not know its processes, as in some containers, cannot tell others from them.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._begin = self._last = time.time()
        self._taken_s = 0.0
        self._told_s = 0.0
        self._pids: set[int] = set()  # of the measurement
        self._known = False

    def look(self, pids: Collection[int]) -> None:
        self._pids.update(pids)
        self._known = self._known or device_process_bytes(pids, self._device) is not None
        if time.time() >= self._last + _LOOK_S:
            self._take()

    def share(self) -> float | None:
        self._take()
        return self._taken_s / self._told_s if self._known and self._told_s > 0 else None

    def _take(self) -> None:
        """Add what the samples since the last look say."""
        since, self._last = self._last, time.time()
        samples = device_process_shares(int(since * 1e6), self._device)
        if samples is not None:
            of_each: dict[int, list[float]] = {}
            for pid, share in samples:
                of_each.setdefault(pid, []).append(share)
            others = sum(fmean(shares) for pid, shares in of_each.items() if pid not in self._pids)
            self._told_s += self._last - since
            self._taken_s += min(1.0, others) * (self._last - since)


def _cores_s(cores: Collection[int]) -> tuple[float, float] | None:
    """Seconds that the kernel has counted of these cores, and those of them in which they were busy; None: it did not.

    psutil has the same by place, which is not the core's number where one is switched off.
    """
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines() if line.startswith("cpu")]
    except OSError:
        return None
    ticks = {name: [int(value) for value in values[:8]] for name, *values in lines}  # guests are in user, too
    own = [ticks.get(f"cpu{core}", []) for core in cores]
    if any(len(counted) < 8 for counted in own):
        return None
    return _TICK_S * sum(map(sum, own)), _TICK_S * sum(counted[k] for counted in own for k in _BUSY)


def _own_s() -> float:
    """CPU seconds of this process, and of the children that it has waited for with those that they have waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
