"""What a cell lacked that a person can bring, so that it is asked again once that is there.

Modules, compilers, and what is compiled against: Python's headers, and CUDA's with two of its libraries.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

from mmdma_core import compiler, toolkit

# name -> the variable that names another one, what else is taken for it, and the words of a cell that lacked it
_COMPILERS = {
    "g++": ("CXX", ("g++",), re.compile(r"C\+\+ compiler|\bg\+\+|\bpykeops_\w+", re.IGNORECASE)),
    "gcc": ("CC", ("gcc", "clang"), re.compile(r"\bC compiler|\bgcc\b", re.IGNORECASE)),
}
_PYTHON = "Python.h"
_COMPILED = re.compile("|".join(rf"(?<![\w/]){re.escape(name)}(?!\w)" for name in (_PYTHON, *toolkit.PARTS)))
_MODULE = re.compile(r"No module named '(\w+)'")  # of one without dots: to look for a part imports the whole


def lacking(words: str) -> list[str]:
    """What the words of a cell name that is not here: modules, compilers, and what they compile against."""
    compilers = [name for name, (_, _, said) in _COMPILERS.items() if said.search(words)]
    modules = [name for name in _MODULE.findall(words) if not name.startswith("pykeops_")]  # KeOps' own, not compiled
    found = dict.fromkeys([*compilers, *_COMPILED.findall(words), *modules])
    return [name for name in found if not is_here(name)]


def is_here(name: str) -> bool:
    """Whether a compiler or what it compiles against is found, or a module can be imported."""
    if name in _COMPILERS:
        variable, names, _ = _COMPILERS[name]
        return any(map(shutil.which, (os.environ.get(variable, ""), *names)))
    if name == _PYTHON:
        return Path(compiler.python_headers(), name).is_file()
    if name in toolkit.PARTS:
        return name not in toolkit.lacks()
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a specification, such as __main__
        return True
