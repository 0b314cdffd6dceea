"""Who measured: node, GPU, driver, clocks, CPU, threads, versions, commit."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pynvml

from benchmarks.measuring import visible
from mmdma_core import host

# What NVML says where it does not know one thing, and the GPU is there.
_ONLY_NO_ANSWER = (
    *(pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_NO_DATA),
    *(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_UNINITIALIZED),
)
_PACKAGES = ("torch", "pykeops", "numba", "numpy", "lsmmdma", "tensorflow", "tensorflow-cpu")


@cache
def gpu(device: int = 0) -> dict[str, Any] | None:
    """Model, UUID, memory, driver and clocks (MHz) of the GPU that PyTorch calls cuda:DEVICE; None without one.

    In MIG mode they are those of the part that PyTorch takes, but for the clocks, which are the whole GPU's.

    Asks NVML and never CUDA: a process that has a CUDA context cannot fork cells. Raises ValueError where
    CUDA_VISIBLE_DEVICES names none of the GPUs that are there.
    """
    if device >= gpu_count():
        return None
    memory = _ask_driver("nvmlDeviceGetMemoryInfo", device)
    return {
        "name": _ask_driver("nvmlDeviceGetName", device) or "a GPU without a name",
        "uuid": gpu_uuid(device),
        "memory_bytes": memory and memory.total,
        "driver": driver(),
        "sm_clock_mhz": sm_clock_mhz(device),
        "max_sm_clock_mhz": _ask_driver("nvmlDeviceGetMaxClockInfo", device, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _ask_driver("nvmlDeviceGetClockInfo", device, pynvml.NVML_CLOCK_MEM),
    }


def gpu_count() -> int:
    """How many GPUs PyTorch has here. Raises ValueError as `gpu` does."""
    return len(_gpus())


@cache
def gpu_uuid(device: int = 0) -> str | None:
    """Which GPU it is, of all that there are."""
    return _ask_driver("nvmlDeviceGetUUID", device)


def whole_gpu_uuid(device: int = 0) -> str | None:
    """The same; of a part the UUID of its GPU."""
    return _answer("nvmlDeviceGetUUID", visible.whole(_gpus()[device]))


def compute_capability(device: int = 0) -> tuple[int, int] | None:
    """The compute capability of the GPU."""
    return _ask_driver("nvmlDeviceGetCudaComputeCapability", device)


def driver() -> str | None:
    """The version of the driver."""
    return _answer("nvmlSystemGetDriverVersion")


def sm_clock_mhz(device: int = 0) -> int | None:
    """The clock of the GPU's multiprocessors now."""
    return _ask_driver("nvmlDeviceGetClockInfo", device, pynvml.NVML_CLOCK_SM)


def device_used_bytes(device: int = 0) -> int | None:
    """What all processes together hold on the GPU."""
    memory = _ask_driver("nvmlDeviceGetMemoryInfo", device)
    return memory and memory.used


def device_free_bytes(device: int = 0) -> int | None:
    """What is free on the GPU."""
    memory = _ask_driver("nvmlDeviceGetMemoryInfo", device)
    return memory and memory.total - memory.used


def device_process_bytes(pids: Collection[int], device: int = 0) -> int | None:
    """What these processes hold on the GPU; None if the driver lists none of them, or not what they hold."""
    processes = _ask_driver("nvmlDeviceGetComputeRunningProcesses", device) or []
    held = [process.usedGpuMemory for process in processes if process.pid in pids]
    return None if not held or None in held else sum(held)


def device_process_shares(since_us: int, device: int = 0) -> list[tuple[int, float]] | None:
    """(pid, share of the multiprocessors' time) of each sample that the driver took after a time, in us since 1970.

    None where it tells none, as of a part in MIG mode.
    """
    try:
        samples = pynvml.nvmlDeviceGetProcessUtilization(_gpus()[device], since_us)
    except pynvml.NVMLError as error:  # it raises 'success', too, where there is no sample
        return [] if error.value in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND) else None
    filled = (one for one in samples if one.timeStamp > since_us and one.smUtil <= 100)
    return [(one.pid, one.smUtil / 100) for one in filled]


def gone(devices: int = 1) -> str | None:
    """Why the first GPUs, which were here, are no longer, as the driver says it; None while they are."""
    if not _gpus():
        return None
    for device in range(devices):
        for query in ("nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo"):
            try:
                getattr(pynvml, query)(_gpus()[device])
            except pynvml.NVMLError as error:
                if error.value not in _ONLY_NO_ANSWER:
                    return str(error)
    try:
        now = [_answer("nvmlDeviceGetUUID", handle) for handle in visible.gpus()]
    except ValueError as error:
        return str(error)
    lost = {gpu_uuid(device) for device in range(devices)} - {*now}
    return f"the driver no longer knows {', '.join(sorted(map(str, lost)))}" if lost else None


@cache
def _gpus() -> list[Any]:
    return visible.gpus()


def _ask_driver(query: str, device: int, *arguments: Any) -> Any:
    """The driver's answer about a GPU, None where it has none; a part has no clocks, its GPU has."""
    if device >= gpu_count():
        return None
    handle = _gpus()[device]
    found = _answer(query, handle, *arguments)
    asks_a_part = found is None and query not in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses")
    return _answer(query, visible.whole(handle), *arguments) if asks_a_part else found


def _answer(query: str, *arguments: Any) -> Any:
    with suppress(pynvml.NVMLError):
        return getattr(pynvml, query)(*arguments)
    return None


def wsl() -> bool:
    """Whether this is Linux under Windows, where the driver may move memory of the GPU into the host's."""
    return "microsoft" in platform.release().lower()


def available_threads() -> int:
    """CPU cores that this process may use all the time, see mmdma_core.host."""
    return host.cores()


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
        "wsl": wsl(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": commit(),
    }


def node() -> str:
    """The name of this host."""
    return platform.node()


def model(device: str, k: int = 0) -> str:
    """The model of the k-th GPU or of the CPU, whichever measures."""
    return gpu(k)["name"] if device == "cuda" else cpu_model()


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
