"""Which GPU CUDA calls its first: CUDA_VISIBLE_DEVICES as CUDA reads it, asked of NVML and never of CUDA.

CUDA takes the names one by one: an index; 'GPU-' and a UUID or the beginning of one; 'MIG-' and a UUID, or of old
drivers 'MIG-GPU-UUID/INSTANCE/COMPUTE'. The first that it does not know hides itself and all after it, a GPU that is
named twice hides all. NVML counts by PCI bus, and knows whole UUIDs alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pynvml

_HIDES_ALL = re.compile(r"\s*(-\d.*|NoDevFiles.*)?", re.DOTALL)  # what is written to have no GPU
_AT_MOST = 64  # GPUs of a machine, where the driver does not count them


def first_gpu() -> Any:
    """NVML's handle of the first visible GPU; None without one, and where all are hidden on purpose.

    Raises ValueError where there are GPUs and the names show none: a CPU is not measured for want of a name.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None and _HIDES_ALL.fullmatch(named):
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    names = ["0"] if named is None else [name.strip() for name in named.split(",")]
    shown = []
    for name in names:
        handle = _handle(name) if _form(name) == _form(names[0]) else None
        if handle is None:
            break
        shown.append(handle)
    if not shown:
        return _none(named, names[0])
    identities = [_asked("nvmlDeviceGetUUID", handle) or name for name, handle in zip(names, shown, strict=False)]
    if len(set(identities)) < len(identities):
        raise ValueError(f"CUDA_VISIBLE_DEVICES={named!r} names a GPU twice, and CUDA then shows none: name each once")
    if _form(names[0]) == "index":
        _check_order()
    return shown[0]


def is_part() -> bool:
    """Whether the first name is one of a MIG device, a part of a GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("MIG-")


def _form(name: str) -> str:
    return name[:4] if name.startswith(("GPU-", "MIG-")) else "index"


def _handle(name: str) -> Any:
    """NVML's handle of what a name means; None if that is nothing, or more than one."""
    if _form(name) == "index":
        number = re.match(r"\+?(\d+)", name)  # CUDA reads '1' of '1st'
        return number and _asked("nvmlDeviceGetHandleByIndex", int(number[1]))
    whole = _asked("nvmlDeviceGetHandleByUUID", name)
    if whole is not None:
        return whole
    old = re.fullmatch(r"MIG-(GPU-[^/]+)/(\d+)/(\d+)", name)
    if old:
        gpu, *instance = old.groups()
        parts = (part for whole in _gpus() if _begins(whole, gpu) for part in _parts(whole))
        found = [part for part in parts if _instance(part) == instance]
    elif name.startswith("GPU-"):
        found = [gpu for gpu in _gpus() if _begins(gpu, name)]
    else:
        found = [part for gpu in _gpus() for part in _parts(gpu) if _begins(part, name)]
    return found[0] if len(found) == 1 else None


def _gpus() -> Iterator[Any]:
    for index in range(_asked("nvmlDeviceGetCount") or _AT_MOST):
        handle = _asked("nvmlDeviceGetHandleByIndex", index)
        if handle is None:
            return
        yield handle


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


def _none(named: str | None, first: str) -> None:
    """Nothing is shown: None if there is no GPU, else an error that says what there is."""
    known = [f"{k}: {_asked('nvmlDeviceGetUUID', gpu) or 'a GPU'}" for k, gpu in enumerate(_gpus())]
    if known:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={named!r}: {first!r} is not the name of one GPU here ({', '.join(known)}); "
            "name one by index or UUID, or set it to '' to measure on the CPU"
        )


def _check_order() -> None:
    """Raises ValueError where CUDA is told to count another way than NVML, and that may give another GPU."""
    models = {_asked("nvmlDeviceGetName", gpu) for gpu in _gpus()}
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
