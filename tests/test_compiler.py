"""A compiler that KeOps lacks, or that fails, is told with what to do: in a cell, in a fit and on the command line."""

import sys

import pytest

import mmdma_core
from benchmarks.measuring import guard, machine
from benchmarks.measuring.cell import Cell, Limits
from mmdma_core import MMDMA, MissingDependency, Settings, __main__, compiler, simulate
from mmdma_core.families import registry

FAILED = "No module named 'pykeops_cpp_3a524a5946'"  # what KeOps says when its compiler did


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH without any program; a function that adds one, of a shell's lines or of bytes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)

    def add(name, content):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else f"#!/bin/sh\n{content}\n".encode())
        path.chmod(0o755)
        return str(path)

    return add


def test_without_a_compiler_g_plus_plus_is_named(tools):
    reason = compiler.why_not()
    assert "there is none: install g++ (apt install g++, or conda install -c conda-forge gxx)" in reason
    assert "\n" not in reason


def test_a_compiler_that_cxx_names_and_is_absent_is_named(tools, monkeypatch):
    monkeypatch.setenv("CXX", "clang++-99")
    assert "CXX names 'clang++-99', which is not there, and there is no g++" in compiler.why_not()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("exit 1", "g++ says: nothing, and ends with status 1"),
        ("echo broken install >&2; exit 4", "g++ says: broken install"),
        (
            "echo In file included from a >&2; echo 'b.h:1: fatal error: Python.h: No such file' >&2; exit 1",
            "g++ says: b.h:1: fatal error: Python.h: No such file; install g++",
        ),
        (b"not a program", "g++ says: Exec format error"),
    ],
)
def test_a_compiler_that_fails_is_told_in_its_own_words(tools, content, words):
    tools("g++", content)
    assert words in compiler.why_not()


def test_the_compiler_that_cxx_names_is_the_one_that_is_tried(tools, monkeypatch):
    tools("g++", "exit 0")
    assert compiler.why_not() is None
    monkeypatch.setenv("CXX", tools("c++", "exit 1"))
    assert "c++ says" in compiler.why_not()


def test_a_compiler_that_lacks_memory_is_there(tools):
    tools("g++", "echo 'cc1plus: fatal error: out of memory allocating 65536 bytes' >&2; exit 1")
    assert compiler.why_not() is None


def test_a_path_that_keops_cannot_quote_is_named(tools, monkeypatch):
    tools("g++", "exit 0")
    monkeypatch.setattr(sys, "executable", "/opt/my environment/bin/python")
    assert "cannot compile in '/opt/my environment/bin'" in compiler.why_not()
    monkeypatch.setenv("CXX", tools("my g++", "exit 0"))
    assert "my g++', which has a blank" in compiler.why_not()


def test_the_compiler_of_this_machine_works():
    assert compiler.why_not() is None


def test_an_error_of_keops_alone_is_put_down_to_the_compiler(tools):
    with pytest.raises(MissingDependency, match=r"install g\+\+"), compiler.explained():
        raise ModuleNotFoundError(FAILED)
    with pytest.raises(ValueError, match="mine"), compiler.explained():
        raise ValueError("mine")


def test_an_error_of_keops_where_the_compiler_works_stays(monkeypatch):
    monkeypatch.setattr(compiler, "why_not", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="pykeops_cpp"), compiler.explained():
        raise ModuleNotFoundError(FAILED)


def test_what_is_missing_besides_keops_stays(tools):
    words = "variant 'a' needs lsmmdma: pip install absl-py pykeops scikit-learn"
    with pytest.raises(MissingDependency, match="needs lsmmdma"), compiler.explained():
        raise MissingDependency(words)


def test_a_cell_without_a_compiler_lacks_it(tools):
    def compile_in_vain(cell, report):
        raise ModuleNotFoundError(FAILED)

    limits = Limits(1.0, 60.0, None, None)
    cell = Cell("primal-keops", 20, 5, "", (), Settings(), "branch", 4, "exact", 5, "cpu", 1, limits)
    record = guard.measure_cell(cell, machine.describe("cpu", 1), 60, compile_in_vain)
    assert record.status == "missing_dependency"
    assert "install g++" in record.detail


def test_a_fit_without_a_compiler_says_what_to_install(tools, monkeypatch, tmp_path, capsys):
    def start(*given, **options):
        raise ModuleNotFoundError(FAILED)

    monkeypatch.setattr(registry, "start", start)
    x, y, _ = simulate("branch", n=20, p=5)
    with pytest.raises(MissingDependency, match=r"install g\+\+"):
        MMDMA(variant="primal-keops", n_starts=1).fit(x, y)
    simulated = ["--simulate", "branch", "--n", "20", "--p", "5", "--quiet"]
    assert __main__.main(["fit", *simulated, "--variant", "primal-keops", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: KeOps needs a C++ compiler")


def test_a_variant_that_cannot_be_imported_ends_no_other(monkeypatch):
    """As KeOps where its folder cannot be made: the fork server goes on, and imports what others require."""
    imported = []

    def fail(module):
        raise OSError(30, "Read-only file system", "/home/.cache")

    for name, importer in (("fails-on-import", fail), ("sound", imported.append)):
        monkeypatch.setitem(registry._VARIANTS, name, None)
        del registry._VARIANTS[name]
        mmdma_core.register(name, label=name, reference="a test", requires=("json",), importer=importer)(lambda: None)
    guard.preload(["fails-on-import", "sound"], "cpu")
    assert imported == ["json"]
