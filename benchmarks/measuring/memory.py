"""Memory probes: the host's kernel, the GPU's driver, PyTorch's allocator. All figures in bytes."""

from __future__ import annotations

import resource
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.measuring.machine import device_free_bytes, device_process_bytes, device_used_bytes, sm_clock_mhz
from mmdma_core import host

GIB = 2**30


def host_bytes() -> int:
    """Return the resident memory of this process."""
    return psutil.Process().memory_info().rss


def host_peak_bytes() -> int:
    """Return the most that this process has held since its fork, or since `reset_host_peak`."""
    return _status_bytes("VmHWM")


def reset_host_peak() -> None:
    """Start the kernel's count of the peak anew; where that is not allowed the peak since the fork stands."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def limit_host_memory(extra: int) -> None:
    """Let this process allocate `extra` bytes beyond what it has now; more raises MemoryError or its like."""
    limit = _status_bytes("VmData") + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def within_reach(kind: Literal["host", "device"], limit_gib: float | None, devices: int = 1) -> int | None:
    """Return the bytes that a measurement could take now, by its limit and by what is free; None: nobody tells.

    Without a limit it is 80 % of the host's memory that is free, on the machine and in the groups (containers, jobs)
    of this process, and all that is free on a GPU.

    devices  GPUs that share the measurement; the one with the least free counts
    """
    if kind == "device":
        free = min((left for k in range(devices) if (left := device_free_bytes(k)) is not None), default=None)
    else:
        free = int((0.8 if limit_gib is None else 1) * host.free_bytes())
    return free if limit_gib is None or free is None else int(min(free, limit_gib * GIB))


class DeviceProbe:
    """The most that processes hold on a GPU, as the driver tells it when asked; made before they start.

    Of several GPUs, with a rank on each, it is that of the fullest. In a container the driver may not know a process
    by our number; then what the whole GPU has in use beyond what it had before is taken. None where the driver tells
    neither.
    """

    def __init__(self, devices: int = 1) -> None:
        self._before = [device_used_bytes(k) for k in range(devices)]
        self._peak: int | None = None
        self._measured = False
        self.sm_clock_mhz: int | None = None

    def peak(self, pids: Collection[int], stage: str | None) -> int | None:
        """Look now; the peak in bytes. It starts anew once the data have been made, and a small run."""
        if not self._measured and stage not in (None, "data", "first start"):
            self._peak, self._measured = None, True
        now = [self._held_now(pids, k) for k in range(len(self._before))]
        known = [value for value in (self._peak, *now) if value is not None]
        self._peak = max(known, default=None)
        self.sm_clock_mhz = max(self.sm_clock_mhz or 0, sm_clock_mhz() or 0)
        return self._peak

    def _held_now(self, pids: Collection[int], device: int) -> int | None:
        own = device_process_bytes(pids, device)
        if own is not None:
            return own
        used, before = device_used_bytes(device), self._before[device]
        return None if used is None or before is None else max(0, used - before)


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
