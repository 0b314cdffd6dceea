"""Triton's interpreter, quicker: on import.

A kernel's launch replaces what `triton.language` has by what runs on NumPy, and so does each call of a function within
it, which finds all of it replaced: two thirds of an interpreted kernel's time. Here only the first of a launch does.
"""

import functools
import inspect
from types import SimpleNamespace

from triton import language
from triton.runtime import interpreter

_replace = interpreter._patch_lang
_replaced = []  # in the running launch, if any: by which modules its functions know Triton's language


def _replace_once(function):
    known_by = _known_by(function)
    if known_by in _replaced:
        return SimpleNamespace(restore=lambda: None)
    first, scope = not _replaced, _replace(function)
    _replaced.append(known_by)
    return SimpleNamespace(restore=lambda: (scope.restore(), _replaced.clear())) if first else scope


@functools.cache
def _known_by(function):
    modules = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return language in modules, language.core in modules


interpreter._patch_lang = _replace_once
