"""CUDA for KeOps: the headers and libraries that it compiles against, from a toolkit or from pip's wheels of CUDA.

KeOps takes the headers from one folder, `include` of CUDA_PATH or of a toolkit in a usual place, and finds libnvrtc.so
and libcudart.so as a linker does. PyTorch's wheels have them in several folders and under numbered names. Links in
the cache make one toolkit of these. What CUDA_PATH or CUDA_HOME names wins, and so does a whole toolkit that is there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

import torch

from mmdma_core import compilers

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
def prepare() -> None:
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


def why_not() -> str | None:
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
    version = torch.version.cuda or ""
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


def _found() -> _Toolkit:
    """The toolkit that the user names; else the first whole one; else what wheels have."""
    for name in _NAMED:
        if os.environ.get(name):
            return _of(Path(os.environ[name]), known=True)
    wheels = _of_wheels(torch.version.cuda or "")
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
    base = compilers.place(plain=True)
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
