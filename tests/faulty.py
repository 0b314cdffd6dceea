"""Variants that go wrong, each in its own way: a plugin for the tests of the guard and the sweep."""

import ctypes
import math
import os
import subprocess
import time

import torch

from mmdma_core import LossTerms, Unsupported, register


class Faulty:
    """A run whose step does `fault` once there are at least 200 cells, and nothing otherwise."""

    def __init__(self, x, fault):
        self.x, self.fault, self.epoch = x, fault, 0
        self.parameters = (x, x)

    def step(self):
        if len(self.x) >= 200:
            self.fault()
        self.epoch += 1

    def loss(self):
        return LossTerms(1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


class NanLoss(Faulty):
    def loss(self):
        return LossTerms(math.nan, math.nan, 0.0, 0.0, 0.0, 0.0)


def _raise(error):
    raise error


def _allocate_without_end():
    held = []
    while True:
        held.append(torch.ones(2**20))


def _abort_with_bad_alloc():
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def _keops_out_of_memory():
    os.write(2, b"[KeOps] error: cuMemAlloc(&p, size) failed with error CUDA_ERROR_OUT_OF_MEMORY\n")
    raise RuntimeError("[KeOps] Cuda error.")


def _hang_with_a_compiler():
    subprocess.Popen(["sleep", "1234"])
    time.sleep(1000)


_FAULTS = {
    "raises-oom": lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    "raises-memory-error": lambda: _raise(MemoryError("no more")),
    "allocates-without-end": _allocate_without_end,
    "one-large-allocation": lambda: torch.ones(2**40),
    "keops-oom": _keops_out_of_memory,
    "bad-alloc": _abort_with_bad_alloc,
    "cuda-oom": lambda: _raise(RuntimeError("CUDA error: out of memory")),
    "cublas-oom": lambda: _raise(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")),
    "nvrtc-oom": lambda: _raise(RuntimeError("NVRTC_ERROR_OUT_OF_MEMORY")),
    "jax-oom": lambda: _raise(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 458446696 bytes.")),
    "hangs": _hang_with_a_compiler,
    "segfaults": lambda: ctypes.string_at(0),
    "raises": lambda: _raise(RuntimeError("[KeOps] Cuda error. Something else than memory")),
    "is-killed": lambda: os.kill(os.getpid(), 9),
    "exits": lambda: os._exit(3),
    "unsupported-size": lambda: _raise(Unsupported("no more than 199 cells")),
    "slow": lambda: time.sleep(0.3),
}
for _name, _fault in _FAULTS.items():
    register(_name, label=_name, reference="a test")(lambda x, *_, fault=_fault: Faulty(x, fault))
register("nan-loss", label="nan-loss", reference="a test")(lambda x, *_: NanLoss(x, lambda: None))
register("needs-absent", label="needs-absent", reference="a test", requires=("no_such_module",))(
    lambda x, *_: Faulty(x, lambda: None)
)
