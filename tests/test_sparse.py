"""The primal of a sparse view: its constant, in blocks, and what it holds."""

import numpy as np
import pytest
import scipy.sparse
import torch

from benchmarks.measuring import memory
from mmdma_core.objective import sparse
from mmdma_core.objective.inputs import as_views


def view(n, p, density=0.1):
    x = scipy.sparse.random_array((n, p), density=density, rng=np.random.default_rng(0), format="csr")
    return as_views(x, x, torch.device("cpu"))[0]


@pytest.mark.parametrize(("n", "p"), [(60, 25), (25, 60), (2, 1)])
@pytest.mark.parametrize("entries", [1, 50, 700, 2**24])
def test_the_constant_is_the_squared_norm_of_the_kernel_whatever_the_blocks(n, p, entries, monkeypatch):
    monkeypatch.setattr(sparse, "_BLOCK_ENTRIES", entries)
    x = view(n, p, density=0.3)
    dense = x.to_dense().double()
    expected = float((dense @ dense.T).square().sum())
    assert float(sparse.SparsePrimal(x)._constant) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "p"), [(400, 8000), (8000, 400)])
def test_the_constant_needs_no_matrix_of_the_larger_side(n, p):
    """8000 x 8000 entries with their columns are 0.7 GiB."""
    x = view(n, p)
    sparse.SparsePrimal(view(10, 10))  # what is loaded on first use is not counted
    memory.reset_host_peak()
    before = memory.host_bytes()
    sparse.SparsePrimal(x)
    assert memory.host_peak_bytes() - before < 100 * 2**20


def test_a_product_is_held_in_blocks(monkeypatch):
    """1500 x 1500 entries at a time would be 26 MiB beside as much for what the product takes."""
    monkeypatch.setattr(sparse, "_BLOCK_ENTRIES", 2**16)
    x, held = view(1500, 1500), []
    real = torch.Tensor.values
    monkeypatch.setattr(torch.Tensor, "values", lambda tensor: held.append(tensor.shape) or real(tensor))
    sparse.SparsePrimal(x)
    products = [rows * columns for rows, columns in held if rows != len(x)]
    assert max(products) <= 2**16
    assert sum(rows for rows, _ in held if rows != len(x)) == 1500
