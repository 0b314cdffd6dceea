"""A process without a GPU in which PyTorch believes in two: what a variant would do on one is watched, not computed.

Tensors are fake ones, of PyTorch's FakeTensorMode: each has a device and a shape, and no values. A few lines of C++
give PyTorch a current GPU, which a CPU build has not. Every operation passes a watch, which notes

    mixed     tensors of different devices in one operation (numbers on the CPU go with any)
    elsewhere an operation, a launch or a capture while another GPU is the current one, or a stream of another GPU
    wait      in an epoch, but the first, or in a capture the host asks for a value, or copies in a way that waits
    captured  in a capture: memory of the host is allocated, or anything copied between devices
    import    modules that `start` imports after an earlier one
    compiled  kernels that `start` compiles after an earlier run

In the place of what would compile or compute on a GPU there are: Triton's launches (JITFunction.run), KeOps (its
LazyTensor), sparse views, CUDA graphs, streams and pinned memory. A value that the host asks for is 1.

    python fake_cuda.py FOLDER '[{"variant": "primal", "device": "cuda:1", ...}]'

keeps what it builds in FOLDER, and prints what was noted, for each job a list of [phase, kind, detail]; see `watched`.
"""

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
_GUARD = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
static thread_local int current = 0;
struct Guard final : impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override { Device before = getDevice(); setDevice(d); return before; }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void setDevice(Device d) const override { current = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { current = d.index(); }
  Stream getStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream getNewStream(Device d, int) const override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const override { return s; }
  DeviceIndex deviceCount() const noexcept override { return 2; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
static Guard guard;
static impl::DeviceGuardImplRegistrar registered(DeviceType::CUDA, &guard);
struct Hooks : at::CUDAHooksInterface {  // by which autograd finds that there are GPUs
  Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  DeviceIndex deviceCount() const override { return 2; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex getCurrentDevice() const override { return current; }
};
namespace at { C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks) }
extern "C" int exchange(int index) { int before = current; if (index >= 0) current = index; return before; }
"""


def guard(folder):
    """The library, built once in the folder for a version of PyTorch; loaded before this looks for GPUs."""
    there = Path(importlib.util.find_spec("torch").origin).parent
    digest = hashlib.sha256(f"{_GUARD} {metadata.version('torch')}".encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"mmdma-fake-cuda-{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as build:
            (Path(build) / "guard.cpp").write_text(_GUARD)
            command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", "guard.cpp", "-o", "guard.so"]
            command += [f"-I{there / 'include'}", f"-L{there / 'lib'}", "-lc10", "-ltorch_cpu"]
            subprocess.run(command, cwd=build, check=True)
            os.replace(Path(build) / "guard.so", library)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(there / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


_EXCHANGE = guard(Path(sys.argv[1])).exchange

# ruff: noqa: E402  (PyTorch looks for GPUs when it is loaded)
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NOTED = []
PHASE = ["data"]
CAPTURING = []
COMPILED = set()
WARM = set()
_WAIT = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive")
_COPY = ("_to_copy", "copy_")


def note(kind, detail):
    asked = {"wait": PHASE[0] == "epoch" or CAPTURING, "compiled": PHASE[0] == "start"}.get(kind, True)
    if asked and PHASE[0] not in ("data", "warm-up") and [PHASE[0], kind, detail] not in NOTED:
        NOTED.append([PHASE[0], kind, detail])


def place():
    frames = [frame for frame in traceback.extract_stack() if "/mmdma_core/" in frame.filename]
    frames = [frame for frame in frames if "own_state" not in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


class Watch(TorchDispatchMode):
    """Notes what each operation does with devices."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation._schema.name.removeprefix("aten::")
        given = tensors((args, kwargs))
        if name in _WAIT and any(one.is_cuda for one in given):
            note("wait", f"{name} at {place()}")
        if name == "_local_scalar_dense":
            return {torch.bool: True}.get(given[0].dtype, 1.0 if given[0].is_floating_point() else 1)
        if len({one.device for one in given if one.dim() or one.is_cuda}) > 1 and name not in _COPY:
            note("mixed", f"{name} of {sorted({str(one.device) for one in given})} at {place()}")
        found = operation(*args, **kwargs)
        if name != "prim::device":
            self._look(name, given, tensors(found), args, kwargs)
        return found

    def _look(self, name, given, made, args, kwargs):
        if name in _COPY:
            on = {one.device for one in (*given, *made)}
            if len({device.type for device in on}) > 1:
                waits = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
                source = args[1] if name == "copy_" else args[0]
                if waits or (not source.is_cuda and not getattr(source, "is_pinned_here", False)):
                    note("wait", f"{name} of {[str(device) for device in on]} at {place()}")
                if CAPTURING:
                    note("captured", f"{name} between devices at {place()}")
        elsewhere = {one.device.index for one in (*given, *made) if one.is_cuda} - {torch.cuda.current_device()}
        if elsewhere:
            note("elsewhere", f"{name} on cuda:{elsewhere.pop()} at {place()}")
        if CAPTURING and not given and any(one.device.type == "cpu" and one.dim() for one in made):
            note("captured", f"{name} allocates memory of the host at {place()}")


def tensors(tree):
    return [one for one in tree_leaves(tree) if isinstance(one, torch.Tensor)]


class Stream:
    def __init__(self, device=None):
        self.device = torch.device("cuda", torch.cuda.current_device() if device is None else device.index)


class Graph:
    def replay(self):
        if torch.cuda.current_device() != self.device.index:
            note("elsewhere", f"replay of a graph of {self.device} on cuda:{torch.cuda.current_device()} at {place()}")


class Capture:
    """torch.cuda.graph: on its stream, whose GPU is then the current one; without one on the first that was made."""

    default_capture_stream = None

    def __init__(self, graph, stream=None):
        if stream is None and Capture.default_capture_stream is None:
            Capture.default_capture_stream = Stream()
        self._graph, self._stream = graph, stream or Capture.default_capture_stream

    def __enter__(self):
        self._on = torch.cuda.device(self._stream.device)
        if self._stream.device.index != torch.cuda.current_device():
            note("elsewhere", f"capture on {self._stream.device} at {place()}")
        self._on.__enter__()
        self._graph.device = self._stream.device
        CAPTURING.append(True)

    def __exit__(self, *error):
        CAPTURING.pop()
        self._on.__exit__(*error)


def pinned(tensor, *device):
    if CAPTURING:
        note("captured", f"pin_memory at {place()}")
    copy = tensor.clone()
    copy.is_pinned_here = True
    return copy


def launched(kernel, *args, grid, warmup, **options):
    """In the place of Triton's launch: what the kernel is compiled for, and where its tensors lie."""
    given = [arg for arg in args if isinstance(arg, torch.Tensor)]
    name = kernel.__name__
    for one in given:
        if one.device != torch.device("cuda", torch.cuda.current_device()):
            note("elsewhere", f"{name} with a tensor on {one.device} at {place()}")
        if not one.is_contiguous():
            note("mixed", f"{name} with a tensor that is not contiguous at {place()}")
    key = name, *sorted(options.items()), *(one.dtype for one in given)
    if key not in COMPILED:
        note("compiled", f"{name} at {place()}")
        COMPILED.add(key)


class Lazy:
    """In the place of KeOps' LazyTensor, which would compile: the same on whole tensors, (n, m, d) or (n, m)."""

    def __init__(self, values):
        self._values = values

    def __sub__(self, other):
        return Lazy(self._values - other._values)

    def __pow__(self, exponent):
        return Lazy(self._values**exponent)

    def __neg__(self):
        return Lazy(-self._values)

    def exp(self):
        return Lazy(self._values.exp())

    def sum(self, dim, backend="GPU"):
        if backend != "GPU":
            note("elsewhere", f"KeOps on the {backend} at {place()}")
        return Lazy(self._values.sum(2)) if dim == 2 else self._values.sum(1, keepdim=True)

    def __matmul__(self, vector):
        return self._values @ vector


class Sparse:
    """In the place of a view in CSR, which fake tensors know nothing of: every entry is stored."""

    layout, is_cuda = torch.sparse_csr, True

    def __init__(self, dense):
        self._dense, self.shape, self.device, self.dtype = dense, dense.shape, dense.device, dense.dtype

    def __len__(self):
        return len(self._dense)

    def __matmul__(self, other):
        return self._dense @ other

    def values(self):
        return self._dense.reshape(-1)

    def double(self):
        return Sparse(self._dense.double())

    def t(self):
        return Sparse(self._dense.T)

    def rows(self, rows):
        return Sparse(self._dense[rows])

    def to_dense(self):
        return self._dense

    def to_sparse_csr(self):
        return self


def pretend():
    """Put all of this in its place; the mode that the threads of a run enter."""
    import pykeops.torch
    from triton.runtime.jit import JITFunction

    cuda = torch.cuda
    cuda._exchange_device = cuda._maybe_exchange_device = _EXCHANGE
    cuda.current_device = lambda: _EXCHANGE(-1)
    cuda.device_count = lambda: 2
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda.synchronize = lambda *device: note("wait", f"torch.cuda.synchronize at {place()}")
    cuda.CUDAGraph, cuda.graph, cuda.Stream = Graph, Capture, Stream
    torch.Tensor.pin_memory = pinned
    torch.random.fork_rng = lambda *given, **options: contextlib.nullcontext()
    JITFunction.run = launched
    from mmdma_core import formulations
    from mmdma_core.fused import compose

    pykeops.torch.LazyTensor = Lazy
    compose.is_sparse = formulations.is_sparse = lambda view: isinstance(view, Sparse)
    formulations._rows = Sparse.rows


def watched(job):
    """What a run of the variant does on views (n, p) on the device, after one that has warmed up.

    variant, n, p, device, sparse
    small  whether the problem is below the thresholds, of cells whose epoch is a graph and of an exact loss
    fault  one of FAULTS, planted first
    """
    import mmdma_core
    from mmdma_core.external import published
    from mmdma_core.fused import compose, views_cuda

    compose.EXACT_UP_TO, views_cuda.CAPTURED_POINTS = (20_000, 60_000) if job["small"] else (0, 0)
    variant = mmdma_core.variant(job["variant"])
    settings = variant.taken(mmdma_core.Settings(n_components=3))
    device = torch.device(job["device"])
    in_thread = published._Coroutine._run

    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True) as mode, Watch() as watch:

        def run_in_modes(self, work):  # modes are those of a thread
            with mode, watch:
                in_thread(self, work)

        patch.setattr(published._Coroutine, "_run", run_in_modes)
        if job["variant"] not in WARM:
            _run_through(variant, settings, device, job, itertools.repeat("warm-up"))
            WARM.add(job["variant"])
        if job.get("fault"):
            FAULTS[job["fault"]](patch)
        _run_through(variant, settings, device, job, ["start", "first epoch", "epoch", *_REST])


_REST = ("gradients", "embeddings", "loss")


def _run_through(variant, settings, device, job, phases):
    """Every method of a run, each in its phase."""
    phases = iter(phases)
    PHASE[0] = "data"
    views = [view_on(device, job) for _ in "xy"]
    PHASE[0] = next(phases)
    before = set(sys.modules)
    run = variant.start(*views, settings, device, 0, None)
    if new := sorted(set(sys.modules) - before):
        note("import", ", ".join(new))
    for method in ("step", "step", *_REST):
        PHASE[0] = next(phases)
        for one in tensors(getattr(run, method)()):
            if not one.is_cuda:
                note("mixed", f"{method} gives a tensor on {one.device}")
    if hasattr(run, "restart"):
        run.restore(run.state())
        run.restart(1)
        run.step()


def view_on(device, job):
    view = torch.empty(job["n"], job["p"], device=device)
    return Sparse(view) if job["sparse"] else view


def of_cpu_in_a_term(patch):
    from mmdma_core import objective

    patch.setattr(objective, "penalty", lambda gram, p: (gram - torch.eye(len(gram))).norm())


def of_another_gpu(patch):
    from mmdma_core.run import Adam

    patch.setattr(Adam, "step", lambda adam, gradients: gradients[0] + gradients[0].to("cuda:0"))


def value_in_an_epoch(patch):
    from mmdma_core.run import Adam

    step = Adam.step
    patch.setattr(Adam, "step", lambda adam, gradients: gradients[0].sum().item() and step(adam, gradients))


def copy_in_an_epoch(patch):
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


def import_in_start(patch):
    from mmdma_core.run import AdamRun

    make = AdamRun.__init__
    patch.delitem(sys.modules, "wave", raising=False)
    patch.setattr(AdamRun, "__init__", lambda *given: importlib.import_module("wave") and make(*given))


def compilation_in_start(patch):
    """Of another tile, as where tiles are timed."""
    from mmdma_core.fused import pairs_cuda
    from mmdma_core.fused.pairs_cuda import FusedMMD, candidates

    fastest = pairs_cuda.fastest_tile

    def timed(n, d, device):
        points = [torch.empty(n, d, device=device) for _ in "xy"]
        FusedMMD(n, n, d, 1.0, True, candidates(d)[-1])(*points, *map(torch.empty_like, points))
        return fastest(n, d, device)

    patch.setattr(pairs_cuda, "fastest_tile", timed)


def in_an_epoch_of_a_view(change):
    def plant(patch):
        from mmdma_core.fused.views_cuda import CudaView

        backward = CudaView.backward
        patch.setattr(CudaView, "backward", lambda view: change(view) or backward(view))

    return plant


def no_guard(patch):
    from mmdma_core import settings

    patch.setattr(settings, "current", lambda device: contextlib.nullcontext())


def stream_of_another_gpu(patch):
    from mmdma_core.fused import views_cuda

    patch.setattr(Capture, "default_capture_stream", Stream(torch.device("cuda:0")))
    patch.setattr(views_cuda, "_stream_for_capture", lambda device: None)


FAULTS = {
    "a term on the CPU": of_cpu_in_a_term,
    "a gradient on another GPU": of_another_gpu,
    "a value in an epoch": value_in_an_epoch,
    "a copy in an epoch": copy_in_an_epoch,
    "an import in start": import_in_start,
    "a compilation in start": compilation_in_start,
    "a transfer in a capture": in_an_epoch_of_a_view(lambda view: view.e.cpu() is None),
    "memory of the host in a capture": in_an_epoch_of_a_view(lambda view: torch.zeros(3) is None),
    "pinned memory in a capture": in_an_epoch_of_a_view(lambda view: view.e.pin_memory() is None),
    "no guard": no_guard,
    "a capture on another GPU": stream_of_another_gpu,
}

if __name__ == "__main__":
    pretend()
    found = []
    for job in json.loads(sys.argv[2]):
        NOTED.clear()
        try:
            watched(job)
        except Exception as error:
            traceback.print_exc()
            NOTED.append([PHASE[0], "error", f"{type(error).__name__}: {str(error)[:300]}"])
        found.append(list(NOTED))
    print(json.dumps(found))
