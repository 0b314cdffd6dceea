"""Imported, this node has two stand-ins for GPUs, and a variant in whose cells of 200 they go, as the file `how` says.

how  'lost' the driver says so, and the cell that memory ran out; 'hidden' the driver no longer shows them; 'words' the
     cell alone says it; 'dead' they compute no longer; 'hangs' so, and the cell does not end; 'bug' nothing of it
"""

import platform
import sys
import time
from pathlib import Path

import fake_gpus
import pynvml

import mmdma_core
from benchmarks.measuring import device as usable
from benchmarks.measuring import machine
from mmdma_core import register

fake_gpus.MODELS[platform.node()] = "Fake 9000"
machine.wsl = lambda: Path("wsl").exists()
HOW, GONE = Path("how"), Path("gone")
SAID = {
    "lost": "CUDA error: out of memory",
    "hidden": "CUDA error: unspecified launch failure",
    "words": "CUDA error: uncorrectable ECC error encountered",
    "dead": "CUDA error: unspecified launch failure",
    "bug": "CUDA error: an illegal memory access was encountered",
}


def _goes(code, query, *ways):
    def asked(*arguments):
        if GONE.exists() and HOW.read_text() in ways:
            raise pynvml.NVMLError(code)
        return query(*arguments)

    return asked


for name in ("UUID", "Name", "MemoryInfo", "ClockInfo", "ComputeRunningProcesses", "HandleByIndex"):
    query = f"nvmlDeviceGet{name}"
    setattr(pynvml, query, _goes(pynvml.NVML_ERROR_GPU_IS_LOST, getattr(pynvml, query), "lost"))
_handle = _goes(pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.nvmlDeviceGetHandleByIndex, "hidden")
pynvml.nvmlDeviceGetHandleByIndex = _handle
_fine = usable._compute


def _compute(devices):
    if GONE.exists() and HOW.read_text() in ("dead", "hangs"):
        raise RuntimeError("CUDA error: unknown error")
    return _fine(devices)


usable._compute = _compute


@register("vanishing", label="vanishing", reference="", cost_model=None, memory_model=None)
def start(x, y, settings, device, seed=0, parameters=None):
    if len(x) == 200 and HOW.exists():
        GONE.touch()
        if HOW.read_text() == "hangs":
            time.sleep(60)
        print("\n", file=sys.stderr)
        raise RuntimeError(SAID[HOW.read_text()])
    return mmdma_core.variant("linear-time").start(x, y, settings, device, seed, parameters)
