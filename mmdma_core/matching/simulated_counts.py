"""Simulated counts with a known match: an example of what people have, of the size of a small CITE-seq experiment."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmdma_core.settings import is_whole


class SimulatedCounts(NamedTuple):
    """Simulated counts of genes and proteins in the same cells.

    Parameters
    ----------
    x : numpy.ndarray
        Of genes, (n, p), whole numbers.
    y : numpy.ndarray
        Of proteins, (n, p_y): row i is the same cell as row i of x.
    types : numpy.ndarray
        (n,), the type of each cell: "T", "B" or "monocyte".
    donors : numpy.ndarray
        (n,), whose cell it is: "donor 1" or "donor 2".
    """

    x: np.ndarray
    y: np.ndarray
    types: np.ndarray
    donors: np.ndarray


def simulate_counts(n: int = 1000, seed: int = 0, *, p: int = 600, p_y: int = 30) -> SimulatedCounts:
    """Simulate counts of genes and proteins in cells of three types, of two donors.

    The logarithm of a feature's share is the sum of what it has in all cells, N(0, 1); of an effect of the type, N(0,
    1), and one of a state, such as activation, 0.7 N(0, 1), each of 30 % of genes and 60 % of proteins; and of one of
    the donor, 0.1 N(0, 1). The state of a cell is of a gamma distribution of shape 2. A cell has 3,000 genes' and 2,000
    proteins' counts on average, times a lognormal depth of its own in each view; counts are of a Poisson distribution.

    Parameters
    ----------
    n : int
        Cells, at least 2: half are T cells, 30 % B cells, 20 % monocytes, by chance.
    seed : int
        Of all that is drawn.
    p, p_y : int
        Genes and proteins.

    Returns
    -------
    SimulatedCounts
        Both views, and what is known of the cells.

    Raises
    ------
    ValueError
        For a number that is too low.

    Examples
    --------
    >>> from mmdma_core import simulate_counts
    >>> genes, proteins, types, donors = simulate_counts(100)
    >>> genes.shape, proteins.shape
    ((100, 600), (100, 30))
    """
    for name, value, least in (("n", n, 2), ("p", p, 1), ("p_y", p_y, 1), ("seed", seed, 0)):
        if not is_whole(value) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    rng = np.random.default_rng(seed)
    kind, donor, state = rng.choice(3, n, p=(0.5, 0.3, 0.2)), rng.integers(2, size=n), rng.gamma(2, 0.7, (n, 1))
    views = []
    for features, depth, share in ((p, 3000, 0.3), (p_y, 2000, 0.6)):
        logs = rng.normal(size=features)
        of_kind, of_state = (
            scale * rng.normal(size=(rows, features)) * (rng.random((rows, features)) < share)
            for rows, scale in ((3, 1.0), (1, 0.7))
        )
        of_donor = 0.1 * rng.normal(size=(2, features))
        rates = np.exp(logs + of_kind[kind] + state @ of_state + of_donor[donor])
        rates *= depth * rng.lognormal(0, 0.3, (n, 1)) / rates.sum(1, keepdims=True)
        views.append(rng.poisson(rates))
    return SimulatedCounts(*views, np.array(["T", "B", "monocyte"])[kind], np.array(["donor 1", "donor 2"])[donor])
