"""What is asked again once there is more memory, a module or a compiler; and that the sweep says so."""

import json
import os
import shutil

import pynvml
import pytest
from conftest import ROOT, commands
from test_records import known, load, with_study

import mmdma_core
from benchmarks.measuring import machine, records
from benchmarks.measuring.memory import GIB
from mmdma_core import compilers, host

# What is free, and whether there is a compiler, is read from files; a variant that needs what `needs` says.
CIRCUMSTANCES = """
import os
import sys
from pathlib import Path

from mmdma_core import host


def told(name):
    return Path(name).read_text() if Path(name).exists() else ""


if told("free"):
    host.free_bytes = lambda: int(told("free")) * 2**20
if told("kernel"):
    host.killed_since = lambda before: True
if told("path"):
    os.environ["PATH"] = told("path")
sys.path.append("installed/later")  # not beside the plugin, whose own modules are part of the question
"""
PLUGIN = """
import os
import time

import torch
from circumstances import told
from faulty import Faulty, _raise
from mmdma_core import MissingDependency, host, register

need = told("need")


@register("needy", label="needy", reference="a test", requires=(lambda device: time.sleep(0.3 * (need == "time")),))
def start(x, *_):
    if need == "memory" and host.free_bytes() < 2**30:
        return Faulty(x, lambda: _raise(MemoryError("no more")))
    if need == "memory of the group":
        return Faulty(x, lambda: os.kill(os.getpid(), 9))
    if need == "module":
        import brought_later
    if need == "compiler" and os.environ["PATH"] == "nowhere":
        raise RuntimeError("[KeOps] Error : No C++ compiler found.")
    if need == "compiler, in words" and os.environ["PATH"] == "nowhere":
        raise MissingDependency("KeOps needs g++: install it")
    if need == "compiler of the child" and told("killed"):
        print("g++: fatal error: Killed signal terminated program cc1plus", flush=True)
        raise RuntimeError("no formula")
    if need == "threads":
        import numba
        both = torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS
        torch.set_num_threads(2)
        raise RuntimeError(f"threads: {both}")
    if need == "fewer threads":
        torch.set_num_threads(2)
    return Faulty(x, lambda: None)
"""


@pytest.fixture
def needy(project, configure):
    """Write the plugin, what it needs, and files that say what is there; returns the records' reader."""
    shutil.copy(ROOT / "tests" / "faulty.py", project)
    (project / "needy.py").write_text(PLUGIN)
    (project / "circumstances.py").write_text(CIRCUMSTANCES)
    (project / "stand_ins").write_text("circumstances")

    def write(need, n=(200,), keys=(), **there):
        root = configure({"n": list(n), "p": [10], "variants": ["needy"]}, plugins=["faulty", "needy"], **dict(keys))
        say(project, need=need, **there)
        return lambda n=200: records.read(records.record_path(root, "needy", 10, n))

    return write


def say(project, **there):
    for name, content in there.items():
        (project / name).write_text(str(content)) if content is not None else (project / name).unlink()


def test_an_oom_is_asked_again_when_more_memory_is_free_and_what_was_skipped_for_it(needy, command, project):
    read = needy("memory", n=(200, 300), free=1000)
    command("sweep")
    assert (read().status, read(300).status) == ("oom", "skipped")
    assert read().ran_out_of == {"host": 800 * 2**20}
    say(project, free=1050)  # the coming and going of others
    assert command("sweep") == ""
    say(project, free=4000)
    assert ", 2 to run" in command("plan")
    said = command("sweep").splitlines()
    assert said[0] == (
        "needy n = 200 p = 10: asked again, 800 MiB of host memory ran out, 3.12 GiB are within reach now"
    )
    assert (read().status, read(300).status) == ("ok", "ok")
    assert command("sweep") == ""


def test_what_the_process_held_before_is_not_the_cells(needy, command):
    """Not even while it looks for what the variant requires, before it has said how much that is."""
    read = needy("time", keys={"host_memory_gib": 0.1})
    command("sweep")
    assert read().status == "ok", read().detail


def test_a_kill_by_the_kernel_is_out_of_memory(needy, command):
    read = needy("memory of the group", n=(200, 300), kernel="counts", keys={"host_memory_gib": 64})
    command("sweep")
    assert (read().status, read(300).status) == ("oom", "skipped")
    assert read().detail == "killed by the kernel for want of memory during first start"


def test_a_kill_that_the_kernel_did_not_count_is_an_error(needy, command):
    read = needy("memory of the group", keys={"host_memory_gib": 64})
    command("sweep")
    assert (read().status, read().ran_out_of) == ("error", {})


def test_a_compiler_that_the_kernel_ends_is_out_of_memory(needy, command, project):
    read = needy("compiler of the child", killed="yes", kernel="counts")
    command("sweep")
    assert read().status == "oom"
    say(project, kernel=None)
    command("sweep", "--set", "settings={sigma: 2.0}")
    assert read().status == "error"


@pytest.mark.parametrize(
    ("need", "status"), [("compiler", "error"), ("compiler, in words", "missing_dependency"), ("module", "error")]
)
def test_what_was_missing_is_asked_again_once_it_is_there(needy, command, project, need, status):
    read = needy(need, path="nowhere")
    command("sweep")
    name = "brought_later" if need == "module" else "g++"
    assert (read().status, read().missing) == (status, [name])
    assert command("sweep") == ""
    if need == "module":
        (project / "installed" / "later").mkdir(parents=True)
        (project / "installed" / "later" / "brought_later.py").write_text("")
    else:
        (project / "g++").write_text("")
        (project / "g++").chmod(0o755)
        say(project, path=project)
    said = command("sweep").splitlines()
    assert said[0] == f"needy n = 200 p = 10: asked again, {name} was missing and is here now"
    assert read().status == "ok"
    assert command("sweep") == ""


def test_threads_are_the_studys_whatever_the_shell_exports_and_recorded_as_used(needy, tmp_path_factory, project):
    read = needy("threads", keys={"cpu_threads": 3})
    output = tmp_path_factory.mktemp("threads") / "output"
    with commands(output, NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1", OMP_DYNAMIC="true") as run:
        run(project, "sweep")
        assert "threads: (3, 3)" in read().detail
        assert read().machine["cpu_threads"] == 3
        say(project, need="fewer threads")
        run(project, "sweep", "--retry")
        assert (read().status, read().machine["cpu_threads"]) == ("ok", 2)  # the variant has set its own


@pytest.fixture
def small(tmp_path):
    return load(tmp_path)


def ran_out(small, kind, amount, n=100, variant="dual", **fields):
    known(small, variant, n, 10, "oom", ran_out_of={kind: int(amount)}, **fields)


@pytest.mark.parametrize(
    ("limit", "then", "free", "stays"),
    [
        (None, 8, 10, True),
        (None, 8, 10.9, True),
        (None, 8, 11.1, False),
        (None, 8, 2, True),
        (4.0, 4, 100, True),  # the study's limit is what ran out
        (4.0, 1, 1.05, True),
        (4.0, 1, 1.2, False),
    ],
)
def test_an_oom_stays_known_until_clearly_more_is_within_reach(small, monkeypatch, limit, then, free, stays):
    monkeypatch.setattr(host, "free_bytes", lambda: int(free * GIB))
    limited = with_study(small, host_gib=limit)
    ran_out(limited, "host", then * GIB)
    known(limited, "dual", 200, 10, "skipped", detail="oom at n = 100", implied_by=100)
    assert bool(limited.known("dual", 100, 10)) == stays
    assert bool(limited.known("dual", 200, 10)) == stays
    assert (limited.asked_again("dual", 100, 10) is None) == stays


def test_an_oom_on_a_gpu_is_asked_again_when_more_of_it_is_free(small, monkeypatch):
    free = {"device": 10 * GIB}
    monkeypatch.setattr("benchmarks.measuring.memory.device_free_bytes", lambda device: free["device"])
    monkeypatch.setattr(host, "free_bytes", lambda: 900 * GIB)
    ran_out(small, "device", 10 * GIB)
    assert small.known("dual", 100, 10)
    free["device"] = 70 * GIB
    assert not small.known("dual", 100, 10)
    emulated = with_study(small, gpu_gib=10.0)
    ran_out(emulated, "device", 10 * GIB)
    assert emulated.known("dual", 100, 10)
    free["device"] = None
    assert small.known("dual", 100, 10) is None  # its limit differs from the record's
    ran_out(small, "device", 10 * GIB)
    assert small.known("dual", 100, 10)


def test_an_older_record_that_does_not_say_what_ran_out_stays_known(small):
    known(small, "dual", 100, 10, "oom")
    known(small, "primal-keops", 100, 10, "error", detail="No module named 'pykeops_cpp_1'")
    for variant in ("dual", "primal-keops"):
        path = small.path(variant, 100, 10)
        content = json.loads(path.read_text())
        del content["ran_out_of"], content["missing"]
        path.write_text(json.dumps(content))
        assert small.known(variant, 100, 10)


@pytest.mark.parametrize("status", ["error", "missing_dependency"])
def test_what_is_missing_is_looked_for(small, monkeypatch, status):
    monkeypatch.setenv("PATH", "nowhere")
    monkeypatch.delenv("CXX", raising=False)
    known(small, "primal-keops", 100, 10, status, missing=["g++"])
    known(small, "dual", 100, 10, status, missing=["no_such_module"])
    assert small.known("primal-keops", 100, 10)
    assert small.known("dual", 100, 10)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("CXX", "sh")  # any program stands for a compiler
    assert not small.known("primal-keops", 100, 10)
    assert small.known("dual", 100, 10)
    known(small, "dual", 100, 10, status, missing=["no_such_module", "json"])
    assert not small.known("dual", 100, 10)


def test_a_missing_dependency_that_names_nothing_is_tried_every_time(small):
    assert not mmdma_core.variant("primal-keops").absent()
    known(small, "primal-keops", 100, 10, "missing_dependency", detail="KeOps does not run on the GPU")
    assert not small.known("primal-keops", 100, 10)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("ModuleNotFoundError: No module named 'pykeops_cpp_304a365217'", ["g++"]),
        ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", ["gcc"]),
        ("InvalidCxxCompiler: No working C++ compiler found", ["g++"]),
        ("variant 'primal-keops' needs g++: apt install g++", ["g++"]),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'g++'", ["g++"]),
        ("a.c:1: fatal error: Python.h: No such file or directory", []),
        ("ModuleNotFoundError: No module named 'no_such_module'", ["no_such_module"]),
        ("ModuleNotFoundError: No module named 'json.no_such_part'; 'json' is no package", []),
        ("ModuleNotFoundError: No module named 'json'", []),
        ("RuntimeError: a bug", []),
    ],
)
def test_what_the_words_of_a_cell_name_and_is_not_here(monkeypatch, words, missing):
    monkeypatch.setenv("PATH", "nowhere")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert machine.lacking(words) == missing
    monkeypatch.setenv("PATH", os.environ.get("PATH", "") + os.pathsep + os.defpath)
    monkeypatch.setenv("CXX", "sh")
    monkeypatch.setenv("CC", "sh")
    assert machine.lacking(words) == [name for name in missing if name == "no_such_module"]


def test_headers_are_looked_for_where_they_belong(monkeypatch, tmp_path):
    monkeypatch.setattr(compilers, "python_headers", lambda: str(tmp_path))
    assert machine.lacking("probe.c:1: fatal error: Python.h: No such file") == ["Python.h"]
    (tmp_path / "Python.h").write_text("")
    assert machine.is_here("Python.h")
    monkeypatch.setattr(compilers, "lacks", lambda: ["nv/target"])
    assert machine.lacking("KeOps needs crt/host_defines.h, nv/target of CUDA: pip install ...") == ["nv/target"]


def test_on_a_cpu_no_gpu_is_asked_for(small, monkeypatch):
    """A name that means no GPU must not end a study of the CPU."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: pytest.fail("the driver is asked"))
    machine._gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "nonsense")
    ran_out(small, "host", 2**50)
    assert small.known("dual", 100, 10)
