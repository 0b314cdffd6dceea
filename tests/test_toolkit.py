"""CUDA for KeOps from pip's wheels: found, linked and told; KeOps' engines compile against them without a GPU."""

import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import fake_driver
import pytest
import torch
from conftest import ROOT

from benchmarks.measuring import machine
from mmdma_core import compilers, host, kernels

ALL = ("nvrtc.h", "cuda.h", "cuda_fp16.h", "crt/host_defines.h", "nv/target")
# version of CUDA -> what each of its packages has, below the folder nvidia
LAYOUTS = {
    "13.0": {
        "cu13": [*(f"include/{name}" for name in ALL), "lib/libnvrtc.so.13", "lib/libcudart.so.13"],
    },
    "13.9": {  # as in a toolkit, where all of nv is below cccl
        "cu13": [*(f"include/{name}" for name in ALL[:-1]), "include/cccl/nv/target"],
        "cu13/lib": ["libnvrtc.so.13", "libcudart.so.13"],
    },
    "12.6": {
        "cuda_nvrtc": ["include/nvrtc.h", "lib/libnvrtc.so.12"],
        "cuda_runtime": ["include/cuda.h", "include/cuda_fp16.h", "lib/libcudart.so.12"],
        "cuda_nvcc": ["include/crt/host_defines.h"],
        "cuda_cccl": ["include/nv/target"],
    },
}
_VARIABLES = ("CUDA_PATH", "CUDA_HOME", "CONDA_PREFIX", "LIBRARY_PATH", "LD_LIBRARY_PATH")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """No CUDA, neither on this machine nor from pip; a function lays a version's wheels out, without some parts."""
    for name in _VARIABLES:
        monkeypatch.setenv(name, "")  # restored, whatever `prepare` sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compilers, "_USUAL", ())
    monkeypatch.setattr(compilers, "find_library", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(compilers, "why_no_compiler", lambda: None)  # which compiles
    monkeypatch.delitem(sys.modules, "keopscore.config", raising=False)  # of a test before, which found no CUDA
    site = tmp_path / "site"
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])

    def lay(version, but=()):
        monkeypatch.setattr(torch.version, "cuda", version)
        for package, names in LAYOUTS[version].items():
            write(site / "nvidia" / package, [name for name in names if not any(part in name for part in but)])
        return site / "nvidia"

    return lay


def write(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def prepared():
    compilers.prepare_cuda.__wrapped__()
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


@pytest.mark.parametrize("version", LAYOUTS)
def test_wheels_become_one_toolkit(bare, version):
    nvidia = bare(version)
    assert compilers.lacks() == []
    assert compilers.why_no_cuda() is None
    found = prepared()
    folder = Path(found["CUDA_PATH"])
    assert all((folder / "include" / name).is_file() for name in ALL)
    major = version.split(".")[0]
    for name in ("nvrtc", "cudart"):
        assert (folder / "lib64" / f"lib{name}.so").resolve().name == f"lib{name}.so.{major}"
    assert found["LIBRARY_PATH"] == found["LD_LIBRARY_PATH"] == str(folder / "lib64")
    for name in found:
        del os.environ[name]
    os.environ["LIBRARY_PATH"] = "/opt/own"
    assert prepared() == found | {"LIBRARY_PATH": f"{folder}/lib64:/opt/own"}
    assert len(list(folder.parent.iterdir())) == 1
    (nvidia / ("cu13/include" if major == "13" else "cuda_cccl/include") / "new.h").write_text("")
    for name in found:
        del os.environ[name]
    assert prepared()["CUDA_PATH"] != found["CUDA_PATH"]  # what is installed later is linked, too


@pytest.mark.parametrize(
    ("version", "absent", "command"),
    [
        ("13.0", "crt/host_defines.h", "cuda-toolkit[crt]==13.0.*"),
        ("13.0", "nv/target", "cuda-toolkit[cccl]==13.0.*"),
        ("13.0", "libcudart", "cuda-toolkit[cudart]==13.0.*"),
        ("13.0", "libnvrtc", "cuda-toolkit[nvrtc]==13.0.*"),
        ("12.6", "crt/host_defines.h", "cuda-toolkit[nvcc]==12.6.*"),
        ("12.6", "libnvrtc", "cuda-toolkit[nvrtc]==12.6.*"),
    ],
)
def test_what_wheels_lack_is_named_with_what_brings_it(bare, monkeypatch, version, absent, command):
    bare(version, but=[absent])
    reason = compilers.why_no_cuda()
    assert reason.startswith(f'KeOps needs {absent} of CUDA: pip install "{command}", or name a CUDA toolkit')
    assert "\n" not in reason
    assert prepared() == {}
    assert machine.lacking(f"missing: {reason}") == [absent]
    bare(version)
    assert machine.is_here(absent)
    assert machine.lacking(f"missing: {reason}") == []


def test_the_extra_brings_all_parts(bare):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    command = compilers.install(list(compilers.PARTS))
    assert command == 'pip install "cuda-toolkit[cccl,crt,cudart,nvrtc]==13.0.*"'
    assert [f"{line}==13.0.*" for line in extras["keops-cuda"]] == shlex.split(command)[-1:]


def test_what_the_user_names_wins(bare, monkeypatch, tmp_path):
    bare("13.0")
    write(tmp_path / "own", ["include/cuda.h"])
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "own"))
    assert "CUDA_PATH" in compilers.why_no_cuda()
    assert "name a whole CUDA toolkit, or none" in compilers.why_no_cuda()
    assert prepared() == {"CUDA_PATH": str(tmp_path / "own")}
    write(tmp_path / "own", [*(f"include/{name}" for name in ALL), "lib64/libnvrtc.so", "lib64/libcudart.so"])
    assert compilers.why_no_cuda() is None
    found = prepared()  # its libraries, which no variable of the loader names
    assert found["CUDA_PATH"] == str(tmp_path / "own")
    assert (Path(found["LIBRARY_PATH"]) / "libnvrtc.so").resolve() == tmp_path / "own" / "lib64" / "libnvrtc.so"


def test_a_whole_toolkit_in_a_usual_place_is_left_to_keops_and_a_part_of_one_hides_no_wheels(
    bare, monkeypatch, tmp_path
):
    bare("13.0")
    monkeypatch.setattr(compilers, "_USUAL", [str(tmp_path / "cuda")])
    monkeypatch.setattr(compilers, "find_library", lambda name: "libc.so.6")
    write(tmp_path / "cuda", ["include/cuda.h", "include/nvrtc.h"])
    assert "CUDA_PATH" in prepared()
    for name in _VARIABLES:
        os.environ.pop(name, None)
    write(tmp_path / "cuda", [f"include/{name}" for name in ALL])
    assert prepared() == {}


def test_condas_packages_have_their_headers_elsewhere(bare, monkeypatch, tmp_path):
    root = tmp_path / "conda"
    write(root, [f"targets/x86_64-linux/include/{name}" for name in ALL])
    write(root, ["lib/libnvrtc.so.12", "lib/libcudart.so.12"])
    monkeypatch.setenv("CONDA_PREFIX", str(root))
    assert compilers.why_no_cuda() is None
    assert Path(prepared()["CUDA_PATH"], "include", "nv", "target").is_file()


def test_wheels_of_another_cuda_do_not_count(bare, monkeypatch):
    bare("12.6")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert compilers.lacks() == list(compilers.PARTS)
    assert prepared() == {}


@pytest.mark.parametrize(
    ("error", "said", "words", "remedy"),
    [
        (TypeError("'>=' not supported between 'NoneType' and 'int'"), "", "TypeError: '>='", "cudart"),
        (ValueError("[KeOps] Error : Cpu only mode. (error at line 1 in file /a/b.py)"), "", "only mode.)", "cudart"),
        (KeyError("nvrtc"), "a.h:1: fatal error: nv/target: No such file", "nv/target: No such file", "cudart"),
        (RuntimeError("[KeOps] Cuda error."), "error: f() failed with error CUDA_ERROR_X", "CUDA_ERROR_X", "cudart"),
    ],
)
def test_whatever_keops_raises_on_a_gpu_is_what_it_lacks(bare, monkeypatch, error, said, words, remedy):
    def fails(*given, **options):
        print(said)
        raise error

    bare("13.0", but=["libcudart"])
    monkeypatch.setattr(kernels, "_keops_sum", fails)
    reason = kernels._runs_on_gpu(torch.ones(2, 3))
    assert words in reason
    assert "/a/b.py" not in reason
    assert f'pip install "cuda-toolkit[{remedy}]==13.0.*"' in reason
    bare("13.0")
    assert "update the GPU's driver" in kernels._runs_on_gpu(torch.ones(2, 3))


def test_a_keops_that_was_imported_without_cuda_is_told(bare, monkeypatch):
    bare("13.0")

    class Config:
        class cuda_config:
            get_use_cuda = staticmethod(lambda: False)

    monkeypatch.setitem(sys.modules, "keopscore.config", Config)
    assert "start a new process" in compilers.why_no_cuda()


def test_an_engine_of_another_cuda_is_to_be_removed(bare, monkeypatch):
    def fails(*given, **options):
        print("OSError: libnvrtc.so.12: cannot open shared object file")
        raise OSError("libnvrtc.so.12: cannot open shared object file")

    bare("13.0")
    monkeypatch.setattr(kernels, "_keops_sum", fails)
    monkeypatch.setattr(compilers, "_imported_without", lambda: None)
    assert f"remove {host.keops_folder()}" in kernels._runs_on_gpu(torch.ones(2, 3))


def wheels(version):
    """The folder of the wheels that a user is told to install, kept in the user's cache from one run to the next."""
    folder = Path(host.usable_folder()) / "wheels" / f"cuda-{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as part, pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.version, "cuda", version)
            _, *command = shlex.split(compilers.install(list(compilers.PARTS)))
            target = Path(part, "site")
            done = subprocess.run(
                [sys.executable, "-m", "pip", *command, "--quiet", "--target", target], capture_output=True, text=True
            )
            if done.returncode:
                pytest.skip(f"pip cannot install the wheels of CUDA {version}: {done.stderr.strip().splitlines()[-1:]}")
            target.rename(folder)
    return folder


TRY = """
import torch
torch.version.cuda = {version!r}
from mmdma_core import compilers, kernels
compilers._USUAL = ()
try:
    print(kernels._runs_on_gpu(torch.arange(12.0).reshape(4, 3) / 10))
except MemoryError as error:
    print("MemoryError", error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["13.0", "12.6"])
def test_keops_compiles_and_loads_with_the_wheels_alone(tmp_path, version):
    """Both engines and a formula, by KeOps itself. The driver is a stand-in, so that the sum is wrong in the end."""
    environment = fake_driver.build(tmp_path)
    site = str(wheels(version))
    code = TRY.format(version=version)
    reason = fake_driver.said(code, environment, PYTHONPATH=site)
    assert reason.startswith("KeOps gives"), reason
    built = {path.name.split(".")[0] for path in tmp_path.glob("keops/*/*")}
    assert {"nvrtc_jit", "pykeops_nvrtc"} <= built
    assert any(name.startswith("cubin_") for name in built)
    assert "MemoryError KeOps: CUDA_ERROR_OUT_OF_MEMORY" in fake_driver.said(
        code, environment, PYTHONPATH=site, FAKE_ALLOC="2"
    )
    reason = fake_driver.said(code, environment, PYTHONPATH=site, FAKE_LOAD="222")
    assert "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" in reason
    assert "update the GPU's driver" in reason


@pytest.mark.slow
@pytest.mark.parametrize("version", ["13.0", "12.6"])
def test_the_sources_of_keops_need_every_header(tmp_path, monkeypatch, version):
    """g++ takes both engines with all of the wheels, and names what it lacks without one of them."""
    import keopscore
    import pybind11
    import pykeops

    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(sys, "path", [str(wheels(version)), *sys.path])
    headers = compilers._of_wheels(version).headers
    source = Path(keopscore.__file__).parent
    engines = [
        source / "binders" / "nvrtc" / "nvrtc_jit.cpp",
        Path(pykeops.__file__).parent / "common" / "keops_io" / "pykeops_nvrtc.cpp",
    ]
    options = ["-fsyntax-only", "-std=c++11", "-fpermissive", "-w", "-DMAXIDGPU=0", "-DMAXTHREADSPERBLOCK0=1024"]
    options += ["-DSHAREDMEMPERBLOCK0=49152", "-DnvrtcGetTARGET=nvrtcGetCUBIN", '-DARCHTAG="sm"']
    options += ["-DnvrtcGetTARGETSize=nvrtcGetCUBINSize", f"-I{source}", f"-I{pybind11.get_include()}"]
    options += [f"-I{compilers.python_headers()}"]

    def errors(engine, but=None):
        folder = compilers._linked(
            {f"include/{path.name}": path for f in headers for path in compilers._entries(f) if path.name != but}
        )
        done = subprocess.run(["g++", *options, f"-I{folder}/include", engine], capture_output=True, text=True)
        return done.stderr

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for engine in engines:
        assert errors(engine) == ""
    for part in compilers.PARTS:
        if not part.startswith("lib"):
            assert f"fatal error: {part}" in errors(engines[0], but=part.split("/")[0]), part
