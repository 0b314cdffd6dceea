"""The simulated data: the published numbers bit for bit, and the fast mode that no block size changes."""

import tracemalloc

import numpy as np
import pytest
import torch

from mmdma_core import simulate
from mmdma_core.simulation import normal_rows, philox


def published(n, p, seed, p_y):
    """The published generator's draws, written down plainly: NumPy's global legacy stream, everything at once."""
    np.random.seed(seed + 1)
    n1 = int(n / 4 * 3)
    first = np.random.multivariate_normal([0, 0], [[20, 0], [0, 1]], n1)
    second = np.random.multivariate_normal([0, 8], [[1, 0], [0, 10]], n - n1)
    angle = np.pi / 4
    latent = np.concatenate([first, second])
    latent = latent @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    latent = (latent - latent.mean(0)) / latent.std(0)
    maps = [np.random.normal(size=(2, width)) for width in (p, p_y)]
    x, y = ((latent @ m + np.random.normal(size=(n, m.shape[1])) * 0.05).astype(np.float32) for m in maps)
    match = np.random.choice(n, n, replace=False)
    return x[match], y, match


@pytest.mark.parametrize(
    ("n", "p", "seed", "p_y", "block_rows"),
    [
        (1000, 100, 4, 100, None),
        (37, 3, 7, 5, 10),
        (501, 1000, 4, 1000, 64),
        (5, 1, 0, 1, 1),
        (2000, 700, 4, 700, None),
    ],
)
def test_branch_is_the_published_data_bit_for_bit(n, p, seed, p_y, block_rows):
    found = simulate("branch", n, p, seed, p_y=p_y, block_rows=block_rows)
    x, y, match = published(n, p, seed, p_y)
    assert found.x.dtype == found.y.dtype == torch.float32
    assert np.array_equal(found.x.numpy(), x)
    assert np.array_equal(found.y.numpy(), y)
    assert np.array_equal(found.match, match)


@pytest.mark.parametrize("noise", ["exact", "fast"])
@pytest.mark.parametrize("shape", ["branch", "triangle"])
def test_both_views_come_from_the_same_points(shape, noise):
    """With the permutation undone, the two views span the same two directions of the cells' space, but for noise."""
    x, y, match = simulate(shape, 402, 60, noise=noise)
    assert sorted(match) == list(range(402))
    unpermuted = torch.empty_like(x)
    unpermuted[torch.from_numpy(match)] = x
    leading = [torch.linalg.svd(view - view.mean(0), full_matrices=False)[0][:, :2] for view in (unpermuted, y)]
    cosines = torch.linalg.svdvals(leading[0].T @ leading[1])
    assert cosines.min() > 0.999


def test_triangle_has_three_groups():
    """A half of the cells lies along the bottom, a quarter along each side; standardising only stretches that."""
    from mmdma_core.simulation import manifold

    points = manifold("triangle", 4001, np.random.RandomState(5))
    assert points.shape == (4001, 2)
    bottom, right, left = points[:2001], points[2001:3001], points[3001:]
    assert bottom[:, 1].std() < 0.2
    assert right[:, 0].mean() > 0.9 > 0 > -0.9 > left[:, 0].mean()
    assert np.corrcoef(right.T)[0, 1] < -0.8
    assert np.corrcoef(left.T)[0, 1] > 0.8


def test_the_fast_mode_does_not_depend_on_the_block_size():
    whole, blocks = (simulate("branch", 333, 45, p_y=18, noise="fast", block_rows=rows) for rows in (None, 7))
    assert torch.equal(whole.x, blocks.x)
    assert torch.equal(whole.y, blocks.y)
    assert np.array_equal(whole.match, blocks.match)


@pytest.mark.parametrize("noise", ["exact", "fast"])
@pytest.mark.parametrize("rows", [slice(0, 333), slice(333, 1001), slice(10, 12)])
def test_rows_alone_are_those_of_the_whole(noise, rows):
    whole = simulate("branch", 1001, 7, p_y=9, noise=noise, block_rows=100)
    some = simulate("branch", 1001, 7, p_y=9, noise=noise, block_rows=64, rows=rows)
    assert torch.equal(some.x, whole.x[rows])
    assert torch.equal(some.y, whole.y[rows])
    assert np.array_equal(some.match, whole.match)


def test_the_fast_mode_has_the_same_manifold_and_maps():
    """Fast and exact views differ by noise alone: each has its own, of standard deviation 0.05."""
    for seed in (4, 9):
        exact, fast = (simulate("branch", 500, 80, seed, noise=noise) for noise in ("exact", "fast"))
        assert (exact.y - fast.y).std().item() == pytest.approx(0.05 * 2**0.5, rel=0.03)
        assert (exact.y - fast.y).mean().abs() < 1e-3
    a, b = (simulate("branch", 500, 80, seed, noise="fast") for seed in (4, 9))
    assert not torch.equal(a.x, b.x)


@pytest.mark.gpu
def test_the_fast_mode_gives_the_same_data_on_the_gpu():
    on_cpu, on_gpu = (simulate("branch", 333, 45, noise="fast", device=device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_cpu.x, on_gpu.x.cpu(), rtol=0, atol=1e-5)
    assert np.array_equal(on_cpu.match, on_gpu.match)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_counter_based_numbers_are_standard_normal():
    sample = normal_rows(torch.arange(2000), 501, (4, 0)).double()
    assert sample.mean().abs() < 4e-3  # 4 standard errors of a million numbers
    assert sample.var().item() == pytest.approx(1, abs=6e-3)
    assert (sample**3).mean().abs() < 0.016
    assert (sample**4).mean().item() == pytest.approx(3, abs=0.04)
    assert torch.corrcoef(sample[:, :50].T).fill_diagonal_(0).abs().max() < 0.11
    assert torch.unique(sample).numel() > 0.9 * 2**20 * 0.9


def test_nothing_of_size_n_times_p_is_held_in_float64():
    simulate("branch", 10, 10)
    tracemalloc.start()
    n, p = 20_000, 200
    simulate("branch", n, p)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 4 * n * p + 24 * 2**20  # two float32 views and a few row blocks; a float64 view is 32 MB more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("brunch", 10, 10), "shape must be one of branch, triangle"),
        (("branch", 3, 10), "n must be at least 4"),
        (("branch", 10, 0), "p and p_y must be at least 1"),
        (("branch", 10, 10, -1), r"seed must be in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate(*arguments)
    with pytest.raises(ValueError, match="noise must be 'exact' or 'fast'"):
        simulate("branch", 10, 10, noise="none")
