"""The pair kernel where tensor cores truncate: its own code in Triton's interpreter, for blocks of a large plane."""

import math

import numpy as np
import pytest
import tensor_cores
import torch

from mmdma_core.fused import pair_kernels
from mmdma_core.fused import pairs_cuda as kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is used only without a GPU"),
]
N = 20_000


def planes(spread):
    """Two clouds in planes of ten dimensions, of this mean squared norm."""
    generator = torch.Generator().manual_seed(0)
    clouds = [(torch.randn(N, 2, generator=generator) @ torch.randn(2, 10, generator=generator)) for _ in "xy"]
    return [cloud * (spread / cloud.square().sum(1).mean()) ** 0.5 for cloud in clouds]


def found_by_the_kernel(monkeypatch, x, y, how_many):
    """Sums of k over some compact blocks of rows of x, within and across; the gradient, 0 elsewhere; which rows."""
    summing = kernels.FusedMMD(N, N, 10, 1.0, True)
    summing.sort(x, y)
    places = torch.arange(N // summing.tile.M * summing.tile.M).view(-1, summing.tile.M)
    points = x[summing._orders[0][places]] * (0.5 * math.log2(math.e)) ** 0.5
    radii = (points - points.mean(1, keepdim=True)).square().sum(2).amax(1)
    compact = (radii <= pair_kernels.COMPACT).nonzero().flatten()
    some = compact[torch.linspace(0, len(compact) - 1, how_many + 2).long()[1:-1]]
    out_x, out_y = torch.zeros_like(x), torch.zeros_like(y)
    with monkeypatch.context() as patch:
        tensor_cores.truncate(patch)
        tensor_cores.only(patch, {"compact_blocks": some.tolist(), "wide_blocks": []})
        patch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)  # what the other blocks would fill
        sums = []
        patch.setattr(kernels, "squared_mmd", lambda *means: (sums.extend(means), torch.ones(()))[1])
        summing(x, y, out_x, out_y)
    return sums[0], sums[2], out_x, summing._orders[0][places[some]].flatten()


def in_float64(x, y, rows):
    """The same sums, and the two parts of the rows' gradients."""
    sums, parts = [], []
    for cloud, weight in ((x, 1 / (N * (N - 1))), (y, -1 / N**2)):
        total, gradients = 0.0, []
        for some in rows.split(64):
            differences = cloud[None].double() - x[some, None].double()
            k = torch.exp(differences.square().sum(2) / -2)
            if cloud is x:
                k[torch.arange(len(some)), some] = 0
            total += k.sum()
            gradients.append(2 * weight * torch.einsum("ij,ijk->ik", k, differences))
        sums.append(total)
        parts.append(torch.cat(gradients))
    return *sums, parts


@pytest.mark.parametrize("spread", [2.0, 100.0])
def test_means_and_gradient_where_tensor_cores_truncate(monkeypatch, spread):
    """Means to 2e-7 of their mean and the gradient to 1e-6, a fifth and a tenth of what common.check_mmd allows."""
    x, y = planes(spread)
    within, across, out_x, rows = found_by_the_kernel(monkeypatch, x, y, 3)
    right_within, right_across, parts = in_float64(x, y, rows)
    allowed = 2e-7 * (right_within + right_across) / 2
    assert abs(within - right_within) <= allowed
    assert abs(across - right_across) <= allowed
    scale = torch.cat(parts).norm()
    assert (out_x[rows] - sum(parts)).norm() <= 1e-6 * scale


def test_products_are_exact_for_sixteen_terms_and_then_cut_off():
    """2^24 + sixteen halves is 2^24 + 8; one half more would be lost, and is, to either side of 0."""
    assert tensor_cores.toward_zero(np.array([2.0**24 + 8.5, -(2.0**24) - 9.9])).tolist() == [
        2.0**24 + 8,
        -(2.0**24) - 8,
    ]
