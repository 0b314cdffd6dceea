"""The memory and the cores that this process may use of the host, within the limits of its containers and jobs.

Linux holds a container or a batch job to its share by control groups (cgroups), of version 1, of version 2, or some of
both. A limit of any group on the way up from this process counts. `root` is that of the file system, for tests.

PyTorch as every variant takes it, whatever the program around has set; afterwards all is as that had it.

What the numbers depend on: the default type and device, grad mode, inference mode, autocast, how float32 products are
rounded (TF32, bf16), denormal numbers, algorithms that are deterministic but others. On a GPU also which one is the
current one: PyTorch's own operations go to that of their tensors, but Triton's kernels and graphs to the current one.
The number of threads stays the caller's, but for a fork of a process that has computed, which keeps to one.
"""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from threadpoolctl import threadpool_limits

from mmdma_core import compilers

_ROOT = Path("/")
# version of a group -> its limits, its usage, and in memory.stat the file cache that has not been used lately
_MEMORY = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "inactive_file")),
    2: (("memory.max", "memory.high"), "memory.current", ("inactive_file",)),
}
_KILLS = {1: "memory.oom_control", 2: "memory.events"}  # the line oom_kill in it
_JOB_CORES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE")  # the first that is set counts


def free_bytes(root: Path = _ROOT) -> int:
    """Memory that may still be taken: the least of what is free on the machine and what each group leaves.

    A group leaves its limit less its usage; file cache in it that has not been used lately is free.
    """
    left = (_left(folder, version) for folder, version in _groups("memory", root))
    return max(0, int(min([psutil.virtual_memory().available, *left])))


def cores(root: Path = _ROOT) -> int:
    """Cores that this process may use all the time: by its affinity, its SLURM job, and the quotas of its groups.

    A quota of 1.5 cores is one: a second thread would be halted half of the time, and the first with it. OpenMP's own
    OMP_THREAD_LIMIT counts, too.
    """
    job = next((os.environ[name] for name in _JOB_CORES if os.environ.get(name)), "")
    told = (re.match(r"0*[1-9]\d*", text) for text in (job, os.environ.get("OMP_THREAD_LIMIT", "")))
    given = [int(number[0]) for number in told if number]
    quotas = (_quota(folder, version) for folder, version in _groups("cpu", root))
    return max(1, int(min([len(os.sched_getaffinity(0)), *given, *quotas])))


def kills(root: Path = _ROOT) -> dict[Path, float]:
    """How many processes the kernel has killed for want of memory, as each group of this process has counted.

    A group counts those in it. Where none counts, it is the machine's count.
    """
    files = [folder / _KILLS[version] for folder, version in _groups("memory", root)]
    counts = {file: count for file in files if (count := _number(file, "oom_kill")) is not None}
    machine = root / "proc/vmstat"
    return counts or {machine: _number(machine, "oom_kill") or 0}


def killed_since(before: Mapping[Path, float], root: Path = _ROOT) -> bool:
    """Whether the kernel has killed a process for want of memory in a group of this process since `kills` was asked."""
    return any(count > before.get(file, count) for file, count in kills(root).items())


def _left(folder: Path, version: int) -> float:
    """What a group leaves of its memory, infinite without a limit."""
    limits, usage, cache = _MEMORY[version]
    found = [_number(folder / name) for name in limits]
    found.append(_number(folder / "memory.stat", "hierarchical_memory_limit"))  # of parents that are not mounted here
    limit = min((value for value in found if value is not None), default=math.inf)
    unused = next((n for key in cache if (n := _number(folder / "memory.stat", key)) is not None), 0)
    return limit - max(0, (_number(folder / usage) or 0) - unused)


def _quota(folder: Path, version: int) -> float:
    """Cores that a group may use on average, infinite without a quota."""
    files = [folder / "cpu.max"] if version == 2 else [folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"]
    words = " ".join(map(_text, files)).split()
    try:
        quota, period = map(float, words)  # 'max 100000' raises: no quota
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """Folder and version of each group of this process that may limit what the controller counts: own, then parents."""
    own = {}  # version -> the group's path, as the kernel tells it
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            own[1 if controllers else 2] = path
    for version, path in own.items():
        mounts = list(_mounts(version, controller, root))
        below = [(place, path.removeprefix(group.rstrip("/"))) for group, place in mounts if _holds(group, path)]
        # In a name space of its own a process may be told a path that leads nowhere: the mounted group is left.
        for place, rest in below or [(place, "") for _, place in mounts[:1]]:
            yield from ((folder, version) for folder in _upwards(place, rest))


def _mounts(version: int, controller: str, root: Path) -> Iterator[tuple[str, Path]]:
    """The group that is mounted, and where, of each mount that shows the controller's groups."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind == "cgroup2" if version == 2 else kind == "cgroup" and controller in options.split(","):
            group, place = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), f) for f in mount.split()[3:5])
            yield group, root / place.lstrip("/")


def _holds(group: str, path: str) -> bool:
    """Whether the path leads to the group or to one below it."""
    return f"{path}/".startswith(f"{group.rstrip('/')}/") and ".." not in path.removeprefix(group).split("/")


def _upwards(place: Path, path: str) -> Iterator[Path]:
    """The folder of a group and those of its parents, as far up as they are mounted and hold for it."""
    folder = place / path.lstrip("/")
    while True:
        yield folder
        folder = folder.parent
        if not folder.is_relative_to(place) or _number(folder / "memory.use_hierarchy") == 0:
            return


def _number(path: Path, key: str | None = None) -> float | None:
    """The number in a file, or behind the key in one of its lines; 'max' is infinite, None is no number."""
    for line in _text(path).splitlines():
        *name, value = line.split() or [""]
        if name == ([] if key is None else [key]):
            with suppress(ValueError):
                return float(value.replace("max", "inf"))
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


_CPU = torch.device("cpu")
_LEAST_NORMAL = sys.float_info.min
_MATMUL = torch.backends.cuda.matmul
# How float32 products are rounded. Since PyTorch 2.9 there is a setting for all backends, one for a backend and one for
# each of these, taken where the next one says 'none'; torch.set_float32_matmul_precision is older, and still there.
_EACH = (
    [_MATMUL, torch.backends.mkldnn.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    if hasattr(_MATMUL, "fp32_precision")
    else []
)

_HALF = [  # how sums of products of half precision are rounded, as far as this PyTorch can tell
    name
    for name in (
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    )
    if hasattr(_MATMUL, name)
]

_lock = threading.Lock()
_has_computed = False  # here, or in a process that this is a fork of
_inside = 0  # threads and calls that are in `own_state` now
_of_caller = ExitStack()  # what they have changed for the whole process; the last one to leave puts it back


@contextmanager
def own_state(device: torch.device | None = None) -> Iterator[None]:
    """Compute as if nothing had been set in PyTorch; on a GPU with an index, as the current one. Also a decorator."""
    _enter_process()
    try:
        with ExitStack() as stack:
            _own_thread(stack)
            stack.enter_context(current(device))
            yield
    finally:
        _leave_process()


def current(device: torch.device | None) -> AbstractContextManager[Any]:
    """The device made the current one of this thread, if it is a GPU with an index."""
    is_numbered = device is not None and device.type == "cuda" and device.index is not None
    return torch.cuda.device(device) if is_numbered else nullcontext()


@contextmanager
def brief_waits() -> Iterator[None]:
    """Let the threads of GNU's OpenMP, PyTorch's, spin only briefly while they wait, unless the environment says how.

    They do where OpenMP has more threads than cores (GOMP_SPINCOUNT in its manual), and a pool of a second thread's
    makes them more. Else an epoch takes many times as long beside another process that computes.
    """
    if any(name in os.environ for name in compilers.WAITS):
        yield
        return
    has_pool, done = threading.Event(), threading.Event()

    def hold() -> None:
        torch.ones(2**18).exp_()  # so many that all threads take part
        has_pool.set()
        done.wait()

    holder = threading.Thread(target=hold, name="mmdma", daemon=True)
    holder.start()
    has_pool.wait()
    try:
        yield
    finally:
        done.set()
        holder.join()


def _own_thread(stack: ExitStack) -> None:
    """The settings that each thread has of its own."""
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    if torch.get_default_device() != _CPU:
        stack.enter_context(_CPU)
    _set(stack, torch.is_grad_enabled(), True, torch.set_grad_enabled)
    for kind in ("cpu", "cuda"):
        _set(stack, torch.is_autocast_enabled(kind), False, lambda on, kind=kind: torch.set_autocast_enabled(kind, on))
    _set(stack, _LEAST_NORMAL / 2 == 0, False, torch.set_flush_denormal)


def _own_process(stack: ExitStack) -> None:
    """The settings that all threads share."""
    _set(stack, torch.get_default_dtype(), torch.float32, torch.set_default_dtype)
    _set(stack, torch.get_deterministic_debug_mode(), 0, torch.set_deterministic_debug_mode)
    # NVIDIA's libraries read it when they are first used: anything but 0 leaves TF32 to them.
    _set(stack, os.environ.get("NVIDIA_TF32_OVERRIDE", "0"), "0", _set_override)
    _own_products(stack)
    for name in _HALF:
        if getattr(_MATMUL, name):
            stack.callback(setattr, _MATMUL, name, True)
            setattr(_MATMUL, name, False)


def _set(stack: ExitStack, before: Any, own: Any, write: Callable[[Any], object]) -> None:
    if before != own:
        stack.callback(write, before)
        write(own)


def _own_products(stack: ExitStack) -> None:
    """float32 products with all their bits, whichever of PyTorch's settings allowed fewer."""
    if _EACH:
        for owner in (torch.backends, torch.backends.cudnn):
            _set(stack, owner.fp32_precision, "none", partial(_write_precision, owner))
        before = [(owner, owner.fp32_precision) for owner in _EACH]
        stack.callback(_write_each, before)
        stack.callback(_write_precision, torch.backends, "none")
        _write_precision(torch.backends, "ieee")  # of all that are not set for themselves
        _write_each([(owner, "ieee") for owner in _EACH])
    else:
        cudnn = torch.backends.cudnn
        _set(stack, cudnn.allow_tf32, False, partial(setattr, cudnn, "allow_tf32"))
    # Writing the older setting writes newer ones, and it cannot be read where they contradict it: hence this order.
    _set(stack, torch.get_float32_matmul_precision(), "highest", torch.set_float32_matmul_precision)


def _write_precision(owner: Any, value: str) -> None:
    owner.fp32_precision = value


def _write_each(wanted: list[tuple[Any, str]]) -> None:
    for owner, value in wanted:
        if owner.fp32_precision != value:
            owner.fp32_precision = value


def _set_override(value: str) -> None:
    os.environ["NVIDIA_TF32_OVERRIDE"] = value


def _enter_process() -> None:
    global _inside, _has_computed
    with _lock:
        _has_computed = True
        _inside += 1
        if _inside == 1:
            _own_process(_of_caller)


def _leave_process() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _of_caller.close()


def _after_fork() -> None:
    """OpenMP would wait for ever for the threads that it had in the process that was forked: it is left with one."""
    global _lock
    _lock = threading.Lock()
    if _has_computed:
        torch.set_num_threads(1)
        threadpool_limits(1)  # KeOps has an OpenMP of its own


os.register_at_fork(after_in_child=_after_fork)
