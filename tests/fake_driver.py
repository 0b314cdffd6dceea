"""A libcuda that computes nothing: KeOps and Triton compile, link and load against it where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

# Answers that are read: one GPU, of compute capability 9.0 (attributes 75 and 76); no table of NVRTC's; and errors that
# a test asks for, by the numbers of cuda.h.
_SOURCE = """
#include <stdlib.h>
static int asked(const char *name) { const char *value = getenv(name); return value ? atoi(value) : 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetAttribute(int *value, int name) { *value = name == 75 ? 9 : name == 76 ? 0 : 1024; return 0; }
int cuGetErrorName(int error, const char **name) {
  *name = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
  return 0;
}
int cuGetExportTable(const void **table) { static long size[] = {8}; *table = size; return 0; }
int cuMemAlloc_v2() { return asked("FAKE_ALLOC"); }
int cuModuleLoadDataEx() { return asked("FAKE_LOAD"); }
"""
_IDLE = """
cuInit cuDeviceGet cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2 cuDriverGetVersion cuGetErrorString
cuCtxGetCurrent cuCtxGetLimit cuCtxPushCurrent_v2 cuCtxSetCurrent cuCtxSetLimit cuCtxSynchronize
cuMemFree_v2 cuMemcpyDtoH_v2 cuMemcpyHtoD_v2 cuModuleGetFunction cuModuleLoadData cuModuleUnload
cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig cuLaunchKernel cuLaunchKernelEx
cuOccupancyMaxActiveClusters cuPointerGetAttribute cuPointerGetAttributes cuTensorMapEncodeIm2col cuTensorMapEncodeTiled
"""


def build(folder):
    """The library in a folder, and the environment in which it is the driver's and the caches are there, too."""
    lines = [_SOURCE, *(f"int {name}() {{ return 0; }}" for name in _IDLE.split())]
    (folder / "driver.c").write_text("\n".join(lines))
    library = folder / "libcuda.so.1"
    command = ["gcc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", folder / "driver.c", "-o", library]
    subprocess.run(command, check=True)
    (folder / "libcuda.so").symlink_to(library.name)
    compiler = folder / "quick-g++"  # KeOps asks for -O3, which takes a minute; the last option wins
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    compiler.chmod(0o755)
    ours = {"LIBRARY_PATH": folder, "LD_LIBRARY_PATH": folder, "TRITON_LIBCUDA_PATH": folder, "CXX": compiler}
    ours |= {"XDG_CACHE_HOME": folder, "TRITON_CACHE_DIR": folder / "triton", "KEOPS_CACHE_FOLDER": folder / "keops"}
    unset = ("CUDA_PATH", "CUDA_HOME", "CONDA_PREFIX", "CC", "TRITON_INTERPRET")
    return {k: v for k, v in os.environ.items() if k not in unset} | {k: str(v) for k, v in ours.items()}


def said(code, environment, **more):
    """What Python code prints last in a process of its own."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [more.pop("PYTHONPATH", "")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | more | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]
