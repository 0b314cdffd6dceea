"""The simulated data of the study: two noisy views of one manifold in the plane (paper, Appendix D).

'exact' noise gives the published numbers bit for bit, 'fast' noise is for sizes where those would take too long.
Neither may change: records of other machines were measured on these data.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch

from mmdma_core.inputs import as_device
from mmdma_core.settings import own_state, plain

NOISE = 0.05
_BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**22}  # noise is drawn in row blocks of about this many numbers

# of Philox4x32-10, see `philox`
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

_ANGLE = np.pi / 4
_ROTATION = np.array([[np.cos(_ANGLE), -np.sin(_ANGLE)], [np.sin(_ANGLE), np.cos(_ANGLE)]])
# shape -> (mean, covariance) of each elongated Gaussian group, and a rotation of the plane
_SHAPES = {
    "branch": ([([0, 0], [[20, 0], [0, 1]]), ([0, 8], [[1, 0], [0, 10]])], _ROTATION),
    "triangle": (
        [
            ([0, 1], [[8, 0], [0, 0.05]]),
            ([3.5, 4.33], [[1.7, -1.5], [-1.5, 1.7]]),
            ([-3.5, 4.33], [[1.7, 1.5], [1.5, 1.7]]),
        ],
        None,
    ),
}


class Simulated(NamedTuple):
    """Two simulated views of the same cells, and which cell is which.

    Parameters
    ----------
    x : torch.Tensor
        The first view, (n, p), float32.
    y : torch.Tensor
        The second view, (n, p_y), float32.
    match : numpy.ndarray
        (n,): row i of x is the same cell as row match[i] of y.
    """

    x: torch.Tensor
    y: torch.Tensor
    match: np.ndarray


@own_state()
def simulate(
    shape: str,
    n: int,
    p: int,
    seed: int = 4,
    *,
    p_y: int | None = None,
    noise: Literal["exact", "fast"] = "exact",
    device: str | torch.device = "cpu",
    block_rows: int | None = None,
    rows: slice | None = None,
) -> Simulated:
    """Two noisy linear views of n cells on a manifold in the plane.

    A view is latent (n, 2) @ map (2, p) + 0.05 N(0, 1), and the first view's rows are permuted.

    Parameters
    ----------
    shape : {'branch', 'triangle'}
        Of the manifold: two groups, rotated, or three groups.
    n : int
        Cells, at least 4.
    p : int
        Features of the first view, at least 1.
    seed : int
        NumPy's legacy generator is seeded with seed + 1, as in the published generator.
    p_y : int, optional
        Features of the second view; p by default.
    noise : {'exact', 'fast'}
        'exact': the published numbers, bit for bit, from NumPy's legacy stream on the host. 'fast': the same manifold
        and maps, noise from a counter-based generator on the device, the permutation from a seed of its own; the same
        for any block_rows.
    device : str or torch.device
        Where the views are made.
    block_rows : int, optional
        Rows drawn at a time; nothing of size n x p is held in float64.
    rows : slice, optional
        Which rows of both views to make; all by default. 'exact' draws the others, too, and holds no more of them than
        a block.

    Returns
    -------
    Simulated
        The two views, or these rows of them, and the match of all.

    Raises
    ------
    ValueError
        For an argument that is not allowed, or a GPU that is absent; the message names it and what is.

    References
    ----------
    Meng-Papaxanthos et al., LSMMD-MA, Appendix D.

    Examples
    --------
    >>> from mmdma_core import simulate
    >>> x, y, match = simulate("branch", n=100, p=20)
    >>> x.shape
    torch.Size([100, 20])
    """
    n, p, p_y, seed, block_rows = map(plain, (n, p, p_y, seed, block_rows))
    if shape not in _SHAPES:
        raise ValueError(f"shape must be one of {', '.join(_SHAPES)}, got {shape!r}")
    if n < 4:
        raise ValueError(f"n must be at least 4, got {n}")
    widths = (p, p if p_y is None else p_y)
    if min(widths) < 1:
        raise ValueError(f"p and p_y must be at least 1, got {widths}")
    if not 0 <= seed < 2**32 - 1:
        raise ValueError(f"seed must be in [0, 2^32 - 2], got {seed}")
    if noise not in ("exact", "fast"):
        raise ValueError(f"noise must be 'exact' or 'fast', got {noise!r}")
    device = as_device(device)
    step = block_rows or max(1, _BLOCK_ELEMENTS[device.type] // max(widths))
    low, high, _ = (rows or slice(None)).indices(n)
    stream = np.random.RandomState(seed + 1)
    latent = manifold(shape, n, stream)
    maps = [stream.normal(size=(2, width)) for width in widths]
    if noise == "exact":
        return _exact(latent, maps, stream, device, step, slice(low, high))
    return _fast(latent, maps, seed, device, step, slice(low, high))


def manifold(shape: str, n: int, stream: np.random.RandomState) -> np.ndarray:
    """Return the standardised points (n, 2) of the manifold, in float64."""
    groups, rotation = _SHAPES[shape]
    if shape == "branch":
        first = int(n / 4 * 3)
        sizes = [first, n - first]
    else:
        quarter = n // 4
        sizes = [n - 2 * quarter, quarter, quarter]
    points = [
        stream.multivariate_normal(mean=mean, cov=covariance, size=size)
        for (mean, covariance), size in zip(groups, sizes, strict=True)
    ]
    latent = np.concatenate(points)
    if rotation is not None:
        latent = latent @ rotation
    return (latent - latent.mean(0)) / latent.std(0)


def _exact(
    latent: np.ndarray,
    maps: list[np.ndarray],
    stream: np.random.RandomState,
    device: torch.device,
    step: int,
    rows: slice,
) -> Simulated:
    n = len(latent)
    whole = rows == slice(0, n)
    before = stream.get_state()  # the permutation is drawn last, and says which rows of the first view are asked for
    first = _noisy(latent, maps[0], stream, step, np.arange(n if whole else 0))
    second = _noisy(latent, maps[1], stream, step, np.arange(n)[rows])
    match = stream.choice(n, n, replace=False)
    if whole:
        return Simulated(first.to(device)[torch.from_numpy(match).to(device)], second.to(device), match)
    stream.set_state(before)
    asked = np.sort(match[rows])
    first = _noisy(latent, maps[0], stream, step, asked)
    order = torch.from_numpy(np.searchsorted(asked, match[rows])).to(device)
    return Simulated(first.to(device)[order], second.to(device), match)


def _noisy(
    latent: np.ndarray, mapping: np.ndarray, stream: np.random.RandomState, step: int, rows: np.ndarray
) -> torch.Tensor:
    """These rows of a view, in order, from a stream that draws all of them."""
    n, width = len(latent), mapping.shape[1]
    view = np.empty((len(rows), width), dtype=np.float32)
    for low in range(0, n, step):
        block = latent[low : low + step]
        drawn = block @ mapping + stream.normal(size=(len(block), width)) * NOISE
        begin, end = np.searchsorted(rows, (low, low + step))
        view[begin:end] = drawn if end - begin == len(block) else drawn[rows[begin:end] - low]
        del drawn  # before the next block is
    return torch.from_numpy(view)


def _fast(
    latent: np.ndarray, maps: list[np.ndarray], seed: int, device: torch.device, step: int, rows: slice
) -> Simulated:
    n = len(latent)
    match = np.random.default_rng([seed, n]).permutation(n)
    orders = (match[rows], np.arange(n)[rows])
    views = []
    for index, (mapping, order) in enumerate(zip(maps, orders, strict=True)):
        mapping = torch.from_numpy(mapping.astype(np.float32)).to(device)
        points = torch.from_numpy(latent.astype(np.float32)).to(device)
        view = torch.empty((len(order), mapping.shape[1]), dtype=torch.float32, device=device)
        for low in range(0, len(order), step):
            cells = torch.from_numpy(order[low : low + step]).to(device)
            # Two products and a sum, not a matrix product, whose rounding can depend on the block's size.
            block = points[cells, :1] * mapping[:1] + points[cells, 1:] * mapping[1:]
            view[low : low + step] = block.add_(normal_rows(cells, mapping.shape[1], (seed, index)), alpha=NOISE)
        views.append(view)
    return Simulated(*views, match)


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Return four words of 32 random bits for each counter; words and counters (four each) are int64 in [0, 2^32).

    It is Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", in PyTorch's integer
    operations: what is drawn depends on key and counter alone, so that any block can be drawn on any device.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # they wrap in int64; the two halves are right
        c0, c2 = (
            ((product >> 32) ^ word).bitwise_xor_(k).bitwise_and_(_MASK)
            for product, word, k in ((second, c1, k0), (first, c3, k1))
        )
        c1, c3 = second, first  # of which the lower halves count
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)


def normal_rows(rows: torch.Tensor, p: int, key: tuple[int, int]) -> torch.Tensor:
    """Return rows `rows` (int64) of an endless (., p) matrix of independent N(0, 1) numbers, float32.

    Row r and column j depend on (key, r, j) alone. Uniforms have 24 bits, so the tails end near 5.9 (Box-Muller).
    """
    quads = -(-p // 4)
    column = torch.arange(quads, device=rows.device)[None, :]
    row = rows[:, None] & _MASK
    words = philox((column, row, rows[:, None] >> 32, torch.zeros_like(row)), key)
    normals = []
    for u, v in ((words[0], words[1]), (words[2], words[3])):
        radius = (u >> 8).float().add_(0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
        angle = (v >> 8).float().mul_(2 * math.pi * 2.0**-24)
        normals += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(normals, dim=-1).reshape(len(rows), 4 * quads)[:, :p]
