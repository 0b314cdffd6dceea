"""A compiler that KeOps or Triton lacks is told with what to do: in a cell, in a fit and on the command line."""

import os
import shutil
import sys

import fake_driver
import pytest
import torch
from triton.runtime.errors import OutOfResources

import mmdma_core
from benchmarks.measuring import guard, machine
from benchmarks.measuring.measurement import Limits, Measurement
from mmdma_core import MMDMA, MissingDependency, Settings, Unsupported, compilers, registry, simulate
from mmdma_core.matching import command_line

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
    reason = compilers.why_no_compiler()
    assert "there is none: install g++ (apt install g++, or conda install -c conda-forge gxx)" in reason
    assert "\n" not in reason


def test_a_compiler_that_cxx_names_and_is_absent_is_named(tools, monkeypatch):
    monkeypatch.setenv("CXX", "clang++-99")
    assert "CXX names 'clang++-99', which is not there, and there is no g++" in compilers.why_no_compiler()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("exit 1", "g++ says: nothing, and ends with status 1"),
        ("echo broken install >&2; exit 4", "g++ says: broken install"),
        (
            "echo In file included from a >&2; echo 'b.h:1: fatal error: Python.h: No such file' >&2; exit 1",
            "g++ says: b.h:1: fatal error: Python.h: No such file; install Python's headers (apt install python3.",
        ),
        (b"not a program", "g++ says: Exec format error"),
    ],
)
def test_a_compiler_that_fails_is_told_in_its_own_words(tools, content, words):
    tools("g++", content)
    assert words in compilers.why_no_compiler()


def test_the_compiler_that_cxx_names_is_the_one_that_is_tried(tools, monkeypatch):
    tools("g++", "exit 0")
    assert compilers.why_no_compiler() is None
    monkeypatch.setenv("CXX", tools("c++", "exit 1"))
    assert "c++ says" in compilers.why_no_compiler()


def test_a_compiler_that_lacks_memory_is_there(tools):
    tools("g++", "echo 'cc1plus: fatal error: out of memory allocating 65536 bytes' >&2; exit 1")
    assert compilers.why_no_compiler() is None


def test_a_path_that_keops_cannot_quote_is_named(tools, monkeypatch):
    tools("g++", "exit 0")
    monkeypatch.setattr(sys, "executable", "/opt/my environment/bin/python")
    assert "cannot compile in '/opt/my environment/bin'" in compilers.why_no_compiler()
    monkeypatch.setenv("CXX", tools("my g++", "exit 0"))
    assert "my g++', which has a blank" in compilers.why_no_compiler()


def test_the_compiler_of_this_machine_works():
    assert compilers.why_no_compiler() is None


def test_an_error_of_keops_alone_is_put_down_to_the_compiler(tools):
    with pytest.raises(MissingDependency, match=r"install g\+\+"), compilers.explained():
        raise ModuleNotFoundError(FAILED)
    with pytest.raises(ValueError, match="mine"), compilers.explained():
        raise ValueError("mine")


def test_an_error_of_keops_where_the_compiler_works_stays(monkeypatch):
    monkeypatch.setattr(compilers, "why_no_compiler", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="pykeops_cpp"), compilers.explained():
        raise ModuleNotFoundError(FAILED)


def within(package, error):
    """Raise it, as if from a file of a package."""
    code = compile("raise error", f"/venv/lib/{package}/some.py", "exec")
    exec(code, {"error": error})


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError("no more"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[KeOps] Cuda error."),  # of a formula that has been compiled
    ],
    ids=str,
)
def test_without_a_compiler_memory_that_runs_out_is_told(tools, error):
    with pytest.raises(type(error)) as caught, compilers.explained():
        within("pykeops/torch", error)
    assert caught.value is error


def test_what_keops_lacks_of_cuda_is_told(monkeypatch):
    monkeypatch.setattr(compilers, "why_no_compiler", lambda: None)
    monkeypatch.setattr(compilers, "why_no_cuda", lambda: "KeOps needs libcudart of CUDA")
    with pytest.raises(MissingDependency, match="libcudart"), compilers.explained():
        within("keopscore/binders/nvrtc", TypeError("'>=' not supported between instances of 'NoneType' and 'int'"))
    with pytest.raises(TypeError), compilers.explained():  # on a CPU
        within("keopscore/formulas", TypeError("not of CUDA"))


def test_a_kernel_that_needs_too_much_is_unsupported_with_what_the_gpu_has():
    words = "needs 147456 bytes of shared memory, and this GPU has 101376"
    with pytest.raises(Unsupported, match=words), compilers.explained():
        raise OutOfResources(147456, 101376, "shared memory")


def test_what_is_missing_besides_keops_stays(tools):
    words = "variant 'a' needs lsmmdma: pip install absl-py pykeops scikit-learn"
    with pytest.raises(MissingDependency, match="needs lsmmdma"), compilers.explained():
        raise MissingDependency(words)


def test_a_cell_without_a_compiler_lacks_it(tools):
    def compile_in_vain(cell, report):
        raise ModuleNotFoundError(FAILED)

    limits = Limits(1.0, 60.0, None, None)
    cell = Measurement("primal-keops", 20, 5, "", (), Settings(), "branch", 4, "exact", 5, "cpu", 1, limits)
    record = guard.measure(cell, machine.describe("cpu", 1), 60, compile_in_vain)
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
    assert command_line.main(["fit", *simulated, "--variant", "primal-keops", "--out", str(tmp_path / "out")]) == 2
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


ASK_TRITON = """
import torch
torch.cuda.is_available = lambda: True
from mmdma_core import compilers
print(compilers.why_no_triton())
"""


@pytest.mark.slow
def test_triton_needs_a_c_compiler_once(tmp_path):
    """It compiles what launches kernels, against a stand-in for the driver, and finds it in its cache from then on."""
    with_gcc = fake_driver.build(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    if shutil.which("file"):  # by which Python tells the platform, a part of the name in Triton's cache
        (programs / "file").symlink_to(shutil.which("file"))
    without = with_gcc | {"PATH": str(programs)}
    missing = "Triton needs a C compiler, and there is none: install gcc (apt install gcc"
    assert fake_driver.said(ASK_TRITON, without).startswith(missing)
    named = fake_driver.said(ASK_TRITON, with_gcc, CC="no-such-cc")
    assert "CC names 'no-such-cc', which is not there: install gcc" in named
    broken = programs / "gcc"
    broken.write_text("#!/bin/sh\necho 'a.c:1: fatal error: Python.h: No such file' >&2; exit 1\n")
    broken.chmod(0o755)
    headers = fake_driver.said(ASK_TRITON, without)
    assert "Python.h: No such file; install Python's headers (apt install python3." in headers
    broken.unlink()
    if not torch.cuda.is_available():  # nor the driver's
        nowhere = {"TRITON_LIBCUDA_PATH": str(programs), "LIBRARY_PATH": "", "LD_LIBRARY_PATH": ""}
        assert "name its folder in TRITON_LIBCUDA_PATH" in fake_driver.said(ASK_TRITON, with_gcc, **nowhere)
    assert fake_driver.said(ASK_TRITON, with_gcc) == "None"
    assert fake_driver.said(ASK_TRITON, without) == "None"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        FileNotFoundError(2, "No such file or directory: 'gcc'"),
    ],
)
def test_a_launcher_that_triton_cannot_compile_later_is_told(tools, monkeypatch, error):
    monkeypatch.delenv("CC", raising=False)
    code = compile("raise error", "/venv/lib/triton/runtime/build.py", "exec")
    with pytest.raises(MissingDependency, match="Triton needs a C compiler, and there is none"), compilers.explained():
        exec(code, {"error": error})


def test_what_is_heard_is_said_afterwards(capfd):
    with compilers.heard() as said:
        print("by Python")
        os.write(1, b"by a library\n")
        os.system("echo by a child >&2")
        assert set(said().splitlines()) == {"by Python", "by a library", "by a child"}
    assert "by a library" in capfd.readouterr().err
    print("as before")
    assert capfd.readouterr().out == "as before\n"
