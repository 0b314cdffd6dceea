"""What this process may use of the host: memory and cores, within containers and jobs, and folders for caches.

Linux holds a container or a batch job to its share by control groups (cgroups), of version 1, of version 2, or some of
both. A limit of any group on the way up from this process counts. `root` is that of the file system, for tests.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import math
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

_LOG = logging.getLogger("mmdma_core")
_ROOT = Path("/")
# version of a group -> its limits, its usage, and in memory.stat the file cache that has not been used lately
_MEMORY = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "inactive_file")),
    2: (("memory.max", "memory.high"), "memory.current", ("inactive_file",)),
}
_KILLS = {1: "memory.oom_control", 2: "memory.events"}  # the line oom_kill in it
_JOB_CORES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE")  # the first that is set counts


def free_bytes(root: Path = _ROOT) -> int:
    """Return the memory that may still be taken: the least of what is free on the machine and what each group leaves.

    A group leaves its limit less its usage; file cache in it that has not been used lately is free.
    """
    left = (_left(folder, version) for folder, version in _groups("memory", root))
    return max(0, int(min([psutil.virtual_memory().available, *left])))


def cores(root: Path = _ROOT) -> int:
    """Return the cores that this process may use all the time: by affinity, SLURM job and quotas of its groups.

    A quota of 1.5 cores is one: a second thread would be halted half of the time, and the first with it. OpenMP's own
    OMP_THREAD_LIMIT counts, too.
    """
    job = next((os.environ[name] for name in _JOB_CORES if os.environ.get(name)), "")
    told = (re.match(r"0*[1-9]\d*", text) for text in (job, os.environ.get("OMP_THREAD_LIMIT", "")))
    given = [int(number[0]) for number in told if number]
    quotas = (_quota(folder, version) for folder, version in _groups("cpu", root))
    return max(1, int(min([len(os.sched_getaffinity(0)), *given, *quotas])))


WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # what GNU's and Intel's OpenMP read about it


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says how; before a library loads OpenMP.

    Threads that spin take each other's time as soon as another process computes, and an epoch takes many times as long.
    """
    if not any(name in os.environ for name in WAITS):
        os.environ.update(OMP_WAIT_POLICY="passive", KMP_BLOCKTIME="0")


def kills(root: Path = _ROOT) -> dict[Path, float]:
    """Return how many processes the kernel has killed for want of memory, as each group of this process has counted.

    A group counts those in it. Where none counts, it is the machine's count.
    """
    files = [folder / _KILLS[version] for folder, version in _groups("memory", root)]
    counts = {file: count for file in files if (count := _number(file, "oom_kill")) is not None}
    machine = root / "proc/vmstat"
    return counts or {machine: _number(machine, "oom_kill") or 0}


def killed_since(before: Mapping[Path, float], root: Path = _ROOT) -> bool:
    """Return whether the kernel has killed a process of these groups for want of memory since `kills` was asked."""
    return any(count > before.get(file, count) for file, count in kills(root).items())


def _left(folder: Path, version: int) -> float:
    """Return what a group leaves of its memory, infinite without a limit."""
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
    """Yield the group that is mounted, and where, of each mount that shows the controller's groups."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind == "cgroup2" if version == 2 else kind == "cgroup" and controller in options.split(","):
            group, place = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), f) for f in mount.split()[3:5])
            yield group, root / place.lstrip("/")


def _holds(group: str, path: str) -> bool:
    """Return whether the path leads to the group or to one below it."""
    return f"{path}/".startswith(f"{group.rstrip('/')}/") and ".." not in path.removeprefix(group).split("/")


def _upwards(place: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a group and those of its parents, as far up as they are mounted and hold for it."""
    folder = place / path.lstrip("/")
    while True:
        yield folder
        folder = folder.parent
        if not folder.is_relative_to(place) or _number(folder / "memory.use_hierarchy") == 0:
            return


def _number(path: Path, key: str | None = None) -> float | None:
    """Return the number in a file, or behind the key in one of its lines; 'max' is infinite, None is no number."""
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


# --- folders for what Numba, KeOps, Triton and Matplotlib compile ---

_UNSAFE = re.compile(r"[^\w@%+=:,./~-]")  # what a shell, to which KeOps gives paths without quotes, may take apart
_made: dict[str, int] = {}  # the temporary folder, and the process that made it


@dataclass(frozen=True)
class _Cache:
    """A package's folder: `variable` names it in the environment; it takes any of `own` that can be written."""

    package: str
    variable: str
    own: tuple[str, ...]
    compiles: bool = False  # in a shell, so that its path must be plain

    def why_not(self) -> str | None:
        usable = [folder for folder in self.own if is_writable(folder)]
        if not usable:
            last = self.own[-1]
            return f"{_existing(last)} cannot be written" if _is_known(last) else f"{last!r} is no folder"
        if self.compiles and _in_a_job() and self.variable not in os.environ:
            return "jobs that start at once would compile into the same files"
        if self.compiles and not is_plain(usable[0]):
            return f"{usable[0]} has a blank, a quote or the like, which its build cannot take"
        return None


def prepare_caches() -> None:
    """Name another folder in the environment for each package whose own cannot be used, and say so in one line.

    The folder is in the user's cache, else a new one for this process and its children, gone when it ends. To be
    called before the packages are imported. What is decided is inherited, and not decided again in a child.
    """
    moved: dict[str, list[_Cache]] = {}
    reasons = {}
    for cache in _caches():
        why = cache.why_not()
        base = why and usable_folder(cache.compiles)
        if base:
            os.environ[cache.variable] = os.path.join(base, cache.package.lower())
            moved.setdefault(base, []).append(cache)
            reasons[why] = None
        elif why:
            _LOG.warning("no cache for %s: %s, and there is no temporary folder: set TMPDIR", cache.package, why)
    if "numba" in sys.modules:
        sys.modules["numba"].config.reload_config()
    if moved:
        until = {base: " until this process ends" if base in _made else "" for base in moved}
        where = (f"{', '.join(c.package for c in caches)} in {base}{until[base]}" for base, caches in moved.items())
        names = ", ".join(cache.variable for caches in moved.values() for cache in caches)
        _LOG.warning("caches: %s, since %s; to choose: %s", "; ".join(where), "; ".join(reasons), names)


def _caches() -> Iterator[_Cache]:
    """Yield each as its package decides: by a variable, else in the user's folder; Numba tries several."""
    named, home = os.environ.get, os.path.expanduser("~")
    in_tree = str(Path(__file__).with_name("fused") / "__pycache__")
    xdg = named("XDG_CACHE_HOME", _user_cache())
    numba = named("NUMBA_CACHE_DIR", ""), in_tree, xdg and os.path.join(xdg, "numba")
    yield _Cache("Numba", "NUMBA_CACHE_DIR", numba)
    keops = keops_folder()
    if keops is not None:
        yield _Cache("KeOps", "KEOPS_CACHE_FOLDER", (keops,), compiles=True)
    if importlib.util.find_spec("triton"):
        triton = named("TRITON_CACHE_DIR") or os.path.join(named("TRITON_HOME") or home, ".triton", "cache")
        yield _Cache("Triton", "TRITON_CACHE_DIR", (triton,))
    outer = named("XDG_CONFIG_HOME") or os.path.join(home, ".config"), xdg or _user_cache()
    both = [named("MPLCONFIGDIR") or os.path.join(folder, "matplotlib") for folder in outer]
    yield _Cache("Matplotlib", "MPLCONFIGDIR", (both[is_writable(both[0])],))


def keops_folder() -> str | None:
    """Return where KeOps builds, as it decides itself; None where there is no KeOps."""
    with suppress(metadata.PackageNotFoundError):
        default = os.path.join(_user_cache(), f"keops{metadata.version('keopscore')}")
        system = f"{'_'.join(platform.uname()[:3])}_p{sys.version.split()[0]}"
        folder = os.environ.get("KEOPS_CACHE_FOLDER", default)
        return folder and os.path.join(folder, system)


def usable_folder(compiles: bool = False) -> str | None:
    """Return a folder that can be written: of the user's cache, else a temporary one; None if there is nowhere for it.

    compiles  in a shell: its path stays one word without quotes, and no other job of a cluster writes there
    """
    users = os.path.join(os.environ.get("XDG_CACHE_HOME") or _user_cache(), "mmdma")
    if is_writable(users) and _is_private(users) and not (compiles and (_in_a_job() or not is_plain(users))):
        return users
    if not _made:
        places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
        place = next((place for place in places if is_plain(place) and is_writable(place)), places[0])
        with suppress(OSError):
            _made[tempfile.mkdtemp(prefix="mmdma-", dir=place)] = os.getpid()  # which no other user can enter
            atexit.register(discard_caches)
    return next(iter(_made), None)


def discard_caches() -> None:
    """Remove the temporary folder that this process made; done at its exit, but for os._exit."""
    for folder, process in list(_made.items()):
        if process == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)
            del _made[folder]


def is_writable(folder: str) -> bool:
    """Return whether a folder can be written, or made: tried with a file without a name where it would be."""
    if _is_known(folder):
        with suppress(OSError), tempfile.TemporaryFile(dir=_existing(folder)):
            return True
    return False


def is_plain(path: str) -> bool:
    """Return whether a path stays one word in a shell without quotes."""
    return not _UNSAFE.search(path)


def _is_known(folder: str) -> bool:
    """Return whether it is a folder, and no home that Python does not know: `~` would be a folder of that name."""
    return bool(folder) and not folder.startswith("~")


def _existing(folder: str) -> str:
    """Return the folder, or the innermost one around it that is there."""
    folder = os.path.abspath(folder)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def _is_private(folder: str) -> bool:
    """Return whether no other user could put anything there: what caches hold is run as code."""
    found = os.stat(_existing(folder))
    return found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH


def _user_cache() -> str:
    return os.path.join(os.path.expanduser("~"), ".cache")


def _in_a_job() -> bool:
    """Return whether a cluster's scheduler has started this, so that others start beside it with the same home."""
    return "SLURM_JOB_ID" in os.environ
