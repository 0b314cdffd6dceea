"""The primal of a sparse view: its constant, in blocks, how it is checked, and what it holds."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measuring import memory
from mmdma_core import formulations
from mmdma_core.errors import Unsupported
from mmdma_core.inputs import as_views


def view(n, p, density=0.1, scale=None):
    """Entries in [0, 1), or of both signs and from 1 / scale to scale."""
    stream = np.random.default_rng(0)
    x = scipy.sparse.random_array((n, p), density=density, rng=stream, format="csr")
    if scale:
        x.data = stream.choice([-1, 1], x.nnz) * scale ** stream.uniform(-1, 1, x.nnz)
    return as_views(x, x, torch.device("cpu"))[0]


@pytest.fixture(params=["_sparse_blocks", "_dense_blocks"])
def blocks(request, monkeypatch):
    """The constant as it is formed on a CPU, or as on CUDA; the name of what yields its blocks."""
    if request.param == "_dense_blocks":
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return request.param


@pytest.mark.parametrize(("n", "p"), [(60, 25), (25, 60), (2, 1), (2, 3), (40, 40)])
@pytest.mark.parametrize("entries", [1, 50, 700, 2**24])
def test_the_constant_is_the_squared_norm_of_the_kernel_whatever_the_blocks(n, p, entries, blocks, monkeypatch):
    for name in ("_SPARSE_ENTRIES", "_DENSE_ENTRIES"):
        monkeypatch.setattr(formulations, name, entries)
    x = view(n, p, density=0.3)
    dense = x.to_dense().double()
    expected = float((dense @ dense.T).square().sum())
    assert float(formulations.SparsePrimal(x)._constant) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "p"), [(300, 80), (80, 300)])
@pytest.mark.parametrize("scale", [1, 1e3, 1e18])
def test_rounding_alone_is_no_reason_to_refuse(n, p, scale, blocks):
    for density in (0, 1 / (n * p), 0.01, 1):
        x = view(n, p, density, scale)
        dense = x.to_dense().double()
        expected = float((dense @ dense.T).square().sum())
        assert float(formulations.SparsePrimal(x)._constant) == pytest.approx(expected, rel=1e-9)


FAULTS = {
    "all zero": lambda block: block.zero_(),
    "one zero": lambda block: block.view(-1)[block.view(-1).argmax()].zero_(),
    "an entry in a wrong place": lambda block: block.copy_(block.roll(1, -1)),
    "not a number": lambda block: block.view(-1)[3].fill_(torch.nan),
}


@pytest.mark.parametrize(("n", "p"), [(300, 80), (80, 300)])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scale", [None, 10])
def test_a_wrong_block_is_noticed(n, p, fault, scale, blocks, monkeypatch):
    real = getattr(formulations, blocks)

    def wrong(*factors):
        for rows, block in real(*factors):
            if rows.start > 0:  # not in the first
                FAULTS[fault](block if blocks == "_dense_blocks" else block.values())
            yield rows, block

    for name in ("_SPARSE_ENTRIES", "_DENSE_ENTRIES"):
        monkeypatch.setattr(formulations, name, 50 * 80)
    formulations.SparsePrimal(view(n, p, scale=scale))
    monkeypatch.setattr(formulations, blocks, wrong)
    with pytest.raises(RuntimeError, match=r"products of a sparse view are wrong on cpu, .*: give it dense") as said:
        formulations.SparsePrimal(view(n, p, scale=scale))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(("n", "p"), [(300, 80), (80, 300)])
def test_a_wrong_transposed_matrix_is_noticed(n, p, blocks, monkeypatch):
    x = view(n, p)
    right = x.double().t().to_sparse_csr()
    right.values()[7] = 0
    monkeypatch.setattr(torch.Tensor, "to_sparse_csr", lambda tensor: right)
    with pytest.raises(RuntimeError, match="products of a sparse view are wrong"):
        formulations.SparsePrimal(x)


class Operations(TorchDispatchMode):
    """Counts: the most entries that a tensor has, multiplications of dense matrices, products of sparse matrices."""

    largest = multiplications = sparse_products = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        made = operation(*arguments, **(options or {}))
        tensors = [tensor for tensor in arguments if isinstance(tensor, torch.Tensor)]
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.numel())
        if operation is torch.ops.aten.addmm_.default:
            self.multiplications += tensors[1].numel() * tensors[2].shape[1]
        self.sparse_products += sum(tensor.layout == torch.sparse_csr for tensor in tensors[:2]) == 2
        return made


@pytest.mark.parametrize(("n", "p"), [(60, 25), (25, 60)])
def test_sparse_matrices_are_multiplied_on_a_cpu_alone(n, p, blocks):
    with Operations() as counted:
        formulations.SparsePrimal(view(n, p))
    assert (counted.sparse_products > 0) == (blocks == "_sparse_blocks")
    assert (counted.multiplications > 0) == (blocks == "_dense_blocks")


class Counted:
    """A sparse matrix of which the shape is known, and no entry."""

    def __init__(self, *shape):
        self.shape = shape

    def values(self):
        return torch.empty(0, dtype=torch.float64, device="meta")

    def to_dense(self):
        return torch.empty(self.shape, dtype=torch.float64, device="meta")


@pytest.mark.parametrize(
    ("n", "p", "reads"), [(90_261, 13_953, 2), (13_953, 90_261, 2), (1_000_000, 30_000, 7), (10_000_000, 1_000, 1)]
)
def test_at_the_shape_of_citeseq_nothing_on_cuda_comes_near_31_bits(n, p, reads, monkeypatch):
    """By counting, n p entries made dense so many times. A sparse block of 1202 rows has 1.5e10 products."""
    monkeypatch.setattr(formulations, "_rows", lambda matrix, rows: Counted(rows.stop - rows.start, matrix.shape[1]))
    longer, shorter = max(n, p), min(n, p)
    a = Counted(longer, shorter)
    with Operations() as counted:
        made = [block.numel() for _, block in formulations._dense_blocks(a, None, a)]
    assert counted.largest <= 2**27
    assert (sum(made), len(made)) == (shorter**2, reads)
    assert counted.multiplications == longer * shorter**2


def test_more_entries_than_libraries_count_are_refused(monkeypatch):
    x = view(60, 25)
    monkeypatch.setattr(formulations, "_LIMIT", x.values().numel())
    with pytest.raises(Unsupported, match=r"fewer than 2\^31 entries, this one has 150: share its rows among more"):
        formulations.SparsePrimal(x)


@pytest.mark.parametrize("limit", [2**31, 700, 61])
def test_a_dense_matrix_in_a_product_stays_below_the_limit(limit, monkeypatch):
    """60 rows and 25 columns of W: 12 panels at a time, 11, or 1; products and gradients are the same."""
    x = view(60, 40, scale=10)
    primal = formulations.SparsePrimal(x)
    monkeypatch.setattr(formulations, "_LIMIT", limit)
    w = torch.randn(40, 25, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(60, 25, dtype=torch.float64)
    with Operations() as counted:
        e = primal.embed(w)
    (e * weights).sum().backward()
    dense = x.to_dense().double()
    torch.testing.assert_close(e, dense @ w)
    torch.testing.assert_close(w.grad, dense.T @ weights)
    assert limit == 2**31 or counted.largest <= 1500  # put together again


@pytest.mark.parametrize(("n", "p"), [(400, 8000), (8000, 400)])
def test_the_constant_needs_no_matrix_of_the_larger_side(n, p):
    """8000 x 8000 entries with their columns are 0.7 GiB."""
    x = view(n, p)
    formulations.SparsePrimal(view(10, 10))  # what is loaded on first use is not counted
    memory.reset_host_peak()
    before = memory.host_bytes()
    formulations.SparsePrimal(x)
    assert memory.host_peak_bytes() - before < 100 * 2**20


def test_a_product_is_held_in_blocks(monkeypatch):
    """1500 x 1500 entries at a time would be 26 MiB beside as much for what the product takes."""
    monkeypatch.setattr(formulations, "_SPARSE_ENTRIES", 2**16)
    x, held = view(1500, 1500), []
    real = torch.Tensor.values
    monkeypatch.setattr(torch.Tensor, "values", lambda tensor: held.append(tensor.shape) or real(tensor))
    formulations.SparsePrimal(x)
    products = [rows * columns for rows, columns in held if rows != len(x)]
    assert max(products) <= 2**16
    assert sum(rows for rows, _ in held if rows != len(x)) == 1500
