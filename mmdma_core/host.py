"""The memory and the cores that this process may use of the host, within the limits of its containers and jobs.

Linux holds a container or a batch job to its share by control groups (cgroups), of version 1, of version 2, or some of
both. A limit of any group on the way up from this process counts. `root` is that of the file system, for tests.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

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
