"""Imported, it makes nodes look as if they had GPUs: a stand-in for the driver, and cells that compute on the CPU."""

import itertools
import os
import platform
from types import SimpleNamespace

import pynvml
import torch

from benchmarks.measuring import device as usable
from benchmarks.measuring import machine, measurement, memory, others

MODELS = {"g1": "Fake 9000", "g2": "Fake 8000"}  # node -> model; other nodes have no driver


_USED = itertools.count(1 << 20, 1 << 20)  # bytes, more of them whenever it is asked


def _started():
    if platform.node() not in MODELS:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def _handle(index):
    _started()
    return f"GPU-{platform.node()}-{os.environ.get('CUDA_VISIBLE_DEVICES', index)}"


class _Torch:
    """PyTorch, but for its devices: all are the CPU."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def device(self, _):
        return torch.device("cpu")


pynvml.nvmlInit = _started
pynvml.nvmlDeviceGetCount = lambda: 2
pynvml.nvmlDeviceGetHandleByIndex = _handle
pynvml.nvmlDeviceGetUUID = str
pynvml.nvmlDeviceGetName = lambda _: MODELS[platform.node()]
pynvml.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(total=16 * memory.GIB, used=next(_USED))
pynvml.nvmlSystemGetDriverVersion = lambda: "1.2"
pynvml.nvmlDeviceGetClockInfo = pynvml.nvmlDeviceGetMaxClockInfo = lambda *_: 1000
pynvml.nvmlDeviceGetComputeRunningProcesses = lambda _: []
torch.cuda.is_available = lambda: platform.node() in MODELS
usable._compute = lambda devices: [
    usable.Seen(MODELS[platform.node()], 16 * memory.GIB, machine.gpu_uuid(k)) for k in range(devices)
]
measurement.torch = _Torch()
others.AGAIN = 1.0  # the other tests are no reason to measure a cell once more
