"""What KeOps and Triton need to compile here: a compiler, and KeOps on a GPU the headers and libraries of CUDA.

`explained` and the functions `why_no_...` tell after a failure why they cannot compile: what they compiled before needs
no compiler. `prepare_cuda` lets KeOps find CUDA.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

from mmdma_core.errors import OUT_OF_MEMORY, MissingDependency, Unsupported, words_of
from mmdma_core.host import is_plain, usable_folder

_OF_KEOPS = re.compile(r"/(pykeops|keopscore)/|'pykeops_(cpp|nvrtc)")
_ON_CUDA = re.compile(r"/binders/nvrtc/|'pykeops_nvrtc|Cpu only mode")
_OF_TRITON = re.compile(r"/triton/(runtime/build|backends/nvidia/driver)\.py")
_RAN = re.compile(r"^RuntimeError: \[KeOps\] (Cuda|NVRTC) error", re.MULTILINE)  # what was compiled says so
_HEADERS = (
    f"install Python's headers (apt install python{sys.version_info.major}.{sys.version_info.minor}-dev, or take "
    "conda's Python)"
)


@dataclass(frozen=True)
class _Compiler:
    """What a package compiles with.

    variable  of the environment, which names another program
    usual     programs that it takes, the first that is there
    both      whether it takes them, too, where the variable names one that is not there
    install   how to get one
    probe     suffix and text of a module like those that it compiles
    """

    package: str
    language: str
    variable: str
    usual: tuple[str, ...]
    both: bool
    install: str
    probe: tuple[str, str]

    def program(self) -> str | None:
        named = os.environ.get(self.variable)
        names = [named] if named and not self.both else [named, *self.usual]
        return next((name for name in names if name and shutil.which(name)), None)

    def why_not(self, options: tuple[str, ...] = ()) -> str | None:
        """Return why it compiles no such module, and what to do; None if it does, or lacks memory."""
        needs, program = f"{self.package} needs a {self.language} compiler", self.program()
        if program is None:
            named = os.environ.get(self.variable)
            others = f", and there is no {self.usual[0]}" if self.both else ""
            found = f"{self.variable} names {named!r}, which is not there{others}" if named else "there is none"
            return f"{needs}, and {found}: {self.install}, or name one in {self.variable}"
        words = _words_of_failure(program, *self.probe, options)
        if words is None:
            return None
        remedy = _HEADERS if "Python.h" in words else f"{self.install}, or name one in {self.variable}"
        return f"{needs} that works, {program} says: {words}; {remedy}"


_KEOPS = _Compiler(
    package="KeOps",
    language="C++",
    variable="CXX",
    usual=("g++",),
    both=True,
    install="install g++ (apt install g++, or conda install -c conda-forge gxx)",
    probe=(".cpp", "#include <pybind11/pybind11.h>\nPYBIND11_MODULE(probe, m) {}\n"),
)
_TRITON = _Compiler(  # for what launches its kernels
    package="Triton",
    language="C",
    variable="CC",
    usual=("gcc", "clang"),
    both=False,
    install="install gcc (apt install gcc, or conda install -c conda-forge gcc)",
    probe=(".c", "#include <Python.h>\nint probe(void) { return 0; }\n"),
)


@contextmanager
def explained() -> Iterator[None]:
    """Raise MissingDependency in place of an error of KeOps or Triton that a compiler or CUDA explains.

    Memory that ran out is never put down to them. A kernel of Triton that needs more of something than the GPU has,
    such as shared memory, is Unsupported.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "OutOfResources":  # of Triton, which need not be here
            unit = "bytes of " if "memory" in error.name else ""
            raise Unsupported(
                f"a kernel needs {error.required} {unit}{error.name}, and this GPU has {error.limit}: "
                "take fewer components, or another variant"
            ) from error
        reason = _reason(error)
        if reason is None:
            raise
        raise MissingDependency(reason) from error


def _reason(error: Exception) -> str | None:
    """Return what explains an error of KeOps or of Triton, None if nothing here does."""
    if OUT_OF_MEMORY.search(words_of(error)):
        return None
    said = "".join(traceback.format_exception(error))
    if _OF_KEOPS.search(said) and not _RAN.search(said) and importlib.util.find_spec("pykeops"):
        return why_no_compiler() or (why_no_cuda() if _ON_CUDA.search(said) else None)
    return _TRITON.why_not() if _OF_TRITON.search(said) else None


def why_no_compiler() -> str | None:
    """Return why KeOps cannot compile here, and what to do; None if it can."""
    program = _KEOPS.program()
    if program and not is_plain(program):
        return f"KeOps cannot call CXX={program!r}, which has a blank, a quote or the like: name one without"
    for path in (sys.executable, importlib.util.find_spec("keopscore").origin) if program else ():
        if not is_plain(path):
            return (
                f"KeOps cannot compile in {os.path.dirname(path)!r}, a path with a blank, a quote or the like: "
                "make the environment of Python in a folder without"
            )
    import pybind11  # comes with KeOps

    flags = shlex.split(os.environ.get("CXXFLAGS", ""))
    return _KEOPS.why_not(("-std=c++11", "-fopenmp", "-flto=auto", f"-I{pybind11.get_include()}", *flags))


def why_no_triton() -> str | None:
    """Return why Triton cannot run on the GPU here, and what to do; None if it can.

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
            reason = _TRITON.why_not()
            if reason is None and "libcuda" in words + said():
                reason = "Triton does not find the driver's libcuda: name its folder in TRITON_LIBCUDA_PATH"
            return reason or f"Triton does not run on this GPU ({words.splitlines()[0]})"
    return None


@contextmanager
def heard() -> Iterator[Callable[[], str]]:
    """Give a function that returns what is written meanwhile, by libraries and compilers, too; stderr has it after."""
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


def python_headers() -> str:
    """Return the folder that has Python.h, if it is here; of Debian's Python not the one for local packages."""
    scheme = sysconfig.get_default_scheme()
    return sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]


def _words_of_failure(program: str, suffix: str, text: str, options: tuple[str, ...]) -> str | None:
    """Return what a compiler says of a module, in a line; None if it compiles it, or lacks memory."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"probe{suffix}")
        source.write_text(text)
        command = [shutil.which(program), "-shared", "-fPIC", *options, f"-I{python_headers()}", str(source)]
        command += ["-o", str(source.with_suffix(".so"))]
        english = os.environ | {"LC_ALL": "C"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=english)
        except OSError as error:
            return str(error.strerror)
    if done.returncode == 0 or "memory" in done.stderr:
        return None
    lines = [line.strip().replace(f"{folder}/", "") for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return next(iter(errors or lines), f"nothing, and ends with status {done.returncode}")


# --- CUDA for KeOps ---

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


@functools.cache
def prepare_cuda() -> None:
    """Let KeOps find CUDA in this process and its children, if it would not; to be called before it is imported.

    KeOps takes the headers from one folder, `include` of CUDA_PATH or of a toolkit in a usual place, and finds
    libnvrtc.so and libcudart.so as a linker does. PyTorch's wheels have them in several folders and under numbered
    names: links in the cache make one toolkit of these. What CUDA_PATH or CUDA_HOME names wins, and so does a whole
    toolkit that is there.
    """
    toolkit = _found()
    taken = [name for name in _LIBRARIES if not (toolkit.known and _loads(name)) and toolkit.library(name)]
    if any(toolkit.lacks()) or not taken:
        return
    libraries = {name: toolkit.library(name).resolve() for name in taken}
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
    """Return what of PARTS KeOps would not find on this machine."""
    return list(_found().lacks())


def why_no_cuda() -> str | None:
    """Return what of CUDA KeOps would not find, and how to get it, in a line; None if all is there."""
    absent = lacks()
    if not absent:
        return _imported_without()
    named = next((f"{name}={os.environ[name]!r}" for name in _NAMED if os.environ.get(name)), None)
    if named:
        return f"KeOps needs {', '.join(absent)} of CUDA, which {named} lacks: name a whole CUDA toolkit, or none"
    return f"KeOps needs {', '.join(absent)} of CUDA: {install(absent)}, or name a CUDA toolkit in CUDA_PATH"


def install(parts: list[str]) -> str:
    """Return what to type for parts of the CUDA that this PyTorch is built with."""
    version = _cuda_of_torch()
    extras = sorted({PARTS[part] for part in parts})
    if version.startswith(("11.", "12.")):  # there the compiler's package has the headers crt
        extras = ["nvcc" if extra == "crt" else extra for extra in extras]
    return f'pip install "cuda-toolkit[{",".join(extras)}]{f"=={version}.*" if version else ""}"'


@dataclass(frozen=True)
class _Toolkit:
    """Folders of headers, the first of those that have one wins, and of libraries; `known` to KeOps by itself."""

    headers: tuple[Path, ...]
    libraries: tuple[Path, ...]
    known: bool = True

    def lacks(self) -> Iterator[str]:
        """Yield the parts that are not there, headers first; a library may be where the system's loader finds it."""
        for part in PARTS:
            name = part.removeprefix("lib")
            if name == part:
                found = any((folder / part).is_file() for folder in self.headers)
            else:
                found = self.library(name) or _loads(name)
            if not found:
                yield part

    def library(self, name: str) -> Path | None:
        """Return its file, under whichever name."""
        found = (path for folder in self.libraries for path in sorted(folder.glob(f"lib{name}.so*")))
        return next(found, None)


def _found() -> _Toolkit:
    """Return the toolkit that the user names; else the first whole one; else what wheels have."""
    for name in _NAMED:
        if os.environ.get(name):
            return _of(Path(os.environ[name]), known=True)
    wheels = _of_wheels(_cuda_of_torch())
    usual = [Path(root) for root in (os.environ.get("CONDA_PREFIX"), *_USUAL) if root]
    toolkits = [_of(root, known) for root in usual for known in (True, False)]
    return next((toolkit for toolkit in [*toolkits, wheels] if not any(toolkit.lacks())), wheels)


def _of(root: Path, known: bool) -> _Toolkit:
    """Return the toolkit in a folder; KeOps looks in `include` alone."""
    roots = [root, *root.glob("targets/*-linux")]
    headers = _folders([root], "include") if known else _folders(roots, "include", "include/cccl")
    return _Toolkit(headers, _folders(roots, "lib64", "lib"), known)


def _of_wheels(version: str) -> _Toolkit:
    """Return what pip has installed of that CUDA: in one folder from 13 on, before in a folder for each package."""
    spec = importlib.util.find_spec("nvidia")
    major = version.split(".")[0]
    names = [f"cu{major}"] if major not in ("11", "12") else ["cuda_runtime", "cuda_nvrtc", "cuda_nvcc", "cuda_cccl"]
    roots = [Path(place, name) for place in (spec and spec.submodule_search_locations) or () for name in names]
    return _Toolkit(_folders(roots, "include", "include/cccl"), _folders(roots, "lib"), known=False)


def _cuda_of_torch() -> str:
    """Return the version of CUDA that this PyTorch is built with, '' without."""
    import torch  # late: the number of threads is set before it is loaded

    return torch.version.cuda or ""


def _imported_without() -> str | None:
    """Return why KeOps does not look again in this process, None if it has not looked or has found CUDA."""
    keops = sys.modules.get("keopscore.config")
    if keops and not keops.cuda_config.get_use_cuda():
        return "KeOps found no CUDA when this process imported it first: start a new process, and run on the GPU first"
    return None


def _folders(roots: list[Path], *names: str) -> tuple[Path, ...]:
    return tuple(root / name for root in roots for name in names if (root / name).is_dir())


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith("__")]


def _loads(name: str) -> bool:
    """Return whether KeOps finds a library and can load it."""
    found = find_library(name)
    with suppress(OSError):
        return bool(found and ctypes.CDLL(found))
    return False


def _driver() -> Path | None:
    """Return the driver's library as it is loaded here: some systems have it under its numbered name alone."""
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libcuda.so" in line)
    return next(map(Path, mapped), None)


def _linked(links: dict[str, Path]) -> Path | None:
    """Return a folder with these links, named by them, so that it is made once; None where none can be made."""
    base = usable_folder(compiles=True)
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
