"""MMD2 and its gradient in one pass over the pairs of points, on the CPU, with Numba.

One evaluation of k(a, b) = exp(-|a - b|^2 / (2 sigma)) serves the sum and both points' gradients, see fused/run.py.
Every unordered pair is visited once: half of the pairs within x and within y, all of those across. A point never meets
itself. The inner loops are those of mmdma_core.fused.pairs_tiles.

Points are centred between the means of both clouds. With u = sqrt(log2(e) / sigma) (z - centre), k = 2^t where

    t = u_a.u_b - |u_a|^2 / 2 - |u_b|^2 / 2

whose rounding grows with |u|^2. Where the mean of |z - centre|^2 is above 16 sigma or its largest above 256 sigma, t
comes from differences of coordinates instead. The last coordinate of a point is its -|u|^2 / 2, of differences 0.

Where the points lie so wide that a mean pair has k < 2^-48, they are put in an order in which neighbours follow one
another, `kd_order`, with a box around every 32. (Unlike that of pairs_cuda and SciPy's k-d tree it allocates nothing.)
Columns whose box lies so far from the four rows that k < 2^-48 are left out: of a mean of at least 2^-24 this is less
than float32's rounding, and where a mean is smaller the pass is done again down to 2^-100. Of a gradient no pair that
is left out makes up more than 2^-44 / sqrt(sigma) times the pair's weight in the mean.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from mmdma_core.fused.pairs_tiles import ALL, APART, BOX, LANES, LOWEST, PANEL, PULLS, ROWS, all_pairs
from mmdma_core.fused.run import PairsMMD
from mmdma_core.fused.tall_skinny import aligned_zeros
from mmdma_core.fused.threads import alone, in_threads
from mmdma_core.inputs import Ranks
from mmdma_core.objective import squared_mmd

_F = np.float32
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)
_LEAF = 16  # points of a leaf of the k-d tree
_FAR = _F(-48.0)  # less is left out, where the means are at least 2^(_FAR / 2)
_ABSENT = _F(1e18)  # coordinates of a box of nothing
_NO_POINT = _F(1e30)  # the square of a distance to a point that is not there
_MEAN_OF_DOTS, _MOST_OF_DOTS = 16.0, 256.0  # |z - centre|^2 / sigma up to which t comes from dot products


class FusedMMD(PairsMMD):
    """MMD2 and its gradient for embeddings (n_x, d) and (n_y, d), float32 on the CPU; it allocates its memory once.

    O(threads (n_x + n_y) d) bytes, on as many threads as PyTorch has.
    """

    def __init__(
        self, n_x: int, n_y: int, d: int, sigma: float, unbiased: bool, ranks: tuple[Ranks, Ranks] | None = None
    ) -> None:
        super().__init__(n_x, n_y, unbiased, ranks)
        self.sigma = sigma
        self._scale = _F(-0.5 * np.log2(np.e) / sigma)
        many = torch.get_num_threads()
        apart = APART * many
        panels_x, panels_y = -(-n_x // PANEL), -(-n_y // PANEL)
        panels = panels_x + panels_y
        self._first_y = panels_x
        self._counts = np.full(panels, PANEL)
        self._counts[panels_x - 1] = n_x - (panels_x - 1) * PANEL
        self._counts[-1] = n_y - (panels_y - 1) * PANEL
        pairs = [(i, j) for i in range(panels) for j in range(i, panels)][self._rank :: self._n_ranks]
        self._pairs = np.array(pairs, np.int64).reshape(-1, 2)
        of_x = self._pairs < panels_x
        self._across = (of_x[:, 0] & ~of_x[:, 1]).astype(np.int64)
        self._rows, self._columns = aligned_zeros((panels, PANEL, d + 1)), aligned_zeros((panels, d + 1, PANEL))
        self._boxes, self._gaps = aligned_zeros((panels, d, 2, PANEL // BOX)), aligned_zeros((apart, PANEL // BOX))
        self._orders, self._ordered = (np.arange(n_x), np.arange(n_y)), False
        self._row_sums = aligned_zeros((apart, d + 1, ROWS, LANES))
        self._column_pulls = aligned_zeros((apart, d + 1, PANEL))
        self._pulls = np.zeros((many, 2, panels, d + 1, PULLS))

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, out_x: torch.Tensor, out_y: torch.Tensor) -> float:
        """Return MMD2; its gradient goes to out_x (n_x, d) and out_y (n_y, d)."""
        outs = out_x, out_y
        e_x, e_y = self._all_points(e_x, e_y)
        out_x, out_y = (ranks.whole(out) for ranks, out in zip(self._ranks, outs, strict=True))
        with alone():
            centre = ((e_x.mean(0) + e_y.mean(0)) / 2).numpy()
        # Of clouds of one size twice the mean square of the points is the mean square of their distances.
        mean, most = _squares(e_x.numpy(), e_y.numpy(), centre)
        lowest = _FAR if 2 * mean * self._scale < _FAR else ALL
        dots = mean <= _MEAN_OF_DOTS * self.sigma and most <= _MOST_OF_DOTS * self.sigma
        self._unit = _F(np.sqrt(np.log2(np.e) / self.sigma)) if dots else _ZERO
        self._arrange(e_x, e_y, centre, lowest)
        sums = self._sum_pairs(lowest, out_x, out_y)
        if lowest == _FAR and min(self._means(sums)) < 2.0 ** (_FAR / 2):
            sums = self._sum_pairs(LOWEST, out_x, out_y)
        mmd = squared_mmd(*torch.from_numpy(sums), self.n_x, self.n_y, self.unbiased).item()
        if not self.unbiased and mmd == 0:  # clipped: no gradient
            out_x.zero_()
            out_y.zero_()
        for ranks, term, out in zip(self._ranks, (out_x, out_y), outs, strict=True):
            ranks.reduce_scatter(term, out)
        return mmd

    def _arrange(self, e_x: torch.Tensor, e_y: torch.Tensor, centre: np.ndarray, lowest: np.float32) -> None:
        """Put the points into panels, neighbours together if pairs may be left out."""
        if lowest > ALL:
            in_threads(kd_orders, min(2, len(self._pulls)), e_x.numpy(), e_y.numpy(), _LEAF, *self._orders)
        elif self._ordered:
            for order in self._orders:
                order.sort()
        self._ordered = lowest > ALL
        for e, order, first in zip((e_x, e_y), self._orders, (0, self._first_y), strict=True):
            _pack(e.numpy(), order, centre, self._unit, first, self._rows, self._columns, self._boxes)

    def _sum_pairs(self, lowest: np.float32, out_x: torch.Tensor, out_y: torch.Tensor) -> np.ndarray:
        """The sums of k within x, within y and across all ranks, of pairs whose exponent may be `lowest` or more.

        out_x (n_x, d) and out_y (n_y, d) become this rank's part of the gradients.
        """
        in_threads(
            all_pairs,
            len(self._pulls),
            self._pairs,
            self._across,
            (self._rows, self._columns, self._boxes, self._counts),
            _ZERO if self._unit else self._scale,
            lowest,
            (self._gaps, self._row_sums, self._column_pulls),
            self._pulls,
        )
        within_x, within_y, across = self._weights(2 / self.sigma)
        (order_x, order_y), columns = self._orders, self._columns
        sum_xx, sum_xy = _unpack(self._pulls, order_x, 0, columns, self._unit, within_x, across, out_x.numpy())
        sum_yy, _ = _unpack(self._pulls, order_y, self._first_y, columns, self._unit, within_y, across, out_y.numpy())
        return self._ranks[0].sum(np.array([sum_xx, sum_yy, sum_xy]))


@numba.njit(fastmath=True, cache=True)
def _squares(x, y, centre):
    """The mean and the largest |z - centre|^2 of the points of both clouds."""
    total, largest = 0.0, 0.0
    for points in (x, y):
        for i in range(points.shape[0]):
            square = 0.0
            for k in range(points.shape[1]):
                square += (points[i, k] - centre[k]) ** 2
            total += square
            largest = max(largest, square)
    return total / (len(x) + len(y)), largest


@numba.njit(fastmath=True, cache=True)
def _pack(points, order, centre, unit, first, rows, columns, boxes):
    """Copy points (n, d), in the order, into panels from `first` on; where unit is 0 with boxes around them.

    unit  coordinates become u = unit (z - centre), and the last one -|u|^2 / 2; 0: z - centre, and 0. A place beyond
          the n points has coordinates of 0 and a last one that makes k 2^-100.
    rows (panels, PANEL, d + 1), columns (panels, d + 1, PANEL), boxes (panels, d, 2, BOXES)
    """
    n, d = points.shape
    for panel in range(first, first + (n + PANEL - 1) // PANEL):
        low = (panel - first) * PANEL
        count = min(n - low, PANEL)
        row, column = rows[panel], columns[panel]
        for place in range(count):
            point, square = points[order[low + place]], _ZERO
            for k in range(d):
                row[place, k] = at = (point[k] - centre[k]) * (unit if unit else _ONE)
                square += at * at
            row[place, d] = -_HALF * square if unit else _ZERO
        row[count:, d] = -_NO_POINT if unit else _NO_POINT
        for k in range(d + 1):
            for place in range(PANEL):
                column[k, place] = row[place, k]
        if not unit:
            _surround(column, count, boxes[panel])


@numba.njit(cache=True)
def _surround(column, count, boxes):
    """The least and the greatest coordinates of every BOX columns of which the first `count` are there."""
    for k in range(boxes.shape[0]):
        for box in range(boxes.shape[2]):
            least, greatest = _ABSENT, -_ABSENT
            for place in range(box * BOX, min((box + 1) * BOX, count)):
                least, greatest = min(least, column[k, place]), max(greatest, column[k, place])
            boxes[k, 0, box], boxes[k, 1, box] = least, greatest


@numba.njit(fastmath=True, cache=True)
def _unpack(pulls, order, first, columns, unit, within, across, out):
    """Fill out (n, d) with the weighted sums of k (b - a) over threads, in pulls[0]; return both sums of k."""
    n, d = out.shape
    length = 1 / unit if unit else 1.0
    sum_within, sum_across = 0.0, 0.0
    for panel in range(first, first + (n + PANEL - 1) // PANEL):
        low = (panel - first) * PANEL
        of_within, of_across = pulls[0, 0, panel], pulls[0, 1, panel]
        for t in range(1, pulls.shape[0]):
            of_within += pulls[t, 0, panel]
            of_across += pulls[t, 1, panel]
        count = min(n - low, PANEL)
        sum_within += of_within[d, :count].sum()
        sum_across += of_across[d, :count].sum()
        for k in range(d):
            for place in range(count):
                a = columns[panel, k, place]
                pull = within * (of_within[k, place] - a * of_within[d, place])
                pull += across * (of_across[k, place] - a * of_across[d, place])
                out[order[low + place], k] = length * pull
    return sum_within, sum_across


@numba.njit(nogil=True, cache=True)
def kd_orders(t, threads, x, y, leaf, order_x, order_y):
    """Bring thread t's share of two clouds into `kd_order`."""
    for cloud in range(t, 2, threads):
        if cloud == 0:
            kd_order(x, leaf, order_x)
        else:
            kd_order(y, leaf, order_y)


@numba.njit(cache=True)
def kd_order(points, leaf, order):
    """Fill order (n,) so that every `leaf` points (n, d) that follow one another lie together: a k-d tree in place.

    The halves of every 2 leaf, 4 leaf, ... points are parted at the median of the coordinate that extends furthest.
    """
    n = len(order)
    for i in range(n):
        order[i] = i
    size = leaf
    while size < n:
        size *= 2
    while size > leaf:
        half = size // 2
        for low in range(0, n - half, size):
            high = min(low + size, n)
            _select(points[:, _widest(points, order, low, high)], order, low, low + half, high)
        size = half


@numba.njit(cache=True)
def _widest(points, order, low, high):
    """The coordinate in which order[low:high] extends furthest."""
    widest, most = 0, -1.0
    for k in range(points.shape[1]):
        least = greatest = points[order[low], k]
        for i in range(low + 1, high):
            least, greatest = min(least, points[order[i], k]), max(greatest, points[order[i], k])
        if greatest - least > most:
            widest, most = k, greatest - least
    return widest


@numba.njit(cache=True)
def _select(values, order, low, middle, high):
    """Reorder order[low:high] so that no value before `middle` is above one from there on (Hoare 1961)."""
    high -= 1
    while low < high:
        pivot = values[order[(low + high) // 2]]
        i, j = low, high
        while i <= j:
            while values[order[i]] < pivot:
                i += 1
            while values[order[j]] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            return
