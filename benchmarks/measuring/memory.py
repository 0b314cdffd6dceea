"""Memory probes: the host's kernel, the GPU's driver, PyTorch's allocator. All figures in bytes."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.measuring.machine import device_free_bytes, device_process_bytes, device_used_bytes, sm_clock_mhz
from mmdma_core import host

GIB = 2**30


def host_bytes(pid: int | None = None) -> int:
    """Resident memory of a process (this one by default)."""
    return psutil.Process(pid).memory_info().rss


def host_peak_bytes() -> int:
    """The most that this process has held since its fork or since `reset_host_peak`, as the kernel kept count."""
    return _status_bytes("VmHWM")


def reset_host_peak() -> None:
    """Start the kernel's count of the peak anew; where that is not allowed the peak since the fork stands."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def limit_host_memory(extra: int) -> None:
    """Let this process allocate `extra` bytes beyond what it has now; more raises MemoryError or its like."""
    limit = _status_bytes("VmData") + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def default_host_limit() -> int:
    """80 % of the memory that is free now, on the machine and in the groups (containers, jobs) of this process."""
    return int(0.8 * host.free_bytes())


def within_reach(kind: Literal["host", "device"], limit_gib: float | None) -> int | None:
    """Bytes that a cell could take now, by its limit and by what is free; None where nobody tells what is free."""
    free = device_free_bytes() if kind == "device" else default_host_limit() if limit_gib is None else host.free_bytes()
    return free if limit_gib is None or free is None else int(min(free, limit_gib * GIB))


class DeviceProbe:
    """The most that a process holds on the GPU, as the driver tells it when asked; made before the process starts.

    In a container the driver may not know the process by our number; then what the whole GPU has in use beyond what
    it had before is taken. None where the driver tells neither.
    """

    def __init__(self) -> None:
        self._before = device_used_bytes()
        self._peak: int | None = None
        self._measured = False
        self.sm_clock_mhz: int | None = None

    def peak(self, pid: int, stage: str | None) -> int | None:
        """Look now; the peak in bytes. It starts anew once the data have been made."""
        if not self._measured and stage not in (None, "data"):
            self._peak, self._measured = None, True
        known = [value for value in (self._peak, self._held_now(pid)) if value is not None]
        self._peak = max(known, default=None)
        self.sm_clock_mhz = max(self.sm_clock_mhz or 0, sm_clock_mhz() or 0)
        return self._peak

    def _held_now(self, pid: int) -> int | None:
        own = device_process_bytes(pid)
        if own is not None:
            return own
        used = device_used_bytes()
        return None if used is None or self._before is None else max(0, used - self._before)


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
