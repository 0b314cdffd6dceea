"""Memory, measured as in a study: KeOps holds O(n), the dense ones n x n matrices, and all what their model says."""

import pytest
import torch
import yaml
from conftest import commands, own_config

from benchmarks.measuring import records
from mmdma_core import Settings, variant, variants

pytestmark = pytest.mark.slow

SMALL = 200  # cells of the measurement that is subtracted: beside its arrays a process takes some 40 MiB
# What the larger measurement takes more, at least: against this the rest is small. Numba takes up to 60 MiB to load
# what it has compiled, and gives them back before the arrays of a large problem are there.
LARGE, LARGE_WITH_NUMBA = 70 * 2**20, 200 * 2**20
# For n > p and for n <= p, points (n, p), the quickest first, of which the first is taken where a variant's arrays are
# large, or the last, where those of the small measurement hide what Numba takes.
BRANCHES = {
    "n > p": [(600, 550), (1000, 900), (1300, 1200), (1600, 1500), (1800, 1700), (2600, 2500)],
    "n <= p": [(600, 650), (1000, 1100), (1300, 1400), (800, 15_000), (500, 20_000)],
}
MODELLED = [
    name for name in variants() if variant(name).memory_model and not variant(name).missing(torch.device("cpu"))
]
N, P = 4_100, 10
MATRIX = 4 * N**2  # bytes of one n x n matrix
DATA = 2 * 4 * N * P


def stated(name, n, p):
    return variant(name).memory_model(n, p, Settings().n_components)


def added(name, n, p):
    return stated(name, n, p) - stated(name, SMALL, p)


def cell(name, branch):
    large, points = LARGE_WITH_NUMBA if "numba" in variant(name).requires else LARGE, BRANCHES[branch]
    return next(((n, p) for n, p in points if added(name, n, p) > large), points[-1])


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Peak host bytes of (variant, n, p) after two timed epochs."""
    folder = tmp_path_factory.mktemp("memory")
    config = own_config()
    config["studies"]["smoke"] |= {"epochs": 2}
    config |= {"study": "smoke", "machine": "here", "device": "cpu", "exact_data_below": 1e9}  # the faster here
    config["cpu_threads"] = torch.get_num_threads()  # the fused variants' models count them
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    asked = {(N, P): ["primal", "primal-keops"]}
    for name in MODELLED:
        for branch in BRANCHES:
            asked.setdefault(cell(name, branch), []).append(name)
    # glibc keeps freed blocks below a threshold, which it raises to 32 MiB by itself unless it is set.
    with commands(folder / "output", MODELLED, MALLOC_MMAP_THRESHOLD_=str(2**18)) as run:
        # First what is compiled, so that this is in no process that is compared.
        run(folder, "sweep", "--n", 100, "--p", 50, "--variant", *MODELLED)
        for (n, p), names in asked.items():
            run(folder, "sweep", "--n", SMALL, n, "--p", p, "--variant", *names)

    def read(name, n, p):
        record = records.read(records.record_path(folder / "results" / "here", name, p, n))
        assert record.status == "ok", record.detail
        return record.peak_host_bytes

    return read


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", MODELLED)
def test_the_model_is_what_a_process_holds(held, name, branch):
    n, p = cell(name, branch)
    assert held(name, n, p) - held(name, SMALL, p) == pytest.approx(added(name, n, p), rel=0.15)


def test_primal_with_keops_holds_o_of_n(held):
    assert held("primal-keops", N, P) - DATA < 64 * 2**20 < MATRIX


def test_primal_without_keops_holds_n_x_n_matrices(held):
    assert held("primal", N, P) - DATA > 2.8 * MATRIX
