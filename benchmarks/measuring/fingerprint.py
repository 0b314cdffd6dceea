"""A digest of the code that a variant runs, so that records of a variant that has changed are measured anew."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_COMPUTES_NOTHING = "mmdma_core.models."  # they say what a variant needs, and are no part of what it does
_CORE = Path(importlib.util.find_spec("mmdma_core").origin).parent


_told: dict[str, str] = {}  # of modules that are not to be looked up here, since their packages would be imported


def tell(module: str, digest: str) -> None:
    """Take the digest of a module from a process that has imported it."""
    _told[module] = digest


@cache
def source_digest(module: str) -> str:
    """Digest of a module and of all that it imports, directly or not, from mmdma_core or from beside the module.

    Comments, docstrings, layout, models of memory and of cost do not count. `from package import name` counts for the
    module that defines name.
    """
    if module in _told:
        return _told[module]
    beside = Path(importlib.util.find_spec(module).origin).parent
    todo, seen = [module], {}
    while todo:
        name = todo.pop()
        if name not in seen and not name.startswith(_COMPUTES_NOTHING):
            tree = _parse(name)
            seen[name] = ast.dump(_without_docstrings(tree))
            todo += _imports(tree, beside)
    return hashlib.sha256("\n".join(sorted(seen.values())).encode()).hexdigest()[:16]


def _parse(module: str) -> ast.Module:
    return ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def _imports(tree: ast.Module, beside: Path) -> Iterator[str]:
    """The modules of ours that the code's imports lead to. No other module is imported to find out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name, beside))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and _is_ours(node.module, beside):
            found = {_defining_module(node.module, alias.name) for alias in node.names}
            yield from (module for module in found if _is_ours(module, beside))


def _is_ours(module: str, beside: Path) -> bool:
    """Whether the module belongs to mmdma_core or lies beside the variant's own."""
    top = importlib.util.find_spec(module.partition(".")[0])
    if top is None or not (top.origin or "").endswith(".py"):
        return False
    origin = Path(top.origin)
    if beside.name in ("site-packages", "dist-packages"):  # everything lies beside it there
        return origin.is_relative_to(_CORE)
    return origin.is_relative_to(_CORE) or beside in (origin.parent, origin.parent.parent)


def _defining_module(module: str, name: str) -> str:
    if not importlib.util.find_spec(module).submodule_search_locations:
        return module
    if importlib.util.find_spec(f"{module}.{name}") is not None:  # a submodule, imported by now or not
        return f"{module}.{name}"
    value = getattr(importlib.import_module(module), name, None)
    return value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", module)
