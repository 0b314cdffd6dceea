"""What a cell lacked that a person can bring: modules and compilers, so that it is asked again once they are there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil

# name -> the variable that names another one, what else is taken for it, and the words of a cell that lacked it
_COMPILERS = {
    "g++": ("CXX", ("g++",), re.compile(r"C\+\+ compiler|\bg\+\+|\bpykeops_\w+", re.IGNORECASE)),
    "gcc": ("CC", ("gcc", "cc", "clang"), re.compile(r"\bC compiler|\bgcc\b", re.IGNORECASE)),
}
_MODULE = re.compile(r"No module named '(\w+)'")  # of one without dots: to look for a part imports the whole


def lacking(words: str) -> list[str]:
    """The modules and compilers that the words of a cell name, and that are not here."""
    compilers = [name for name, (_, _, said) in _COMPILERS.items() if said.search(words)]
    modules = [name for name in _MODULE.findall(words) if not name.startswith("pykeops_")]  # KeOps' own, not compiled
    return [name for name in dict.fromkeys(compilers + modules) if not is_here(name)]


def is_here(name: str) -> bool:
    """Whether a compiler is found, or a module can be imported."""
    if name in _COMPILERS:
        variable, names, _ = _COMPILERS[name]
        return any(map(shutil.which, (os.environ.get(variable, ""), *names)))
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a specification, such as __main__
        return True
