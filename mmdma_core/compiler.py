"""Why KeOps and Triton cannot compile here, told after a failure: what they compiled before needs no compiler."""

from __future__ import annotations

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
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from mmdma_core import compilers, toolkit
from mmdma_core.errors import OUT_OF_MEMORY, MissingDependency, Unsupported, words_of

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


def why_not() -> str | None:
    """Why KeOps cannot compile here, and what to do; None if it can."""
    compiler = _first_there([os.environ.get("CXX"), "g++"])
    if compiler is None:
        named = os.environ.get("CXX")
        found = f"CXX names {named!r}, which is not there, and there is no g++" if named else "there is none"
        return f"KeOps needs a C++ compiler, and {found}: {_INSTALL['g++']}, or name one in CXX"
    if not compilers.is_plain(compiler):
        return f"KeOps cannot call CXX={compiler!r}, which has a blank, a quote or the like: name one without"
    for path in (sys.executable, importlib.util.find_spec("keopscore").origin):
        if not compilers.is_plain(path):
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
        return why_not() or (toolkit.why_not() if _ON_CUDA.search(said) else None)
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
