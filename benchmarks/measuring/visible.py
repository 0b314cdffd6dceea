"""Which GPUs CUDA shows, in its order: CUDA_VISIBLE_DEVICES as CUDA reads it, asked of NVML and never of CUDA.

CUDA takes the names one by one: an index; 'GPU-' and a UUID or the beginning of one; 'MIG-' and a UUID, or of old
drivers 'MIG-GPU-UUID/INSTANCE/COMPUTE'. The first that it does not know hides itself and all after it, a GPU that is
named twice hides all. Of a GPU in MIG mode it takes the first part, and where it has a part it shows nothing else.
NVML counts by PCI bus, and knows whole UUIDs alone.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pynvml

_HIDES_ALL = re.compile(r"\s*(-\d.*|NoDevFiles.*)?", re.DOTALL)  # what is written to have no GPU
_AT_MOST = 64  # GPUs of a machine, where the driver does not count them


def gpus() -> list[Any]:
    """NVML's handles of the visible GPUs, or of the part that is used; none where all are hidden on purpose.

    Raises ValueError where there are GPUs and nothing of them is shown: a CPU is not measured for want of a name.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _hides_all():
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    if named is None:
        names = [str(index) for index, _ in enumerate(_whole_gpus())]
    else:
        names = [name.strip() for name in named.split(",")]
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
    identities = [_asked("nvmlDeviceGetUUID", handle) or name for name, handle in zip(names, shown, strict=False)]
    if len(set(identities)) < len(identities):
        raise ValueError(f"CUDA_VISIBLE_DEVICES={named!r} names a GPU twice, and CUDA then shows none: name each once")
    if _form(names[0]) == "index":
        _check_order()
    return _used(shown, _form(names[0]) == "MIG-")


def _hides_all() -> bool:
    return _HIDES_ALL.fullmatch(os.environ.get("CUDA_VISIBLE_DEVICES", "0")) is not None


def _used(shown: list[Any], are_parts: bool) -> list[Any]:
    """What CUDA computes on: the first part that is shown, alone; without parts the GPUs as they are.

    Raises ValueError where they are in MIG mode and have no parts.
    """
    divided = [] if are_parts else [gpu for gpu in shown if _asked("nvmlDeviceGetMaxMigDeviceCount", gpu)]
    parts = shown if are_parts else [part for gpu in divided for part in _parts(gpu)]
    left = parts[:1] or [gpu for gpu in shown if gpu not in divided]
    if not left:
        raise ValueError(
            f"{_asked('nvmlDeviceGetName', shown[0]) or 'the GPU'} is in MIG mode and has no parts: make some "
            "(nvidia-smi mig -cgi ... -C), or end the mode (nvidia-smi -mig 0)"
        )
    return left


def whole(part: Any) -> Any:
    """The GPU of a MIG device, itself of one that is whole."""
    return _asked("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", part) or part


def trouble() -> str | None:
    """What the driver says where it cannot be asked for its GPUs; None where it can, and without a driver or need."""
    if _hides_all():
        return None
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        return None if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND else str(error)
    return None


def _form(name: str) -> str:
    return name[:4] if name.startswith(("GPU-", "MIG-")) else "index"


def _handle(name: str) -> Any:
    """NVML's handle of what a name means; None if that is nothing, or more than one."""
    if _form(name) == "index":
        number = re.match(r"\+?(\d+)", name)  # CUDA reads '1' of '1st'
        return number and next(itertools.islice(_whole_gpus(), int(number[1]), None), None)
    whole = _asked("nvmlDeviceGetHandleByUUID", name)
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
    count = _asked("nvmlDeviceGetCount")
    handles = (_asked("nvmlDeviceGetHandleByIndex", index) for index in range(_AT_MOST if count is None else count))
    yield from (handle for handle in handles if handle is not None)


def _parts(gpu: Any) -> Iterator[Any]:
    """The MIG devices of a GPU."""
    for index in range(_asked("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
        part = _asked("nvmlDeviceGetMigDeviceHandleByIndex", gpu, index)
        if part is not None:
            yield part


def _instance(part: Any) -> list[str]:
    return [str(_asked(f"nvmlDeviceGet{kind}InstanceId", part)) for kind in ("Gpu", "Compute")]


def _begins(handle: Any, name: str) -> bool:
    return (_asked("nvmlDeviceGetUUID", handle) or "").startswith(name)


def _refuse(named: str | None, first: str) -> None:
    """Nothing is shown: where there are GPUs, an error says which."""
    known = [f"{k}: {_asked('nvmlDeviceGetUUID', gpu) or 'a GPU'}" for k, gpu in enumerate(_whole_gpus())]
    if known:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={named!r}: {first!r} is not the name of one GPU here ({', '.join(known)}); "
            "name one by index or UUID, or set it to '' to measure on the CPU"
        )


def _check_order() -> None:
    """Raises ValueError where CUDA is told to count another way than NVML, and that may give another GPU."""
    models = {_asked("nvmlDeviceGetName", gpu) for gpu in _whole_gpus()}
    if os.environ.get("CUDA_DEVICE_ORDER") == "FASTEST_FIRST" and len(models) > 1:
        raise ValueError(
            f"CUDA_DEVICE_ORDER=FASTEST_FIRST: this machine's GPUs differ ({', '.join(sorted(map(str, models)))}) and "
            "are counted by PCI bus here: set it to PCI_BUS_ID, or CUDA_VISIBLE_DEVICES to a UUID"
        )


def _asked(query: str, *arguments: Any) -> Any:
    """The driver's answer, None where it has none."""
    with suppress(pynvml.NVMLError):
        return getattr(pynvml, query)(*arguments)
    return None
