"""Who measured: GPU, driver, clocks, CPU, threads, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("torch", "pykeops", "numpy")


@cache
def gpu() -> dict[str, Any] | None:
    """Model, memory, driver and clocks (MHz) of the first visible GPU as the driver tells them; None without one.

    Asks NVML and never CUDA: a process that has a CUDA context cannot fork cells.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(gpu_index())
    except pynvml.NVMLError:
        return None
    return {
        "name": pynvml.nvmlDeviceGetName(handle),
        "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "sm_clock_mhz": _or_none(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": _or_none(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _or_none(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
    }


def gpu_index() -> int:
    """NVML's index of the GPU that PyTorch calls cuda:0."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return int(first) if first.isdigit() else 0


def available_threads() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe(threads: int) -> dict[str, Any]:
    """The machine as it goes into every record; `threads` is what the measuring process is given."""
    return {
        "gpu": gpu(),
        "cpu": cpu_model(),
        "cpu_threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": commit(),
    }


def default_name() -> str:
    """A folder name made from the model of the GPU, else of the CPU and its threads."""
    found = gpu()
    name = found["name"] if found else f"{cpu_model()} {available_threads()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@cache
def cpu_model() -> str:
    """The CPU's model as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return re.sub(r"\(R\)|\(TM\)|CPU|@.*", " ", line.split(":", 1)[1]).strip()
    return platform.machine()


@cache
def commit() -> str | None:
    """The commit of this source tree, with '-dirty' if tracked files differ from it; None outside git."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _or_none(query: Any, *arguments: Any) -> Any:
    import pynvml

    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None
