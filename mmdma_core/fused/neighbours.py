"""An order of points in which neighbours follow one another, on the CPU, with Numba.

On CUDA this is `kd_order` of neighbours_cuda. Here a step allocates nothing, which that and SciPy's k-d tree do.
"""

from __future__ import annotations

import numba


@numba.njit(nogil=True, cache=True)
def kd_orders(t, threads, x, y, leaf, order_x, order_y):
    """Thread t's share of two clouds, each brought into its `kd_order`."""
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
