"""Memory probes: the host's kernel, the GPU's driver, PyTorch's allocator. All figures in bytes."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.machine import gpu_index

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
    """80 % of the memory that is free now."""
    return int(0.8 * psutil.virtual_memory().available)


class DeviceProbe:
    """The most that one process has held on the GPU, as the driver tells it when asked.

    In a container the driver may not know the process by our number; then what the whole GPU has in use beyond what
    it had at the start is taken.
    """

    def __init__(self, pid: int) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml, self._pid = pynvml, pid
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(gpu_index())
        self._before = pynvml.nvmlDeviceGetMemoryInfo(self._handle).used
        self._peak, self._stage = 0, None
        self.sm_clock_mhz = 0

    def peak(self, stage: str | None) -> int:
        """Look now; the peak in bytes. It starts anew when the data have been made (stage 'prepare')."""
        if stage != self._stage:
            self._peak = 0 if stage == "prepare" else self._peak
            self._stage = stage
        self._peak = max(self._peak, self._now())
        clock = self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)
        self.sm_clock_mhz = max(self.sm_clock_mhz, clock)
        return self._peak

    def _now(self) -> int:
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        own = next((process.usedGpuMemory for process in processes if process.pid == self._pid), None)
        if own is not None:
            return own
        return max(0, self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used - self._before)


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
