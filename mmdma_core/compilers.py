"""Where Numba, KeOps, Triton and Matplotlib keep what they compile: another folder where their own cannot be used."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_LOG = logging.getLogger("mmdma_core")
_UNSAFE = re.compile(r"[^\w@%+=:,./~-]")  # what a shell, to which KeOps gives paths without quotes, may take apart
_made: dict[str, int] = {}  # the temporary folder, and the process that made it


@dataclass(frozen=True)
class _Cache:
    """A package's folder: `variable` names it in the environment; it takes any of `own` that can be written."""

    package: str
    variable: str
    own: tuple[str, ...]
    compiles: bool = False  # in a shell, so that its path must be plain

    def refused(self) -> str | None:
        """Why the package's own folder cannot be used, None if it can."""
        usable = [folder for folder in self.own if is_writable(folder)]
        if not usable:
            last = self.own[-1]
            return f"{_existing(last)} cannot be written" if _is_known(last) else f"{last!r} is no folder"
        if self.compiles and _in_a_job() and self.variable not in os.environ:
            return "jobs that start at once would compile into the same files"
        if self.compiles and not is_plain(usable[0]):
            return f"{usable[0]} has a blank, a quote or the like, which its build cannot take"
        return None


def prepare() -> None:
    """Name another folder in the environment for each package whose own cannot be used, and say so in one line.

    The folder is in the user's cache, else a new one for this process and its children, gone when it ends. To be
    called before the packages are imported. What is decided is inherited, and not decided again in a child.
    """
    moved: dict[str, list[_Cache]] = {}
    reasons = {}
    for cache in _caches():
        why = cache.refused()
        base = why and place(plain=cache.compiles, alone=cache.compiles)
        if base:
            os.environ[cache.variable] = os.path.join(base, cache.package.lower())
            moved.setdefault(base, []).append(cache)
            reasons[why] = None
        elif why:
            _LOG.warning("no cache for %s: %s, and there is no temporary folder: set TMPDIR", cache.package, why)
    if "numba" in sys.modules:
        sys.modules["numba"].config.reload_config()
    if moved:
        where = (f"{', '.join(c.package for c in caches)} in {_described(base)}" for base, caches in moved.items())
        names = ", ".join(cache.variable for caches in moved.values() for cache in caches)
        _LOG.warning("caches: %s, since %s; to choose: %s", "; ".join(where), "; ".join(reasons), names)


def discard() -> None:
    """Remove the temporary folder that this process made; done at its exit, but for os._exit."""
    for folder, process in list(_made.items()):
        if process == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)
            del _made[folder]


def _described(base: str) -> str:
    return f"{base} until this process ends" if base in _made else base


def is_writable(folder: str) -> bool:
    """Whether a folder can be written, or made and written: tried with a file without a name where it would be."""
    if _is_known(folder):
        with suppress(OSError), tempfile.TemporaryFile(dir=_existing(folder)):
            return True
    return False


def _is_known(folder: str) -> bool:
    """Whether it is a folder at all, and no home that Python knows nothing of: `~` would be a folder of that name."""
    return bool(folder) and not folder.startswith("~")


def _existing(folder: str) -> str:
    """The folder, or the innermost one around it that is there."""
    folder = os.path.abspath(folder)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def _is_private(folder: str) -> bool:
    """Whether no other user could put anything there: what caches hold is run as code."""
    found = os.stat(_existing(folder))
    return found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH


def is_plain(path: str) -> bool:
    """Whether a path stays one word in a shell without quotes."""
    return not _UNSAFE.search(path)


def keops_folder() -> str | None:
    """Where KeOps builds, as it decides itself; None where there is no KeOps."""
    with suppress(metadata.PackageNotFoundError):
        default = os.path.join(_user_cache(), f"keops{metadata.version('keopscore')}")
        system = f"{'_'.join(platform.uname()[:3])}_p{sys.version.split()[0]}"
        folder = os.environ.get("KEOPS_CACHE_FOLDER", default)
        return folder and os.path.join(folder, system)


def _user_cache() -> str:
    return os.path.join(os.path.expanduser("~"), ".cache")


def _caches() -> Iterator[_Cache]:
    """Each as its package decides: a variable, if it is set, else a folder of the user; Numba has several to try."""
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


def place(plain: bool = False, alone: bool = False) -> str | None:
    """A folder that can be written: of the user's cache, else a temporary one; None if there is nowhere to make it.

    plain: with a path that a shell takes without quotes; alone: where no other job of a cluster writes.
    """
    users = os.path.join(os.environ.get("XDG_CACHE_HOME") or _user_cache(), "mmdma")
    usable = is_writable(users) and _is_private(users) and (is_plain(users) or not plain)
    if usable and not (alone and _in_a_job()):
        return users
    if not _made:
        with suppress(OSError):
            _made[_new_folder()] = os.getpid()
            atexit.register(discard)
    return next(iter(_made), None)


def _in_a_job() -> bool:
    """Whether a cluster's scheduler has started this, so that others start beside it with the same home."""
    return "SLURM_JOB_ID" in os.environ


def _new_folder() -> str:
    """A folder that no other user can enter, in a place with a plain path, if there is one."""
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    place = next((place for place in places if is_plain(place) and is_writable(place)), places[0])
    return tempfile.mkdtemp(prefix="mmdma-", dir=place)


WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # what GNU's and Intel's OpenMP read about it


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says how; before a library loads OpenMP.

    Threads that spin take each other's time as soon as another process computes, and an epoch takes many times as long.
    """
    if not any(name in os.environ for name in WAITS):
        os.environ.update(OMP_WAIT_POLICY="passive", KMP_BLOCKTIME="0")
