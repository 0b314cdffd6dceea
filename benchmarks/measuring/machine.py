"""Who measured: node, GPU, driver, clocks, CPU, threads, versions, commit."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pynvml

from benchmarks.measuring import visible

_PACKAGES = ("torch", "pykeops", "numba", "numpy", "lsmmdma", "tensorflow", "tensorflow-cpu")


@cache
def gpu() -> dict[str, Any] | None:
    """Model, memory, driver and clocks (MHz) of the GPU that PyTorch calls cuda:0; None without one.

    Asks NVML and never CUDA: a process that has a CUDA context cannot fork cells. Raises ValueError where
    CUDA_VISIBLE_DEVICES names none of the GPUs that are there.
    """
    if _first_gpu() is None:
        return None
    memory = _ask_driver("nvmlDeviceGetMemoryInfo")
    return {
        "name": _ask_driver("nvmlDeviceGetName"),
        "memory_bytes": memory and memory.total,
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "sm_clock_mhz": sm_clock_mhz(),
        "max_sm_clock_mhz": _ask_driver("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _ask_driver("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
    }


def gpu_uuid() -> str | None:
    """Which GPU it is, of all that there are."""
    return _ask_driver("nvmlDeviceGetUUID")


def sm_clock_mhz() -> int | None:
    """The clock of the GPU's multiprocessors now."""
    return _ask_driver("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM)


def device_used_bytes() -> int | None:
    """What all processes together hold on the GPU."""
    memory = _ask_driver("nvmlDeviceGetMemoryInfo")
    return memory and memory.used


def device_free_bytes() -> int | None:
    """What is free on the GPU."""
    memory = _ask_driver("nvmlDeviceGetMemoryInfo")
    return memory and memory.total - memory.used


def device_process_bytes(pid: int) -> int | None:
    """What one process holds on the GPU; None if the driver does not list it."""
    processes = _ask_driver("nvmlDeviceGetComputeRunningProcesses") or []
    return next((process.usedGpuMemory for process in processes if process.pid == pid), None)


@cache
def _first_gpu() -> Any:
    return visible.first_gpu()


def _ask_driver(query: str, *arguments: Any) -> Any:
    """The driver's answer about the GPU, None where it has none."""
    if _first_gpu() is None:
        return None
    try:
        return getattr(pynvml, query)(_first_gpu(), *arguments)
    except pynvml.NVMLError:
        return None


def available_threads() -> int:
    """CPU cores that this process may use all the time, see mmdma_core.host."""
    return _host().cores()


def _host() -> ModuleType:
    """mmdma_core.host; by its file at first, since its package imports PyTorch, which reads how many threads it has."""
    if "mmdma_core" in sys.modules:
        return importlib.import_module("mmdma_core.host")
    folder = Path(importlib.util.find_spec("mmdma_core").origin).parent
    spec = importlib.util.spec_from_file_location("host", folder / "host.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def threads_environment(number: int) -> dict[str, str]:
    """What the libraries that compute read, when they are loaded, about their threads."""
    return {f"{library}_NUM_THREADS": str(number) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}


def describe(device: str, threads: int) -> dict[str, Any]:
    """The machine as it goes into every record: the GPU only if it measures, `threads` what the process is to use."""
    return {
        "node": node(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "gpu": gpu() if device == "cuda" else None,
        "cpu": cpu_model(),
        "cpu_threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": commit(),
    }


def node() -> str:
    """The name of this host."""
    return platform.node()


def model(device: str) -> str:
    """The model of the GPU or of the CPU, whichever measures."""
    return gpu()["name"] if device == "cuda" else cpu_model()


def recorded_model(machine: Mapping[str, Any]) -> str | None:
    """The same of a record's machine."""
    return machine["gpu"]["name"] if machine.get("gpu") else machine.get("cpu")


def default_name(device: str) -> str:
    """A folder name made from the model of the GPU or of the CPU and its cores, whichever measures."""
    name = model(device) + ("" if device == "cuda" else f" {available_threads()} cores")
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
    """The commit of this checkout, with '-dirty' if tracked files differ from it; None where it is none.

    A repository that lies around it, such as that of a project with an environment or a copy of this in it, is another
    one; so is one that a variable of git names.
    """
    file = Path(__file__).resolve()
    root = file.parents[2]
    of_another = re.compile("GIT_(?!CONFIG)").match  # variables that a hook of git has set
    environment = {name: value for name, value in os.environ.items() if not of_another(name)}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(file.relative_to(root)))
        if git("rev-parse", "--show-prefix"):  # the repository lies around it
            return None
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
