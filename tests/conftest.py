"""Shared by all tests: a configuration of their own, and why those skip that need what is not here."""

import functools
import importlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import slurm_cluster
import yaml

# Threads that spin where they wait take each other's time as soon as there are more of them than cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when PyTorch is loaded
os.environ["MMDMA_LOCK"] = os.environ.get("PYTEST_XDIST_WORKER", "tests")  # two at a time do not wait for each other
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: its logic then runs in NumPy
    import quick_triton  # noqa: F401

import mmdma_core.compositions  # noqa: F401  (some tests look into the registry)
from mmdma_core import host

ROOT = Path(__file__).parents[1]

_KEPT = ("studies", "quality", "scale", "citeseq")


def own_config():
    """The studies and experiments of config.yaml, all else by default: tests do not follow what a person sets there."""
    held = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    config = {"study": "auto", "plugins": [], "settings": {}, "figures": {"figure_1b_p": [100, 1000]}} | {
        key: held[key] for key in _KEPT
    }
    config["quality"]["data"], config["citeseq"]["path"] = "data", None
    return config


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(own_config()))
    return path


@contextmanager
def new_group(limit):
    """A group of processes, below this one's, with so many bytes of memory; OSError where none may be made."""
    parent = next(folder for folder, _ in host._groups("memory", Path("/")) if folder.is_dir())
    group = parent / f"test-{os.getpid()}"
    group.mkdir()
    try:
        files = [group / "memory.limit_in_bytes", group / "memory.max"]
        next(file for file in files if file.exists()).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def no_users():
    """Why nothing can be run here as another user would, None if it can."""
    if os.geteuid() or not shutil.which("setpriv"):
        return "needs root, and setpriv of util-linux, to do what another user would"
    return None


def no_group():
    """Why no group with a limit of memory can be made here, None if one can."""
    try:
        with new_group(2**30):
            return None
    except (OSError, StopIteration) as error:
        return f"may make no group of processes with a limit of memory: {error!r}"


REAL_DATA = Path(os.environ.get("MMDMA_DATA", ROOT.parent / "shared" / "data"))  # snareseq/ and scgem/
# What the set-up need not bring: marker -> why its tests are skipped here; None: they run.
OPTIONAL = {
    "gpu": None if torch.cuda.is_available() else "needs a CUDA GPU, PyTorch finds none here",
    "tensorflow": None if importlib.util.find_spec("tensorflow") else "needs TensorFlow: pip install '.[tensorflow]'",
    "peers": None if all(map(importlib.util.find_spec, ["ot", "ott"])) else "needs POT, OTT: pip install '.[peers]'",
    "group": no_group(),
    "users": no_users(),
    "slurm": slurm_cluster.refused(),
    "real_data": None if REAL_DATA.is_dir() else f"the real data are not in {REAL_DATA}: set MMDMA_DATA",
}


# What takes longest begins first, so that no process is left alone with it at the end. The smoke study of the workflow
# compiles the formulas of KeOps that most others need.
LONGEST = [
    f"test_{name}.py"
    for name in (
        *("workflow", "cluster", "variants", "memory", "fused_cuda", "joined", "docs", "gpu_check", "scale"),
        *("fourier_fits", "fused", "quality", "published", "views_cuda", "toolkit", "ranks", "batches", "fake_cuda"),
        *("rights", "streams", "memory_models", "faults", "threads", "fingerprint", "citeseq", "approximations"),
        *("tensor_cores", "fourier", "commands", "examples", "asked_again", "compiler", "pictures", "groups_of_cells"),
    )
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    for item in items:
        for marker, reason in OPTIONAL.items():
            if reason and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where CI is set, a test that is skipped for want of anything else has failed: the set-up lacks something."""
    report = yield
    if report.skipped and "CI" in os.environ and not any(marker in item.keywords for marker in OPTIONAL):
        report.outcome, report.longrepr = "failed", f"skipped where CI is set: {report.longrepr}"
    return report


def heed_interrupts():
    """In a child before it starts: take SIGINT, which what runs in a shell's background inherits as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def copy_project(folder):
    """A copy of the project in a new folder, with what Python and Numba have compiled, to use it as a user would."""
    folder.mkdir()
    for name in ("Snakefile", "environment.yaml", "README.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(own_config(), default_flow_style=None, width=1000))
    for name in ("benchmarks", "mmdma_core", "profiles", "results/published-v100", "tests"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path / "project")


@contextmanager
def commands(output, preloaded=(), **environment):
    """A function that runs `python -m benchmarks ...` in a folder, each in a fork of one process, see commands.py.

    program  'benchmarks', 'mmdma', 'snakemake', or 'python' with a script
    """
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("commands.py"), *preloaded],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(folder, *arguments, program="benchmarks", status=0, seconds=300):
        request = {"program": program, "folder": str(folder), "output": str(output)}
        request |= {"arguments": [str(argument) for argument in arguments]}
        print(json.dumps(request), file=server.stdin, flush=True)
        assert select.select([server.stdout], [], [], seconds)[0], f"{arguments} took more than {seconds} s"
        assert int(server.stdout.readline()) == status, output.read_text()
        return output.read_text()

    try:
        yield run
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="session")
def in_folder(tmp_path_factory):
    with commands(tmp_path_factory.mktemp("commands") / "output") as run:
        yield run


@pytest.fixture
def command(project, in_folder):
    """Run a command there; the text of both streams in one."""
    return functools.partial(in_folder, project)


@pytest.fixture
def configure(project):
    """Write keys into the project's config.yaml, and a study named 'test'."""

    def write(study, **keys):
        path = project / "config.yaml"
        config = yaml.safe_load(path.read_text())
        base = {"epochs": 5, "cell_budget_s": 0.5, "cell_timeout_s": 60, "sweep_budget_s": 100}
        config["studies"] = {"test": base | study}
        config |= {"study": "test", "machine": "here", "device": "cpu"} | keys
        path.write_text(yaml.safe_dump(config))
        return project / "results" / "here"

    return write
