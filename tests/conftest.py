"""Shared by all tests: plugins of config.yaml are registered, and GPU tests say why they skip."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: its logic then runs in NumPy

ROOT = Path(__file__).parents[1]

for module in yaml.safe_load((ROOT / "config.yaml").read_text())["plugins"]:
    importlib.import_module(module)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, PyTorch finds none here"))


@pytest.fixture
def project(tmp_path):
    """A copy of the project in an empty folder, to run commands in as a user would."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("Snakefile", "config.yaml", "environment.yaml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("benchmarks", "mmdma_core", "profiles", "results/published-v100", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def command(project):
    """Run `python -m benchmarks ...` there; the text of both streams in one."""

    def run(*arguments, status=0):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *arguments],
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(project)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    return run


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
