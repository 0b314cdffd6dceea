"""A digest of the code that a variant runs, so that records of a variant that has changed are measured anew."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache

_PACKAGE = "mmdma_core"


@cache
def source_digest(module: str) -> str:
    """Digest of a module and of every module of mmdma_core that it imports, directly or not.

    Comments, docstrings and layout do not count.
    """
    todo, seen = [module], {}
    while todo:
        name = todo.pop()
        if name not in seen:
            tree = _parse(name)
            seen[name] = ast.dump(_without_docstrings(tree))
            todo += _imports(tree)
    return hashlib.sha256("\n".join(sorted(seen.values())).encode()).hexdigest()[:16]


def _parse(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    with open(spec.origin, encoding="utf-8") as file:
        return ast.parse(file.read())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def _imports(tree: ast.Module) -> Iterator[str]:
    """The modules of mmdma_core that the code names in its imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import name`: the name may itself be a module
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == _PACKAGE and _is_module(name):
                yield name


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
