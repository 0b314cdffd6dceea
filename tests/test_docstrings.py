"""Public docstrings have numpydoc's sections, by its own validation, and their examples run."""

import doctest
import importlib
import inspect

import pytest
from numpydoc.validate import validate

import mmdma_core
from mmdma_core import io, metrics

IGNORED = {
    "ES01": "a summary may say all",
    "SA01": "docs/api.md has related names side by side",
    "EX01": "not every function needs an example; those of SHOWN do",
}
SHOWN = {
    "mmdma_core.MMDMA",
    "mmdma_core.Settings",
    "mmdma_core.match",
    "mmdma_core.reference_loss",
    "mmdma_core.simulate",
    "mmdma_core.start",
    "mmdma_core.variants",
    "mmdma_core.matching.metrics.foscttm",
}


def public():
    for name in mmdma_core.__all__:
        yield f"mmdma_core.{name}"
        thing = getattr(mmdma_core, name)
        if inspect.isclass(thing):
            for method, value in inspect.getmembers(thing, inspect.isroutine):
                ours = (getattr(value, "__module__", None) or "").startswith("mmdma_core")
                if ours and not method.startswith("_"):
                    yield f"mmdma_core.{name}.{method}"
    for module in (io, metrics):
        for name, value in vars(module).items():
            here = getattr(value, "__module__", "") == module.__name__ or name in getattr(module, "__all__", ())
            if callable(value) and not name.startswith("_") and here:
                yield f"{module.__name__}.{name}"


def of_docstring(name):
    """The name of what has the docstring that inspect.getdoc finds: of a method, that of the class it inherits from."""
    *_, owner, method = name.split(".")
    thing = getattr(mmdma_core, owner, None)
    for parent in getattr(thing, "__mro__", ()):
        documented = vars(parent).get(method)
        if documented is not None and documented.__doc__:
            assert inspect.cleandoc(documented.__doc__) == inspect.getdoc(getattr(thing, method))
            return f"{parent.__module__}.{parent.__qualname__}.{method}"
    return name


@pytest.mark.parametrize("name", sorted(public()))
def test_numpydoc_finds_no_fault(name):
    ignored = set(IGNORED) - ({"EX01"} if name in SHOWN else set())
    wrong = [f"{code}: {text}" for code, text in validate(of_docstring(name))["errors"] if code not in ignored]
    if name == "mmdma_core.Run":  # a Protocol, which nobody calls
        wrong = [error for error in wrong if "*args" not in error]
    assert not wrong


def test_the_names_are_those_that_are_public():
    found = set(public())
    assert found >= SHOWN
    methods = {name.rpartition(".")[2] for name in found if name.startswith("mmdma_core.MMDMA.")}
    of_matches = {"matches", "transfer", "transfer_features"}
    assert methods == {"fit", "fit_transform", "transform", "score", "save", "load"} | of_matches


@pytest.mark.parametrize(
    "module",
    [
        "registry",
        "matching.estimator",
        "matching.metrics",
        "matching.scverse",
        "objective",
        "settings",
        "simulation",
    ],
)
def test_examples_run(module):
    found = doctest.testmod(importlib.import_module(f"mmdma_core.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
