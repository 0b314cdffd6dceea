"""What ended a cell, from its own words: memory that ran out, in whichever library, and what only sounds like it."""

import dataclasses
import os
import signal
import time

import pytest
import torch
from triton.runtime.errors import OutOfResources

from benchmarks.measuring import guard, machine
from benchmarks.measuring.measurement import Limits, Measurement
from mmdma_core import Settings, compilers, host

RAN_OUT = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 16 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(&handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`. If you keep seeing this",
    "CUDA error: resource allocation failed when calling `cusparseCreate(handle)`",
    "CUDA error: insufficient resources when calling `cusparseSpGEMM_compute( handle, opA, opB, &alpha )`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "CURAND_STATUS_ALLOCATION_FAILED",
    "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nLast error:\nCuda failure 'out of memory'",
    "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
    "NVRTC_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation: out of memory",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.",
    "RESOURCE_EXHAUSTED: Failed to allocate request for 8.00GiB (8589934592B) on device ordinal 0",
    "INTERNAL: gpu/solver_handle_pool.cc:37: operation gpusolverDnCreate(&handle) failed: cuSolver internal error",
    "OOM when allocating tensor with shape[100000,100000] and type float",
    "Failed copying input tensor to GPU:0 in order to run Mul: Dst tensor is not initialized.",
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
]
OTHERWISE = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: too many resources requested for launch",
    "CUDA error: unspecified launch failure",
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb )`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm( handle, opa, opb )`",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnSsyevd( handle, jobz )`",
    "CUDA error: internal error when calling `cusparseSpMM( handle, opA )`",
    "Cuda failure 700 'an illegal memory access was encountered'",
    "INVALID_ARGUMENT: the memory layout of an argument does not match",
    "no column named 'out of memory'",
]


ASKED = Measurement(
    "primal", 20, 5, "", (), Settings(), "branch", 4, "exact", 5, "cpu", 1, Limits(1.0, 60.0, None, None)
)


def ended(work, asked=ASKED):
    record = guard.measure(asked, machine.describe("cpu", 1), 60, lambda asked, report: work())
    return record.status, record.detail


def fails(error, said=""):
    def work():
        os.write(2, f"{said}\n".encode())  # pytest has sys.stderr for itself
        raise error

    return work


@pytest.mark.parametrize("words", RAN_OUT)
def test_memory_that_ran_out(words):
    status, detail = ended(fails(RuntimeError(words)))
    assert status == "oom"
    assert any(line in detail for line in words.splitlines())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no more"),
        torch.OutOfMemoryError("whatever it says"),
        type("_ArrayMemoryError", (MemoryError,), {"__module__": "numpy._core._exceptions"})(
            "Unable to allocate 7 GiB"
        ),
        type("OutOfMemoryError", (Exception,), {"__module__": "cupy.cuda.memory"})("Out of memory allocating 8 bytes"),
        type("ResourceExhaustedError", (Exception,), {"__module__": "tensorflow.python.framework.errors_impl"})("{}"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ran_out_by_the_kind_of_error(error):
    assert ended(fails(error))[0] == "oom"


def test_memory_that_ran_out_and_led_to_another_error():
    def work():
        try:
            raise MemoryError("no more")
        except MemoryError as error:
            raise ValueError("no result") from error

    assert ended(work) == ("oom", "during start: MemoryError: no more")


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        ("[KeOps] error: cuMemAlloc(&p, 8) failed with error CUDA_ERROR_OUT_OF_MEMORY", "[KeOps] Cuda error."),
        ("error: nvrtcCompileProgram() failed with error NVRTC_ERROR_OUT_OF_MEMORY", "[KeOps] NVRTC error."),
        ("cc1plus: out of memory allocating 65536 bytes after a total of 9", "No module named 'pykeops_cpp_1'"),
    ],
)
def test_what_keops_prints_tells_of_memory(monkeypatch, printed, error):
    monkeypatch.setattr(compilers, "why_no_compiler", lambda: None)
    assert ended(fails(RuntimeError(error), printed))[0] == "oom"
    assert ended(fails(RuntimeError(error), "something else"))[0] == "error"


@pytest.mark.parametrize("words", OTHERWISE)
def test_what_only_sounds_like_it(words):
    assert ended(fails(RuntimeError(words), words))[0] == "error"


@pytest.mark.parametrize(
    "said",
    [
        "UserWarning: CUDA out of memory. Tried to allocate 2.00 GiB: a smaller block is taken",
        "W1 failed to alloc 8589934592 bytes on host: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "MemoryError: caught, and another way taken",
        "Triton Error [CUDA]: out of memory, so this tile is left out",
    ],
)
def test_what_was_printed_on_the_way_ended_nothing(said):
    assert ended(fails(ValueError("mine"), said))[0] == "error"


def test_a_crash_tells_by_what_it_printed():
    def work():
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()

    assert ended(work)[0] == "oom"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("g++: fatal error: Killed signal terminated program cc1plus", "oom"),
        ("Killed", "oom"),
        ("/bin/sh: line 1:  4321 Killed                  g++ a.cpp", "oom"),
        ("died with <Signals.SIGKILL: 9>", "oom"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'Killed'", "error"),
        ("the file Killed.txt is read", "error"),
    ],
)
def test_a_child_that_the_kernel_ended(monkeypatch, said, status):
    """The kernel has counted a kill while the cell ran; it may have been another's."""
    monkeypatch.setattr(host, "killed_since", lambda before: True)
    assert ended(fails(RuntimeError("no formula"), said))[0] == status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, "oom"), (signal.SIGTERM, "error")])
def test_a_rank_that_the_kernel_ended(monkeypatch, number, status):
    def work():
        os.kill(os.getpid(), number) if os.environ["RANK"] == "1" else time.sleep(60)

    monkeypatch.setattr(host, "killed_since", lambda before: True)
    assert ended(work, dataclasses.replace(ASKED, devices=2))[0] == status


def test_too_little_shared_memory_is_unsupported_with_what_the_gpu_has():
    status, detail = ended(fails(OutOfResources(147456, 101376, "shared memory")))
    assert status == "unsupported"
    assert "147456 bytes of shared memory, and this GPU has 101376" in detail
