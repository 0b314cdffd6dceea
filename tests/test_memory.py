"""Memory, measured as in a study: KeOps holds O(n), the dense ones n x n matrices, and all what their model says."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT

from benchmarks import records
from mmdma_core import Settings, variant, variants

N, P = 10_000, 10
DATA = 2 * 4 * N * P


@pytest.fixture
def peak(configure, command):
    """Peak host memory of a variant above its data, in bytes, after two timed epochs."""

    def measure(variant):
        study = {"n": [N], "p": [P], "variants": [variant], "epochs": 2, "cell_timeout_s": 280, "sweep_budget_s": 290}
        root = configure(study)
        command("sweep")
        record = records.read(records.record_path(root, variant, P, N))
        assert record.status == "ok", record.detail
        return record.peak_host_bytes - DATA

    return measure


def test_primal_with_keops_holds_o_of_n(peak):
    assert peak("primal-keops") < 64 * 2**20


def test_primal_without_keops_holds_n_x_n_matrices(peak):
    assert peak("primal") > 2**30


# What a process takes beside its arrays (some 40 MiB) must be small against them.
LARGE = 200 * 2**20
# For n > p and for n <= p, points (n, p) of which the first is taken where a variant's arrays are large, or the last.
BRANCHES = {"n > p": [(2600, 2100), (3600, 3400)], "n <= p": [(2600, 3500), (1000, 30_000)]}
MODELLED = [
    name for name in variants() if variant(name).memory_model and not variant(name).missing(torch.device("cpu"))
]


def stated(name, n, p):
    return variant(name).memory_model(n, p, Settings().n_components)


def cell(name, branch):
    points = BRANCHES[branch]
    return next(((n, p) for n, p in points if stated(name, n, p) > LARGE), points[-1])


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Peak host bytes of (variant, n, p), measured in the source tree: what Numba compiles is kept there.

    A small cell goes before each, so that nothing is compiled in a process that is compared.
    """
    folder = tmp_path_factory.mktemp("memory")
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["studies"]["smoke"] |= {"epochs": 2}
    config |= {"study": "smoke", "machine": "here", "device": "cpu", "results": str(folder)}
    config["cpu_threads"] = torch.get_num_threads()  # the fused variants' models count them
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    # glibc keeps freed blocks below a threshold, which it raises to 32 MiB by itself unless it is set.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    asked = {}
    for name in MODELLED:
        for branch in BRANCHES:
            asked.setdefault(cell(name, branch), []).append(name)
    for (n, p), names in asked.items():
        grid = ["--config", folder / "config.yaml", "--n", "200", str(n), "--p", str(p), "--variant", *names]
        command = [sys.executable, "-m", "benchmarks", "sweep", *grid]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)

    def read(name, n, p):
        record = records.read(records.record_path(folder / "here", name, p, n))
        assert record.status == "ok", record.detail
        return record.peak_host_bytes

    return read


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", MODELLED)
def test_the_model_is_what_a_process_holds(held, name, branch):
    n, p = cell(name, branch)
    assert held(name, n, p) == pytest.approx(stated(name, n, p), rel=0.3)
