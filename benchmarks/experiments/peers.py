"""What a user could take in place of MMD-MA: matchings with other objectives, here two of Gromov-Wasserstein (GW).

GW couples the cells of x (n_x, p_x) and y (n_y, p_y) so that distances within x resemble distances within y: it
minimises sum_ijkl (D_x[i, k] - D_y[j, l])^2 T[i, j] T[k, l] over plans T (n_x, n_y) with row sums 1 / n_x and column
sums 1 / n_y. Both peers hold T in a form that is linear in the cells, and nothing of size n x n.

FOSCTTM and its kin want both views in one space. A plan gives it as in SCOT (Demetci et al. 2022), by barycentric
projection: e_x[i] = sum_j T[i, j] y[j] / sum_j T[i, j], and e_y is y itself. That is the published way to score a plan,
and all that a plan says about the place of a cell of x; it is not symmetric, x moves and y stays.

GW can end in a mirror image of the truth, and the loss of that can be the lower one. As with MMD-MA, a user takes the
start of the lowest loss. Losses of different peers are not comparable.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans

_PARTS = 200  # of each view
_CLUSTERED = 20_000  # cells that place the centres of the parts; all others join the nearest
_STARTS = 5  # of the plan between parts
_RANDOM_SHARE = 0.1  # of a start; more of it ends in poor plans more often
_RANK = 10
_ITERATIONS = {"inner_iterations": 10, "min_iterations": 500, "max_iterations": 1000}

Block = tuple[np.ndarray, np.ndarray, csr_matrix]  # cells of x, cells of y, the plan between them


@dataclass(frozen=True)
class Match:
    """Both views in one space, row by row those that were given.

    e_x      (n_x, p_y): x, projected
    e_y      (n_y, p_y): y
    loss     the peer's own objective, to choose among starts
    seconds  'prepare_s', 'compile_s', 'fit_s': what comes before, what JAX compiles, the rest with the projection
    """

    e_x: np.ndarray
    e_y: np.ndarray
    loss: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Peer:
    """A matching of its own objective; `fit` takes x, y and the seed of its start."""

    name: str
    label: str
    reference: str
    requires: tuple[str, ...]
    fit: Callable[[np.ndarray, np.ndarray, int], Match]


def absent(peer: Peer) -> tuple[str, ...]:
    """Return the modules that `peer.fit` requires and that cannot be imported here."""
    return tuple(module for module in peer.requires if importlib.util.find_spec(module) is None)


def missing(peer: Peer) -> str | None:
    """Say what to install before `peer.fit` can run: the detail of missing_dependency; None where all is there."""
    modules = absent(peer)
    if not modules:
        return None
    return f"{peer.name} needs {', '.join(modules)}: pip install 'mmdma-benchmark[peers]'"


# Quantised Gromov-Wasserstein


def _quantised(x: np.ndarray, y: np.ndarray, seed: int) -> Match:
    """Exact GW between the centres of parts, then sorted matching inside each coupled pair of parts.

    Parts are those of k-means, D the Euclidean distances of their centres, weights the shares of cells. Views of up to
    _PARTS cells have a part for each cell: this is then plain GW. Time O(n p _PARTS), memory O(n p).
    """
    import ot  # noqa: F401, before the clock starts

    started = time.perf_counter()
    (parts_x, d_x), (parts_y, d_y) = (_parts(view, seed) for view in (x, y))
    w_x, w_y = (np.array([len(cells) for cells in parts]) for parts in (parts_x, parts_y))
    w_x, w_y = w_x / len(x), w_y / len(y)
    prepared = time.perf_counter()
    plan, loss = _plan_of_parts(d_x, d_y, w_x, w_y, seed)
    e_x = projected(blocks(plan, parts_x, parts_y), y, len(x))
    seconds = {"prepare_s": prepared - started, "compile_s": 0.0, "fit_s": time.perf_counter() - prepared}
    return Match(e_x, y, loss, seconds)


def _plan_of_parts(
    d_x: np.ndarray, d_y: np.ndarray, w_x: np.ndarray, w_y: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """Of _STARTS plans between parts the one of the lowest loss, and that loss; one costs little beside k-means."""
    import ot

    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_STARTS):
        # Transport between random places on a line: a random plan with these weights, and few entries.
        random = ot.emd_1d(rng.random(len(w_x)), rng.random(len(w_y)), w_x, w_y)
        start = (1 - _RANDOM_SHARE) * np.outer(w_x, w_y) + _RANDOM_SHARE * random
        found.append(ot.gromov.gromov_wasserstein(d_x, d_y, w_x, w_y, G0=start, symmetric=True, log=True))
    plan, log = min(found, key=lambda one: one[1]["gw_dist"])
    return plan, float(log["gw_dist"])


def _parts(view: np.ndarray, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Of each part its cells, nearest to the centre first; and the distances between the centres."""
    some = np.random.default_rng(seed).choice(len(view), min(len(view), _CLUSTERED), replace=False)
    means = KMeans(min(_PARTS, len(view)), n_init=1, max_iter=30, random_state=seed).fit(view[some])
    used, labels = np.unique(means.predict(view), return_inverse=True)
    centres = means.cluster_centers_[used]
    order = np.lexsort((np.linalg.norm(view - centres[labels], axis=1), labels))
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    return np.split(order, np.cumsum(np.bincount(labels))[:-1]), distances


def blocks(plan: np.ndarray, parts_x: list[np.ndarray], parts_y: list[np.ndarray]) -> Iterator[Block]:
    """Yield the plan between cells, one coupled pair of parts after the other.

    plan     (k_x, k_y), between parts
    parts_*  of each part its cells, nearest to the centre first: 1-D transport by this distance keeps the order

    A pair of parts of m and l cells has fewer than m + l entries. Where `plan` is a vertex of its polytope, as the
    solver returns it, at most k_x + k_y - 1 pairs are coupled.
    """
    for a, b in zip(*np.nonzero(plan), strict=True):
        yield parts_x[a], parts_y[b], plan[a, b] * _in_order(len(parts_x[a]), len(parts_y[b]))


def _in_order(m: int, l: int) -> csr_matrix:  # noqa: E741
    """(m, l): the plan of m equal cells on l equal cells that keeps their order; its entries sum to 1.

    In units of 1 / (m l) cell i has the interval from i l to (i + 1) l, and cell j that from j m to (j + 1) m; an
    entry is as large as the overlap. Whole numbers, so no rounding makes or loses an entry.
    """
    cuts = np.union1d(np.arange(m) * l, np.arange(l) * m)
    return csr_matrix((np.diff(cuts, append=m * l) / (m * l), (cuts // l, cuts // m)), shape=(m, l))


def projected(plan: Iterable[Block], y: np.ndarray, n_x: int) -> np.ndarray:
    """Project y on the n_x cells of x, (n_x, p_y), by a plan in blocks; memory O(n p), one block at a time."""
    e_x, weights = np.zeros((n_x, y.shape[1])), np.zeros(n_x)
    for cells_x, cells_y, block in plan:
        e_x[cells_x] += block @ y[cells_y]
        weights[cells_x] += np.asarray(block.sum(1)).ravel()
    e_x /= weights[:, None]
    return e_x


# Low-rank Gromov-Wasserstein


def _low_rank(x: np.ndarray, y: np.ndarray, seed: int) -> Match:
    """GW over plans T = Q diag(1 / g) R^T of rank _RANK, on the CPU in float32, time and memory linear in n.

    D are squared Euclidean distances over their mean, because OTT-JAX's steps depend on their scale; a loss is that of
    these. Step size and random start are its defaults. The start is a plateau that looks like convergence, so that at
    least 500 iterations run; at most 1000, where OTT-JAX allows 100 000.
    """
    import jax
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.quadratic.quadratic_problem import QuadraticProblem
    from ott.solvers.quadratic.gromov_wasserstein_lr import LRGromovWasserstein

    def solve(x: jax.Array, y: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        problem = QuadraticProblem(*(PointCloud(view, scale_cost="mean") for view in (x, y)))
        found = LRGromovWasserstein(_RANK, **_ITERATIONS)(problem, rng=key)
        return found.q, found.r, found.g, found.primal_cost

    # JAX, too, would take TF32 or bf16 for products where a device has it.
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        started = time.perf_counter()
        arguments = jax.numpy.asarray(x, "float32"), jax.numpy.asarray(y, "float32"), jax.random.key(seed)
        prepared = time.perf_counter()
        compiled = jax.jit(solve).lower(*arguments).compile()
        ready = time.perf_counter()
        q, r, g, loss = (np.asarray(array, np.float64) for array in compiled(*arguments))
    e_x = projected_by_factors(q, r, g, y)
    seconds = {
        "prepare_s": prepared - started,
        "compile_s": ready - prepared,
        "fit_s": time.perf_counter() - ready,
    }
    return Match(e_x, y, float(loss), seconds)


def projected_by_factors(q: np.ndarray, r: np.ndarray, g: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Project y on the cells of x, (n_x, p_y), by the plan q diag(1 / g) r^T; memory O(n p)."""
    q = q / g
    e_x = q @ (r.T @ y)
    e_x /= (q @ r.sum(0))[:, None]
    return e_x


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "quantised-gw",
            "quantised Gromov-Wasserstein (POT)",
            "Chowdhury, Miller and Needham 2021, Quantized Gromov-Wasserstein",
            ("ot",),
            _quantised,
        ),
        Peer(
            "low-rank-gw",
            "low-rank Gromov-Wasserstein (OTT-JAX)",
            "Scetbon, Peyré and Cuturi 2022, Linear-time Gromov Wasserstein distances using low rank couplings",
            ("jax", "ott"),
            _low_rank,
        ),
    )
}
