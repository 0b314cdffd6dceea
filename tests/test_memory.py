"""Memory, measured as in a study: KeOps holds O(n), the dense variants hold n x n matrices."""

import pytest

from benchmarks import records

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
