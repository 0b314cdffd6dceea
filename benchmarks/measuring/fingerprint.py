"""The fingerprint of what a variant runs, so that records of a variant whose code has changed are measured anew.

It looks at definitions, not at files: at the top-level functions, classes and constants that the variant's `start`
reaches, directly or not, in the modules of ours, which are those of mmdma_core and those beside the variant's own.
From `start` as it is at run time (what it closes over, the parts of a partial) it goes on by the syntax tree: a name
leads to a definition of ours, to a module that is passed on, of which all counts, or to another package.

What does not count: comments, docstrings, layout, import statements, annotations, texts of errors, the names and places
of files, models of cost and memory, and how `register` describes a variant. A statement at the top of a module counts
where a name that it binds is reached; one that does something, such as a bare call, where anything of the module is.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdma_core import Settings

if TYPE_CHECKING:
    from mmdma_core.registry import Variant

_CORE = "mmdma_core"
_MODELS = (f"{_CORE}.models", f"{_CORE}.fused.models")  # they say what a variant needs, and are no part of what it does
_ALL, _EFFECTS = "*", "!"
_PLAIN = (int, float, complex, str, bytes, type(None), np.generic, np.dtype, torch.dtype, torch.device)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SAYS_NOTHING = ("annotation", "returns", "msg", "ctx", "type_comment", "kind", "simple")  # fields of a syntax tree

Key = tuple[str, str]  # a module, and what of it: a top-level name, a line, _ALL of it, or its _EFFECTS
Target = tuple[str, ...]  # a module, and a chain of names in it

_known: dict[Callable[..., object], str] = {}  # of each `start`, found here or told


def tell(variant: Variant, fingerprint: str) -> None:
    """Take a variant's fingerprint from a process that has imported it, since its packages are not imported here."""
    _known[variant.start] = fingerprint


def variant_fingerprint(variant: Variant) -> str:
    """Return the fingerprint of all that decides what a variant computes, and whether it runs."""
    if variant.start not in _known:
        _known[variant.start] = fingerprint_of(*_of_variant(variant), module=variant.module)
    return _known[variant.start]


def variant_reaches(variant: Variant) -> set[Key]:
    """Return the definitions that count for a variant, as (module, name)."""
    reached = set(_Walk(variant.module, _of_variant(variant)).graph)
    binding = ((module, statement) for module, name in reached for statement in _module(module).binds.get(name, ()))
    return reached | {(module, statement.name) for module, statement in binding if hasattr(statement, "name")}


def fingerprint_of(*what: object, module: str) -> str:
    """Return the fingerprint of functions, classes and plain values; what lies beside the module is ours, too."""
    walk = _Walk(module, what)
    # Names and places are no part of a definition's label; what it refers to is, step by step.
    labels, finer = {}, {key: text for key, (text, _) in walk.graph.items()}
    while len(set(finer.values())) > len(set(labels.values())):
        labels = finer
        finer = {key: _hash(text, *map(labels.get, refers)) for key, (text, refers) in walk.graph.items()}
    roots = (root if isinstance(root, str) else finer[root] for root in walk.roots)
    return _hash(*roots, *sorted(set(finer.values())))


def _of_variant(variant: Variant) -> tuple[object, ...]:
    takes = variant.formulation, variant.estimator, variant.accepts, variant.several_ranks
    return variant.start, Settings, variant.importer, variant.requires, takes  # Settings draw the starting values


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


class _Walk:
    """From objects to all definitions of ours that they reach.

    roots  the definitions and plain values that the objects are made of, in order
    graph  of each definition its text, and the definitions that it refers to, in order
    """

    def __init__(self, module: str, what: tuple[object, ...]) -> None:
        self._module, self._home = module, _home(module)
        self._seen: list[object] = []
        self.roots = list(self._parts(what))
        self.graph: dict[Key, tuple[str, tuple[Key, ...]]] = {}
        todo = [(module, _EFFECTS), *(root for root in self.roots if isinstance(root, tuple))]
        while todo:
            key = todo.pop()
            if key not in self.graph:
                self.graph[key] = _definition(self._home, key)
                todo += [*self.graph[key][1], (key[0], _EFFECTS), *_package(key[0])]

    def _parts(self, value: object) -> Iterator[Key | str]:
        """What an object is made of at run time: definitions, and plain values as texts."""
        if isinstance(value, _PLAIN):
            yield repr(value)
        elif not any(value is other for other in self._seen):
            self._seen.append(value)
            inner: Iterable[object] = ()
            if isinstance(value, types.ModuleType):
                yield from (key or text for text, key in _find(self._home, value.__name__))
            elif isinstance(value, (tuple, list, dict)):
                yield f"{type(value).__name__} of {len(value)}"
                inner = value.items() if isinstance(value, dict) else value
            elif isinstance(value, functools.partial):
                inner = value.func, value.args, value.keywords
            elif isinstance(value, types.MethodType):
                inner = value.__func__, value.__self__
            elif hasattr(value, "__qualname__"):
                yield self._definition_of(value)
                inner = _held(value) if "<locals>" in value.__qualname__ or not isinstance(value, type) else ()
            elif _is_ours(type(value).__module__, self._home):
                inner = type(value), vars(value)
            else:
                yield f"{type(value).__module__}.{type(value).__qualname__}"
                yield self._module, _ALL  # with whatever has made it
            for part in inner:
                yield from self._parts(part)

    def _definition_of(self, value: object) -> Key | str:
        """The top-level definition of a function or class; its name where it is of another package."""
        module, name = value.__module__ or "", value.__qualname__.partition(".")[0]
        if not _is_ours(module, self._home):
            return f"{module}.{value.__qualname__}"
        if name in _module(module).binds:
            return module, name
        return module, str(value.__code__.co_firstlineno) if hasattr(
            value, "__code__"
        ) else _ALL  # of a lambda its line


def _package(module: str) -> list[Key]:
    """What the package around a module does when it is imported; mmdma_core's only looks for folders."""
    around = module.rpartition(".")[0]
    return [(around, _EFFECTS)] if around not in ("", _CORE) else []


def _held(value: object) -> Iterator[object]:
    """What a function closes over and has as defaults; the bases and the functions of a class."""
    if isinstance(value, type):
        yield from (part for part in (*value.__bases__, *vars(value).values()) if hasattr(part, "__qualname__"))
    yield from (getattr(value, name, None) for name in ("__wrapped__", "__defaults__", "__kwdefaults__"))
    for cell in getattr(value, "__closure__", None) or ():
        with suppress(ValueError):  # empty
            yield cell.cell_contents


@cache
def _home(module: str) -> Path:
    """The folder from which a module's outermost package is imported; in site-packages that package itself."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    where = Path(next(iter(spec.submodule_search_locations or [spec.origin or ""])))
    return where if where.parent.name in ("site-packages", "dist-packages") else where.parent


@cache
def _is_ours(module: str, home: Path) -> bool:
    """Whether a module belongs to mmdma_core, or lies beside the one whose home this is; a model does not."""
    outermost = module.partition(".")[0]
    return not _is_model(module) and (outermost == _CORE or (_exists(outermost) and _home(outermost) == home))


def _is_model(module: str) -> bool:
    return module in _MODELS


@cache
def _exists(module: str) -> bool:
    with suppress(ImportError, ValueError):  # its parent is no package; it has no name
        return importlib.util.find_spec(module) is not None
    return False


@dataclass(frozen=True)
class _Module:
    """A module as it is read.

    statements  those at its top
    binds       of each name those that bind it, or change what it names
    effects     those that do something
    imports     of each name where its imports lead
    exports     imported names that the module itself does not use
    """

    statements: list[ast.stmt]
    binds: dict[str, list[ast.stmt]]
    effects: list[ast.stmt]
    imports: dict[str, list[Target]]
    exports: list[str]


def _read(module: str) -> str:
    origin = importlib.util.find_spec(module).origin or ""
    return Path(origin).read_text(encoding="utf-8") if origin.endswith(".py") else ""


@cache
def _module(name: str) -> _Module:
    tree = ast.parse(_read(name))
    binds, effects, imports = defaultdict(list), [], defaultdict(list)
    everywhere = _imports(ast.walk(tree), name)
    for statement in tree.body:
        if isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test):
            continue  # what runs as a program
        nodes = list(_of_scope(statement))
        for bound in _bound(nodes):
            binds[bound].append(statement)
        for bound, targets in _imports(nodes, name).items():
            imports[bound] += targets
        if any(_does_something(node, everywhere) for node in nodes):
            effects.append(statement)
    for statement in tree.body:
        for bound in _given_to_decorators(statement, everywhere) & binds.keys():
            binds[bound].append(statement)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return _Module(tree.body, dict(binds), effects, dict(imports), sorted(imports.keys() - used))


def _of_scope(node: ast.AST) -> Iterator[ast.AST]:
    """The node and those below it, but for what has names of its own: functions, classes, comprehensions."""
    yield node
    if not isinstance(node, _SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from _of_scope(child)


def _bound(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that are bound, or whose object is changed."""
    found = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            while isinstance(node, (ast.Attribute, ast.Subscript)):
                node = node.value
            found |= {node.id} if isinstance(node, ast.Name) else set()
    return found


def _given_to_decorators(statement: ast.stmt, imports: dict[str, list[Target]]) -> set[str]:
    """The names to whose objects decorators may add what they decorate: of `@f.register`, of `@overload(f)`."""
    made = [made for made in getattr(statement, "decorator_list", ()) if not _describes(made, imports)]
    called = [one.func if isinstance(one, ast.Call) else one for one in made]
    return {node.id for one in made for node in ast.walk(one) if isinstance(node, ast.Name) and node not in called}


def _does_something(node: ast.AST, imports: dict[str, list[Target]]) -> bool:
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        return not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Expr):
        return not _describes(node.value, imports)
    is_star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    return is_star or isinstance(node, (ast.Delete, ast.Assert, ast.Raise))


def _describes(node: ast.expr, imports: dict[str, list[Target]]) -> bool:
    """Whether it is a docstring, or mmdma_core's `register` with what it says of a variant."""
    while isinstance(node, ast.Call):
        node = node.func
    name, *more = _chain(node) or [""]
    paths = (".".join((*target, *more)) for target in imports.get(name, ()))
    registers = any(path.startswith(f"{_CORE}.") and path.endswith(".register") for path in paths)
    return registers or isinstance(node, ast.Constant)


def _imports(nodes: Iterable[ast.AST], module: str) -> dict[str, list[Target]]:
    """Of each name that imports bind, where they lead; of `*` the whole modules."""
    found = defaultdict(list)
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                outermost = alias.name.partition(".")[0]
                found[alias.asname or outermost].append((alias.name if alias.asname else outermost,))
        elif isinstance(node, ast.ImportFrom):
            is_package = importlib.util.find_spec(module).submodule_search_locations
            package = module if is_package else module.rpartition(".")[0]
            there = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                found[alias.asname or alias.name].append((there,) if alias.name == "*" else (there, alias.name))
    return found


def _chain(node: ast.AST) -> list[str]:
    """The names of `a.b.c`; none of what is something else."""
    names = []
    while isinstance(node, ast.Attribute):
        names, node = [node.attr, *names], node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def _find(home: Path, module: str, *names: str) -> list[tuple[str, Key | None]]:
    """Where names in a module lead: to definitions of ours, each with what follows its name, or a text."""
    if not _is_ours(module, home):
        return [("a model" if _is_model(module) else ".".join((module, *names)), None)]
    if not names:
        return [("", (module, _ALL))]
    name, *more = names
    there = _module(module)
    found = [(".".join(["", *more]), (module, name))] if name in there.binds else []
    for target in there.imports.get(name, ()):
        if target != (module, name):  # a package's own submodule
            found += _find(home, *target, *more)
    if not found and _exists(f"{module}.{name}"):
        return _find(home, f"{module}.{name}", *more)
    if not found and "__getattr__" in there.binds:  # what is imported once it is asked for
        value = getattr(importlib.import_module(module), name, None)
        if isinstance(value, types.ModuleType):
            return _find(home, value.__name__, *more)
        if hasattr(value, "__qualname__") and value.__module__ != module:
            return _find(home, value.__module__, value.__qualname__, *more)
    return found or [("", (module, _ALL))]


@cache
def _definition(home: Path, key: Key) -> tuple[str, tuple[Key, ...]]:
    """The text of a definition, with a blank for each of ours that it refers to, and these."""
    module, name = key
    there = _module(module)
    if name == _EFFECTS:
        return _Text(home, module, there.effects).both
    if name in there.binds:
        return _Text(home, module, there.binds[name]).both
    nodes = (node for statement in there.statements for node in ast.walk(statement))
    at_line = [node for node in nodes if isinstance(node, ast.Lambda) and str(node.lineno) == name]
    if at_line:
        return _Text(home, module, at_line).both
    exported = [to for export in there.exports for _, to in _find(home, module, export) if to]
    return "a module", (*((module, bound) for bound in sorted(there.binds)), *exported)


class _Text:
    """The text of code without what does not count, and a blank for each of our definitions that it refers to.

    both  the text, and the definitions in the order of the blanks
    """

    def __init__(self, home: Path, module: str, nodes: list[ast.AST]) -> None:
        self._home, self._module = home, module
        self._refers: list[Key] = []
        self._inner = _imports((below for node in nodes for below in ast.walk(node)), module)
        self._imports = _module(module).imports | self._inner
        self.both = self._of(nodes, frozenset()), tuple(self._refers)

    def _of(self, node: object, own: frozenset[str]) -> str:
        """The text of a node; own: the names that the functions around it bind."""
        if isinstance(node, list):
            return f"[{', '.join(filter(None, (self._of(part, own) for part in node)))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return ", ".join(self._found("*")) if node.names[0].name == "*" else ""
        if isinstance(node, ast.Expr) and _describes(node.value, self._imports):
            return ""
        names = _chain(node)
        if names and names[0] not in own:
            return " or ".join(self._found(*names))
        if isinstance(node, ast.AnnAssign) and node.value:
            node = ast.Assign([node.target], node.value)
        inner = own | _own(node) if isinstance(node, _FUNCTIONS) else own
        fields = [self._of(part, inner if name == "body" else own) for name, part in self._counting(node)]
        return f"{type(node).__name__}({', '.join(fields)})"

    def _counting(self, node: ast.AST) -> Iterator[tuple[str, object]]:
        """The fields of a node that count."""
        for name, part in ast.iter_fields(node):
            if name == "decorator_list":
                yield name, [made for made in part if not _describes(made, self._imports)]
            elif isinstance(node, ast.Raise) and isinstance(part, ast.Call):
                yield name, part.func
            elif name not in _SAYS_NOTHING or (isinstance(part, ast.AST) and "constexpr" in ast.dump(part)):  # Triton's
                yield name, part

    def _found(self, name: str, *more: str) -> Iterator[str]:
        """The texts of what names lead to."""
        there, found = _module(self._module), [(".".join((name, *more)), None)]
        if name in self._inner:
            found = [one for target in self._inner[name] for one in _find(self._home, *target, *more)]
        elif name in there.binds or name in there.imports:
            found = _find(self._home, self._module, name, *more)
        for text, key in found:
            self._refers += [key] if key else []
            yield f"_{text}" if key else text


def _own(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """The names that a function binds for itself, but for its imports."""
    body = [] if isinstance(function, ast.Lambda) else function.body
    nodes = [node for statement in body for node in _of_scope(statement)]
    shared = {name for node in nodes if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}
    bound = _bound(node for node in nodes if not isinstance(node, (ast.Attribute, ast.Subscript)))
    return bound - shared | {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
