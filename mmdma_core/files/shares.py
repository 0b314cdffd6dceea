"""Which rows of a view one of several processes reads or makes."""

from __future__ import annotations


def of_share(n: int, share: tuple[int, int]) -> slice:
    """The rows of share (k, m) of n: as many as of any other, or one more."""
    k, m = share
    return slice(n * k // m, n * (k + 1) // m)
