"""Where Numba, KeOps, Triton and Matplotlib keep what they compile: another folder where their own cannot be used.

Why KeOps and Triton cannot compile here, told after a failure: what they compiled before needs no compiler.

CUDA for KeOps: the headers and libraries that it compiles against, from a toolkit or from pip's wheels of CUDA.

KeOps takes the headers from one folder, `include` of CUDA_PATH or of a toolkit in a usual place, and finds libnvrtc.so
and libcudart.so as a linker does. PyTorch's wheels have them in several folders and under numbered names. Links in
the cache make one toolkit of these. What CUDA_PATH or CUDA_HOME names wins, and so does a whole toolkit that is there.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from ctypes.util import find_library
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mmdma_core.errors import OUT_OF_MEMORY, MissingDependency, Unsupported, words_of

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
        base = why and place_of(plain=cache.compiles, alone=cache.compiles)
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


def place_of(plain: bool = False, alone: bool = False) -> str | None:
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


_OF_KEOPS = re.compile(r"/(pykeops|keopscore)/|'pykeops_(cpp|nvrtc)")
_ON_CUDA = re.compile(r"/binders/nvrtc/|'pykeops_nvrtc|Cpu only mode")
_OF_TRITON = re.compile(r"/triton/(runtime/build|backends/nvidia/driver)\.py")
_RAN = re.compile(r"^RuntimeError: \[KeOps\] (Cuda|NVRTC) error", re.MULTILINE)  # what was compiled says so
_PROBES = {
    ".cpp": "#include <pybind11/pybind11.h>\nPYBIND11_MODULE(probe, m) {}\n",
    ".c": "#include <Python.h>\nint probe(void) { return 0; }\n",
}
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_HEADERS = f"install Python's headers (apt install python{_VERSION}-dev, or take conda's Python)"
_INSTALL = {
    "g++": "install g++ (apt install g++, or conda install -c conda-forge gxx)",
    "gcc": "install gcc (apt install gcc, or conda install -c conda-forge gcc)",
}


@contextmanager
def explained() -> Iterator[None]:
    """Raises MissingDependency in place of an error of KeOps or Triton that a compiler or CUDA explains.

    Memory that ran out is never put down to them. A kernel of Triton that needs more of something than the GPU has,
    such as shared memory, is Unsupported.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "OutOfResources":  # of Triton, which need not be here
            raise Unsupported(_needs_too_much(error)) from error
        reason = _reason(error)
        if reason is None:
            raise
        raise MissingDependency(reason) from error


def why_no_compiler() -> str | None:
    """Why KeOps cannot compile here, and what to do; None if it can."""
    compiler = _first_there([os.environ.get("CXX"), "g++"])
    if compiler is None:
        named = os.environ.get("CXX")
        found = f"CXX names {named!r}, which is not there, and there is no g++" if named else "there is none"
        return f"KeOps needs a C++ compiler, and {found}: {_INSTALL['g++']}, or name one in CXX"
    if not is_plain(compiler):
        return f"KeOps cannot call CXX={compiler!r}, which has a blank, a quote or the like: name one without"
    for path in (sys.executable, importlib.util.find_spec("keopscore").origin):
        if not is_plain(path):
            return (
                f"KeOps cannot compile in {os.path.dirname(path)!r}, a path with a blank, a quote or the like: "
                "make the environment of Python in a folder without"
            )
    import pybind11  # comes with KeOps

    options = ["-std=c++11", "-fopenmp", "-flto=auto", f"-I{pybind11.get_include()}"]
    options += shlex.split(os.environ.get("CXXFLAGS", ""))
    words = _words_of_failure(compiler, ".cpp", options)
    if words is None:
        return None
    remedy = _HEADERS if "Python.h" in words else f"{_INSTALL['g++']}, or name one in CXX"
    return f"KeOps needs a C++ compiler that works, {compiler} says: {words}; {remedy}"


def why_no_triton() -> str | None:
    """Why Triton cannot run on the GPU here, and what to do; None if it can.

    It is asked to load what it launches kernels with, which it compiles unless its cache has it.
    """
    try:
        import triton
    except ImportError as error:
        return f"the fused variants need Triton on a GPU ({error}): pip install triton"
    with heard() as said:
        try:
            triton.runtime.driver.active.utils  # noqa: B018  (made when it is first asked for)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            if OUT_OF_MEMORY.search(f"{words}\n{said()}"):
                raise
            reason = _why_no_stub()
            if reason is None and "libcuda" in words + said():
                reason = "Triton does not find the driver's libcuda: name its folder in TRITON_LIBCUDA_PATH"
            return reason or f"Triton does not run on this GPU ({words.splitlines()[0]})"
    return None


@contextmanager
def heard() -> Iterator[Callable[[], str]]:
    """A function that gives what is written while this lasts, by libraries and compilers, too; stderr has it after."""
    with tempfile.TemporaryFile("w+", errors="replace") as file:

        def said() -> str:
            file.flush()
            return os.pread(file.fileno(), 10**6, 0).decode(errors="replace")

        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in kept:
                os.dup2(file.fileno(), number)
            with redirect_stdout(file), redirect_stderr(file):
                yield said
        finally:
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
            sys.stderr.write(said())


def _reason(error: Exception) -> str | None:
    """What explains an error of KeOps or of Triton, None if nothing here does."""
    if OUT_OF_MEMORY.search(words_of(error)):
        return None
    said = "".join(traceback.format_exception(error))
    if _OF_KEOPS.search(said) and not _RAN.search(said) and importlib.util.find_spec("pykeops"):
        return why_no_compiler() or (why_no_cuda() if _ON_CUDA.search(said) else None)
    return _why_no_stub() if _OF_TRITON.search(said) else None


def _needs_too_much(error: Exception) -> str:
    """In words, what a kernel needs and this GPU has of it."""
    name, required, limit = (getattr(error, field, "?") for field in ("name", "required", "limit"))
    unit = "bytes of " if "memory" in str(name) else ""
    return (
        f"a kernel needs {required} {unit}{name}, and this GPU has {limit}: take fewer components, or another variant"
    )


def _why_no_stub() -> str | None:
    """Why Triton cannot compile what launches its kernels, None if it can: it takes CC, gcc or clang."""
    named = os.environ.get("CC")
    compiler = _first_there([named] if named else ["gcc", "clang"])
    if compiler is None:
        found = f"CC names {named!r}, which is not there" if named else "there is none"
        return f"Triton needs a C compiler, and {found}: {_INSTALL['gcc']}, or name one in CC"
    words = _words_of_failure(compiler, ".c", [])
    if words is None:
        return None
    remedy = _HEADERS if "Python.h" in words else f"{_INSTALL['gcc']}, or name one in CC"
    return f"Triton needs a C compiler that works, {compiler} says: {words}; {remedy}"


def _first_there(names: list[str | None]) -> str | None:
    return next((name for name in names if name and shutil.which(name)), None)


def _words_of_failure(compiler: str, suffix: str, options: list[str]) -> str | None:
    """What the compiler says of a module like those wanted, in a line; None if it compiles, or lacks memory."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"probe{suffix}")
        source.write_text(_PROBES[suffix])
        command = [shutil.which(compiler), "-shared", "-fPIC", *options, f"-I{python_headers()}", str(source)]
        english = os.environ | {"LC_ALL": "C"}
        try:
            done = subprocess.run(
                [*command, "-o", str(source.with_suffix(".so"))],
                capture_output=True,
                text=True,
                errors="replace",
                env=english,
            )
        except OSError as error:
            return str(error.strerror)
    if done.returncode == 0 or "memory" in done.stderr:
        return None
    lines = [line.strip().replace(f"{folder}/", "") for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return next(iter(errors or lines), f"nothing, and ends with status {done.returncode}")


def python_headers() -> str:
    """The folder that has Python.h, if it is here; of Debian's Python not the one for what is installed locally."""
    scheme = sysconfig.get_default_scheme()
    return sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]


# What KeOps compiles against and loads, and the extra of NVIDIA's package cuda-toolkit that brings it.
PARTS = {
    "cuda.h": "cudart",
    "cuda_fp16.h": "cudart",
    "nvrtc.h": "nvrtc",
    "crt/host_defines.h": "crt",
    "nv/target": "cccl",
    "libnvrtc": "nvrtc",
    "libcudart": "cudart",
}
_LIBRARIES = ("nvrtc", "cudart")
_USUAL = ("/usr/local/cuda", "/opt/cuda", "/usr")
_NAMED = ("CUDA_PATH", "CUDA_HOME")


@dataclass(frozen=True)
class _Toolkit:
    """Folders of headers, the first of those that have one wins, and of libraries; `known` to KeOps by itself."""

    headers: tuple[Path, ...]
    libraries: tuple[Path, ...]
    known: bool = True

    def lacks(self) -> Iterator[str]:
        """The parts that are not there, headers first; a library may also be where the system's loader finds it."""
        for part in PARTS:
            name = part.removeprefix("lib")
            if name == part:
                found = any((folder / part).is_file() for folder in self.headers)
            else:
                found = self.library(name) or _loads(name)
            if not found:
                yield part

    def library(self, name: str) -> Path | None:
        """Its file, under whichever name."""
        found = (path for folder in self.libraries for path in sorted(folder.glob(f"lib{name}.so*")))
        return next(found, None)


@functools.cache
def prepare_cuda() -> None:
    """Let KeOps find CUDA in this process and its children, if it would not; to be called before it is imported."""
    toolkit = _found()
    if not toolkit.known and any(toolkit.lacks()):
        return
    taken = [name for name in _LIBRARIES if not (toolkit.known and _loads(name)) and toolkit.library(name)]
    libraries = {name: toolkit.library(name).resolve() for name in taken}
    if not libraries:
        return
    builtins = [built for path in libraries.values() for built in path.parent.glob("libnvrtc-builtins.so*")]
    for path in (*builtins, *libraries.values()):  # the loader reads LD_LIBRARY_PATH once, when a process starts
        with suppress(OSError):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    libraries |= {"cuda": driver} if (driver := _driver()) else {}
    links = {f"lib64/lib{name}.so": path for name, path in libraries.items()}
    if not toolkit.known:
        links |= {f"include/{path.name}": path for folder in reversed(toolkit.headers) for path in _entries(folder)}
    folder = _linked(links)
    if folder:
        for variable in ("LIBRARY_PATH", "LD_LIBRARY_PATH"):  # what gcc, and what ld by itself is asked with
            os.environ[variable] = os.pathsep.join(filter(None, [f"{folder}/lib64", os.environ.get(variable)]))
        if not toolkit.known:
            os.environ["CUDA_PATH"] = str(folder)


def lacks() -> list[str]:
    """What of PARTS KeOps would not find on this machine."""
    return list(_found().lacks())


def why_no_cuda() -> str | None:
    """What of CUDA KeOps would not find, and how to get it, in a line; None if all is there."""
    absent = lacks()
    if not absent:
        return _imported_without()
    named = next((f"{name}={os.environ[name]!r}" for name in _NAMED if os.environ.get(name)), None)
    if named:
        return f"KeOps needs {', '.join(absent)} of CUDA, which {named} lacks: name a whole CUDA toolkit, or none"
    return f"KeOps needs {', '.join(absent)} of CUDA: {install(absent)}, or name a CUDA toolkit in CUDA_PATH"


def install(parts: list[str]) -> str:
    """What to type for parts of the CUDA that this PyTorch is built with."""
    version = _cuda_of_torch()
    extras = sorted({PARTS[part] for part in parts})
    if version.startswith(("11.", "12.")):  # there the compiler's package has the headers crt
        extras = ["nvcc" if extra == "crt" else extra for extra in extras]
    return f'pip install "cuda-toolkit[{",".join(extras)}]{f"=={version}.*" if version else ""}"'


def _imported_without() -> str | None:
    """Why KeOps does not look again in this process, None if it has not looked or has found CUDA."""
    keops = sys.modules.get("keopscore.config")
    if keops and not keops.cuda_config.get_use_cuda():
        return "KeOps found no CUDA when this process imported it first: start a new process, and run on the GPU first"
    return None


def _of_wheels(version: str) -> _Toolkit:
    """What pip has installed of that CUDA: in one folder from 13 on, before in a folder for each package."""
    spec = importlib.util.find_spec("nvidia")
    major = version.split(".")[0]
    names = [f"cu{major}"] if major not in ("11", "12") else ["cuda_runtime", "cuda_nvrtc", "cuda_nvcc", "cuda_cccl"]
    roots = [Path(place, name) for place in (spec and spec.submodule_search_locations) or () for name in names]
    return _Toolkit(_folders(roots, "include", "include/cccl"), _folders(roots, "lib"), known=False)


def _of(root: Path, known: bool) -> _Toolkit:
    """The toolkit in a folder; KeOps looks in `include` alone."""
    roots = [root, *root.glob("targets/*-linux")]
    headers = _folders([root], "include") if known else _folders(roots, "include", "include/cccl")
    return _Toolkit(headers, _folders(roots, "lib64", "lib"), known)


def _cuda_of_torch() -> str:
    """Version of the CUDA that this PyTorch is built with, '' for the CPU."""
    import torch  # late: the number of threads is set before it is loaded

    return torch.version.cuda or ""


def _found() -> _Toolkit:
    """The toolkit that the user names; else the first whole one; else what wheels have."""
    for name in _NAMED:
        if os.environ.get(name):
            return _of(Path(os.environ[name]), known=True)
    wheels = _of_wheels(_cuda_of_torch())
    return next((toolkit for toolkit in [*_in_usual_places(), wheels] if not any(toolkit.lacks())), wheels)


def _in_usual_places() -> Iterator[_Toolkit]:
    for root in filter(None, [os.environ.get("CONDA_PREFIX"), *_USUAL]):
        yield _of(Path(root), known=True)
        yield _of(Path(root), known=False)


def _folders(roots: list[Path], *names: str) -> tuple[Path, ...]:
    return tuple(root / name for root in roots for name in names if (root / name).is_dir())


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith("__")]


def _loads(name: str) -> bool:
    """Whether KeOps finds a library and can load it."""
    found = find_library(name)
    with suppress(OSError):
        return bool(found and ctypes.CDLL(found))
    return False


def _driver() -> Path | None:
    """The driver's library as it is loaded here: some systems have it under its numbered name alone."""
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libcuda.so" in line)
    return next(map(Path, mapped), None)


def _linked(links: dict[str, Path]) -> Path | None:
    """A folder with these links, named by what they say, so that it is made once; None where none can be made."""
    base = place_of(plain=True)
    if base is None:
        return None
    said = "\n".join(f"{name} {path}" for name, path in sorted(links.items()))
    folder = Path(base, f"cuda-{hashlib.sha256(said.encode()).hexdigest()[:16]}")
    if not folder.is_dir():
        os.makedirs(base, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=base))
        for name, path in links.items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).symlink_to(path)
        try:
            part.rename(folder)
        except OSError:  # another process has been faster
            shutil.rmtree(part)
    return folder
