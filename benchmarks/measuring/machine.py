"""This machine: who measures, its GPUs as the driver tells them, and what is not installed.

CUDA is never asked, since a process that has a CUDA context cannot fork measurements. NVML is: `visible_gpus` reads
CUDA_VISIBLE_DEVICES as CUDA does. CUDA takes the names there one by one: an index; 'GPU-' and a UUID or the beginning
of one; 'MIG-' and a UUID, or of old drivers 'MIG-GPU-UUID/INSTANCE/COMPUTE'. The first that it does not know hides
itself and all after it, a GPU that is named twice hides all. Of a GPU in MIG mode it takes the first part, and where it
has a part it shows nothing else. NVML counts by PCI bus, and knows whole UUIDs alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pynvml

from mmdma_core import compilers, host

_PACKAGES = ("torch", "pykeops", "numba", "numpy", "lsmmdma", "tensorflow", "tensorflow-cpu")
_HIDES_ALL = re.compile(r"\s*(-\d.*|NoDevFiles.*)?", re.DOTALL)  # what is written to have no GPU
_AT_MOST = 64  # GPUs of a machine, where the driver does not count them
# What NVML says where it does not know one thing, and the GPU is there.
_ONLY_NO_ANSWER = (
    *(pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_NO_DATA),
    *(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_UNINITIALIZED),
)
_OF_PARTS = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses")  # which no whole GPU answers for them
# name -> the variable that names another one, what else is taken for it, and the words of a measurement that lacked it
_COMPILERS = {
    "g++": ("CXX", ("g++",), re.compile(r"C\+\+ compiler|\bg\+\+|\bpykeops_\w+", re.IGNORECASE)),
    "gcc": ("CC", ("gcc", "clang"), re.compile(r"\bC compiler|\bgcc\b", re.IGNORECASE)),
}
_PYTHON = "Python.h"
_COMPILED = re.compile("|".join(rf"(?<![\w/]){re.escape(name)}(?!\w)" for name in (_PYTHON, *compilers.PARTS)))
_MODULE = re.compile(r"No module named '(\w+)'")  # of one without dots: to look for a part imports the whole


def wsl() -> bool:
    """Return whether this is Linux under Windows, where the driver may move memory of the GPU into the host's."""
    return "microsoft" in platform.release().lower()


def threads_environment(number: int) -> dict[str, str]:
    """Return the variables from which libraries that compute take their number of threads when they are loaded."""
    return {f"{library}_NUM_THREADS": str(number) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}


def describe(device: str, threads: int) -> dict[str, Any]:
    """Describe the machine for a record: the GPU only if it measures, `threads` those that the process is to use."""
    return {
        "node": platform.node(),
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


def model(device: str, k: int = 0) -> str:
    """Return the model of the k-th GPU or of the CPU, whichever measures."""
    return gpu(k)["name"] if device == "cuda" else cpu_model()


def recorded_model(machine: Mapping[str, Any]) -> str | None:
    """Return the model of what measured, from the machine of a record."""
    return machine["gpu"]["name"] if machine.get("gpu") else machine.get("cpu")


def default_name(device: str) -> str:
    """Make a folder name from the model of the GPU or of the CPU and its cores, whichever measures."""
    name = model(device) + ("" if device == "cuda" else f" {host.cores()} cores")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@cache
def cpu_model() -> str:
    """Return the CPU's model as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return re.sub(r"\(R\)|\(TM\)|CPU|@.*", " ", line.split(":", 1)[1]).strip()
    return platform.machine()


@cache
def commit() -> str | None:
    """Return the commit of this checkout, with '-dirty' if tracked files differ from it; None where it is none.

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


def lacking(words: str) -> list[str]:
    """List what is named in words and not installed: modules, compilers, and what they compile against."""
    compilers = [name for name, (_, _, said) in _COMPILERS.items() if said.search(words)]
    modules = [name for name in _MODULE.findall(words) if not name.startswith("pykeops_")]  # KeOps' own, not compiled
    found = dict.fromkeys([*compilers, *_COMPILED.findall(words), *modules])
    return [name for name in found if not is_here(name)]


def is_here(name: str) -> bool:
    """Return whether a compiler or what it compiles against is found, or a module can be imported."""
    if name in _COMPILERS:
        variable, names, _ = _COMPILERS[name]
        return any(map(shutil.which, (os.environ.get(variable, ""), *names)))
    if name == _PYTHON:
        return Path(compilers.python_headers(), name).is_file()
    if name in compilers.PARTS:
        return name not in compilers.lacks()
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a specification, such as __main__
        return True


def visible_gpus() -> list[Any]:
    """Return NVML's handles of the visible GPUs, or of the part that is used; none where all are hidden on purpose.

    Raises ValueError where there are GPUs and nothing of them is shown: a CPU is not measured for want of a name.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _all_hidden():
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    every = (str(index) for index, _ in enumerate(_whole_gpus()))
    names = [*every] if named is None else [name.strip() for name in named.split(",")]
    shown = []
    for name in names:
        handle = _handle(name) if _form(name) == _form(names[0]) else None
        if handle is None:
            break
        shown.append(handle)
    if not shown:
        if names:
            _refuse(named, names[0])
        return []
    identities = [_ask("nvmlDeviceGetUUID", handle) or name for name, handle in zip(names, shown, strict=False)]
    if len(set(identities)) < len(identities):
        raise ValueError(f"CUDA_VISIBLE_DEVICES={named!r} names a GPU twice, and CUDA then shows none: name each once")
    if _form(names[0]) == "index":
        _check_order()
    return _used(shown, _form(names[0]) == "MIG-")


@cache
def gpu(device: int = 0) -> dict[str, Any] | None:
    """Return model, UUID, memory, driver and clocks (MHz) of the GPU that PyTorch calls cuda:DEVICE, None without one.

    In MIG mode they are those of the part that PyTorch takes, but for the clocks, which are the whole GPU's.

    Raises ValueError where CUDA_VISIBLE_DEVICES names none of the GPUs that are there.
    """
    if device >= gpu_count():
        return None
    memory = _ask_gpu("nvmlDeviceGetMemoryInfo", device)
    return {
        "name": _ask_gpu("nvmlDeviceGetName", device) or "a GPU without a name",
        "uuid": gpu_uuid(device),
        "memory_bytes": memory and memory.total,
        "driver": driver(),
        "sm_clock_mhz": sm_clock_mhz(device),
        "max_sm_clock_mhz": _ask_gpu("nvmlDeviceGetMaxClockInfo", device, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _ask_gpu("nvmlDeviceGetClockInfo", device, pynvml.NVML_CLOCK_MEM),
    }


def gpu_count() -> int:
    """Return how many GPUs PyTorch has here. Raises ValueError as `gpu` does."""
    return len(_gpus())


@cache
def gpu_uuid(device: int = 0) -> str | None:
    """Return the UUID of the GPU."""
    return _ask_gpu("nvmlDeviceGetUUID", device)


def whole_gpu_uuid(device: int = 0) -> str | None:
    """Return the UUID of the GPU; of a MIG part that of its GPU."""
    return _ask("nvmlDeviceGetUUID", _whole(_gpus()[device]))


def compute_capability(device: int = 0) -> tuple[int, int] | None:
    """Return the compute capability of the GPU."""
    return _ask_gpu("nvmlDeviceGetCudaComputeCapability", device)


def driver() -> str | None:
    """Return the version of the driver."""
    return _ask("nvmlSystemGetDriverVersion")


def sm_clock_mhz(device: int = 0) -> int | None:
    """Return the clock of the GPU's multiprocessors now."""
    return _ask_gpu("nvmlDeviceGetClockInfo", device, pynvml.NVML_CLOCK_SM)


def device_used_bytes(device: int = 0) -> int | None:
    """Return the bytes that all processes together have taken on the GPU."""
    memory = _ask_gpu("nvmlDeviceGetMemoryInfo", device)
    return memory and memory.used


def device_free_bytes(device: int = 0) -> int | None:
    """Return the bytes that are free on the GPU."""
    memory = _ask_gpu("nvmlDeviceGetMemoryInfo", device)
    return memory and memory.total - memory.used


def device_process_bytes(pids: Collection[int], device: int = 0) -> int | None:
    """Return the bytes that processes have on the GPU; None if the driver lists none of them, or not their memory."""
    processes = _ask_gpu("nvmlDeviceGetComputeRunningProcesses", device) or []
    held = [process.usedGpuMemory for process in processes if process.pid in pids]
    return None if not held or None in held else sum(held)


def device_process_shares(since_us: int, device: int = 0) -> list[tuple[int, float]] | None:
    """List (pid, share of the multiprocessors' time) of each sample of the driver after a time, in us since 1970.

    None where it tells none, as of a part in MIG mode.
    """
    try:
        samples = pynvml.nvmlDeviceGetProcessUtilization(_gpus()[device], since_us)
    except pynvml.NVMLError as error:  # it raises 'success', too, where there is no sample
        return [] if error.value in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND) else None
    filled = (one for one in samples if one.timeStamp > since_us and one.smUtil <= 100)
    return [(one.pid, one.smUtil / 100) for one in filled]


def gone(devices: int = 1) -> str | None:
    """Return why the first GPUs, which were here, are no longer, as the driver says it; None while they are."""
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
        now = [_ask("nvmlDeviceGetUUID", handle) for handle in visible_gpus()]
    except ValueError as error:
        return str(error)
    lost = {gpu_uuid(device) for device in range(devices)} - {*now}
    return f"the driver no longer knows {', '.join(sorted(map(str, lost)))}" if lost else None


def trouble() -> str | None:
    """Return what the driver says where it does not list its GPUs; None where it does, and where there is none."""
    if _all_hidden():
        return None
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        return None if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND else str(error)
    return None


@cache
def _gpus() -> list[Any]:
    return visible_gpus()


def _ask_gpu(query: str, device: int, *arguments: Any) -> Any:
    """Ask the driver about a GPU; None where it has no answer. A part has no clocks, its GPU has."""
    if device >= gpu_count():
        return None
    handle = _gpus()[device]
    found = _ask(query, handle, *arguments)
    return _ask(query, _whole(handle), *arguments) if found is None and query not in _OF_PARTS else found


def _ask(query: str, *arguments: Any) -> Any:
    """Ask the driver; None where it has no answer."""
    with suppress(pynvml.NVMLError):
        return getattr(pynvml, query)(*arguments)
    return None


def _all_hidden() -> bool:
    return _HIDES_ALL.fullmatch(os.environ.get("CUDA_VISIBLE_DEVICES", "0")) is not None


def _used(shown: list[Any], are_parts: bool) -> list[Any]:
    """Return what CUDA computes on: the first part that is shown, alone; without parts the GPUs as they are.

    Raises ValueError where they are in MIG mode and have no parts.
    """
    divided = [] if are_parts else [gpu for gpu in shown if _ask("nvmlDeviceGetMaxMigDeviceCount", gpu)]
    parts = shown if are_parts else [part for gpu in divided for part in _parts(gpu)]
    left = parts[:1] or [gpu for gpu in shown if gpu not in divided]
    if not left:
        raise ValueError(
            f"{_ask('nvmlDeviceGetName', shown[0]) or 'the GPU'} is in MIG mode and has no parts: make some "
            "(nvidia-smi mig -cgi ... -C), or end the mode (nvidia-smi -mig 0)"
        )
    return left


def _whole(part: Any) -> Any:
    """Return the GPU of a MIG device, itself of one that is whole."""
    return _ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", part) or part


def _form(name: str) -> str:
    return name[:4] if name.startswith(("GPU-", "MIG-")) else "index"


def _handle(name: str) -> Any:
    """NVML's handle of what a name means; None if that is nothing, or more than one."""
    if _form(name) == "index":
        number = re.match(r"\+?(\d+)", name)  # CUDA reads '1' of '1st'
        return number and next(itertools.islice(_whole_gpus(), int(number[1]), None), None)
    whole = _ask("nvmlDeviceGetHandleByUUID", name)
    if whole is not None:
        return whole
    old = re.fullmatch(r"MIG-(GPU-[^/]+)/(\d+)/(\d+)", name)
    if old:
        gpu, *instance = old.groups()
        parts = (part for whole in _whole_gpus() if _begins(whole, gpu) for part in _parts(whole))
        found = [part for part in parts if _instance(part) == instance]
    elif name.startswith("GPU-"):
        found = [gpu for gpu in _whole_gpus() if _begins(gpu, name)]
    else:
        found = [part for gpu in _whole_gpus() for part in _parts(gpu) if _begins(part, name)]
    return found[0] if len(found) == 1 else None


def _whole_gpus() -> Iterator[Any]:
    """Those that this process may use: in a job or a container the driver may count others."""
    count = _ask("nvmlDeviceGetCount")
    handles = (_ask("nvmlDeviceGetHandleByIndex", index) for index in range(_AT_MOST if count is None else count))
    yield from (handle for handle in handles if handle is not None)


def _parts(gpu: Any) -> Iterator[Any]:
    """Yield the MIG devices of a GPU."""
    for index in range(_ask("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
        part = _ask("nvmlDeviceGetMigDeviceHandleByIndex", gpu, index)
        if part is not None:
            yield part


def _instance(part: Any) -> list[str]:
    return [str(_ask(f"nvmlDeviceGet{kind}InstanceId", part)) for kind in ("Gpu", "Compute")]


def _begins(handle: Any, name: str) -> bool:
    return (_ask("nvmlDeviceGetUUID", handle) or "").startswith(name)


def _refuse(named: str | None, first: str) -> None:
    """Raise ValueError where there are GPUs and none is shown, with their names."""
    known = [f"{k}: {_ask('nvmlDeviceGetUUID', gpu) or 'a GPU'}" for k, gpu in enumerate(_whole_gpus())]
    if known:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={named!r}: {first!r} is not the name of one GPU here ({', '.join(known)}); "
            "name one by index or UUID, or set it to '' to measure on the CPU"
        )


def _check_order() -> None:
    """Raise ValueError where CUDA is told to count another way than NVML, and that may give another GPU."""
    models = {_ask("nvmlDeviceGetName", gpu) for gpu in _whole_gpus()}
    if os.environ.get("CUDA_DEVICE_ORDER") == "FASTEST_FIRST" and len(models) > 1:
        raise ValueError(
            f"CUDA_DEVICE_ORDER=FASTEST_FIRST: this machine's GPUs differ ({', '.join(sorted(map(str, models)))}) and "
            "are counted by PCI bus here: set it to PCI_BUS_ID, or CUDA_VISIBLE_DEVICES to a UUID"
        )
