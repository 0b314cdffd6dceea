"""Why KeOps cannot compile its formulas here, told after a failure: what it has compiled before needs no compiler."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdma_core import caches
from mmdma_core.errors import MissingDependency

_OF_KEOPS = re.compile(r"/(pykeops|keopscore)/|'pykeops_(cpp|nvrtc)|KeOps does not run")
_PROBE = "#include <pybind11/pybind11.h>\nPYBIND11_MODULE(probe, m) {}\n"
_INSTALL = "install g++ (apt install g++, or conda install -c conda-forge gxx)"


@contextmanager
def explained() -> Iterator[None]:
    """Raises MissingDependency in place of an error of KeOps that its compiler explains."""
    try:
        yield
    except Exception as error:
        said = "".join(traceback.format_exception(error))
        reason = why_not() if _OF_KEOPS.search(said) and importlib.util.find_spec("pykeops") else None
        if reason is None:
            raise
        raise MissingDependency(reason) from error


def why_not() -> str | None:
    """Why KeOps cannot compile here, and what to do; None if it can."""
    compiler = _compiler()
    if compiler is None:
        named = os.environ.get("CXX")
        found = f"CXX names {named!r}, which is not there, and there is no g++" if named else "there is none"
        return f"KeOps needs a C++ compiler, and {found}: {_INSTALL}, or name one in CXX"
    if not caches.is_plain(compiler):
        return f"KeOps cannot call CXX={compiler!r}, which has a blank, a quote or the like: name one without"
    for path in (sys.executable, importlib.util.find_spec("keopscore").origin):
        if not caches.is_plain(path):
            return (
                f"KeOps cannot compile in {os.path.dirname(path)!r}, a path with a blank, a quote or the like: "
                "make the environment of Python in a folder without"
            )
    words = _words_of_failure(compiler)
    return words and f"KeOps needs a C++ compiler that works, {compiler} says: {words}; {_INSTALL}, or name one in CXX"


def _compiler() -> str | None:
    """The one that KeOps takes."""
    return next((name for name in (os.environ.get("CXX"), "g++") if name and shutil.which(name)), None)


def _words_of_failure(compiler: str) -> str | None:
    """What the compiler says of a module like those of KeOps, in a line; None if it compiles, or lacks memory."""
    import pybind11  # comes with KeOps

    folders = pybind11.get_include(), sysconfig.get_paths()["include"]
    options = ["-shared", "-fPIC", "-std=c++11", "-fopenmp", "-flto=auto", *(f"-I{folder}" for folder in folders)]
    options += shlex.split(os.environ.get("CXXFLAGS", ""))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(_PROBE)
        command = [shutil.which(compiler), *options, str(source), "-o", str(source.with_suffix(".so"))]
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
