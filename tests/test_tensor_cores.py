"""The pair kernel where tensor cores truncate: its own code in Triton's interpreter, for blocks of a large plane."""

import numpy as np
import pytest
import tensor_cores
import torch

from mmdma_core.fused import pairs_cuda as kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is used only without a GPU"),
]
N, ROWS = 20_000, kernels.tile(10)["M"]


def planes(spread):
    """Two clouds in planes of ten dimensions, of this mean squared norm, along the curve."""
    generator = torch.Generator().manual_seed(0)
    clouds = [(torch.randn(N, 2, generator=generator) @ torch.randn(2, 10, generator=generator)) for _ in "xy"]
    clouds = [cloud * (spread / cloud.square().sum(1).mean()) ** 0.5 for cloud in clouds]
    return [cloud[kernels.morton_order(cloud)] for cloud in clouds]


def compact_blocks(cloud, how_many):
    """Compact blocks of rows from all over the cloud."""
    blocks = cloud[: N // ROWS * ROWS].view(-1, ROWS, 10)
    radii = (blocks - blocks.mean(1, keepdim=True)).square().sum(2).amax(1) * 0.5 * np.log2(np.e)
    compact = (radii <= kernels.COMPACT).nonzero().flatten()
    return compact[torch.linspace(0, len(compact) - 1, how_many).long()].tolist()


def found_by_the_kernel(monkeypatch, x, y, blocks):
    """Sums of k over the rows of these blocks of x, within and across, and the gradient, 0 elsewhere."""
    sums = []
    with monkeypatch.context() as patch:
        tensor_cores.truncate(patch)
        tensor_cores.only(patch, blocks)
        patch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)  # what the other blocks would fill
        patch.setattr(kernels, "squared_mmd", lambda *means: (sums.extend(means), torch.ones(()))[1])
        out_x, out_y = torch.zeros_like(x), torch.zeros_like(y)
        kernels.FusedMMD(N, N, 10, 1.0, True, sort=False)(x, y, out_x, out_y)
    return sums[0], sums[2], out_x


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
    """Sums of k to 2e-7, and the gradient to 1e-6 of its uncancelled scale: a fifth, a tenth of what is allowed."""
    x, y = planes(spread)
    blocks = compact_blocks(x, 3)
    within, across, out_x = found_by_the_kernel(monkeypatch, x, y, blocks)
    rows = (torch.tensor(blocks)[:, None] * ROWS + torch.arange(ROWS)).flatten()
    right_within, right_across, parts = in_float64(x, y, rows)
    assert abs(within / right_within - 1) <= 2e-7
    assert abs(across / right_across - 1) <= 2e-7
    scale = torch.cat(parts).norm()
    assert (out_x[rows] - sum(parts)).norm() <= 1e-6 * scale


def test_products_are_exact_for_sixteen_terms_and_then_cut_off():
    """2^24 + sixteen halves is 2^24 + 8; one half more would be lost, and is, to either side of 0."""
    assert tensor_cores.toward_zero(np.array([2.0**24 + 8.5, -(2.0**24) - 9.9])).tolist() == [
        2.0**24 + 8,
        -(2.0**24) - 8,
    ]
