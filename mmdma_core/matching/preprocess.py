"""A person's views before they are fitted: checked rows in float32, centred, with names and a digest."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.utils import check_array

from mmdma_core.models import in_words
from mmdma_core.inputs import canonical
from mmdma_core.fused.ranks import in_world

Matrix = np.ndarray | scipy.sparse.csr_array | scipy.sparse.csr_matrix
_LOG = logging.getLogger("mmdma_core")


def as_rows(view: Any, name: str, least: int) -> Matrix:
    """The matrix as float32, dense or CSR, with at least so many rows. Raises ValueError of one line."""
    shape = getattr(view, "shape", ())
    if len(shape) == 1:
        hint = ": one cell is a matrix with one row, such as X[:1]" if least == 1 else ": rows are cells"
        raise ValueError(f"{name.upper()}: Expected 2D array, got 1D array{hint}")
    if len(shape) == 2 and shape[0] < least:
        raise ValueError(
            f"{name.upper()} must have at least {least} cell{'s' if least > 1 else ''}, its shape is {shape}"
        )
    options = {"accept_sparse": "csr", "dtype": np.float32, "input_name": name.upper(), "ensure_min_samples": least}
    try:
        return check_array(canonical(view) if scipy.sparse.issparse(view) else view, **options)
    except (TypeError, ValueError) as error:  # of several lines
        said = str(error).partition("\n")[0]
        if "NaN" in said or "NAType" in said:
            said = f"Input {name.upper()} contains NaN: fill in what is missing, or drop its cells or features"
            raise ValueError(said) from None
        raise (TypeError if isinstance(error, TypeError) else ValueError)(said) from None


def centred(rows: Matrix, name: str, mean: np.ndarray) -> np.ndarray:
    """The rows less the mean; a sparse view becomes dense, and the log says how large."""
    if scipy.sparse.issparse(rows):
        size = 4 * rows.shape[0] * rows.shape[1]
        _LOG.warning("center makes %s dense: %d bytes (%s)", name.upper(), size, in_words(size))
        rows = rows.toarray()
    return rows - mean


def column_means(rows: Matrix) -> np.ndarray:
    """The mean of each column (p,), over all ranks, in float32."""
    held = in_world(rows.shape[0])
    sums = held.sum(np.array(rows.sum(axis=0, dtype=np.float64)).reshape(-1))
    return (sums / held.n).astype(np.float32)


def digest(asked: list, views: Sequence[Matrix]) -> str:
    """Of what is asked, in plain values, and of the views' entries, however many ranks hold them."""
    question = hashlib.sha256(json.dumps(asked).encode())
    for view in views:
        held = in_world(view.shape[0])
        total = _fingerprint(view, held.first)
        low, high = held.sum(np.array([total % 2**32, total >> 32], np.float64))
        question.update(json.dumps([held.n, view.shape[1], (int(low) + (int(high) << 32)) % 2**64]).encode())
    return question.hexdigest()


def _fingerprint(view: Matrix, first: int) -> int:
    """The sum of the entries' bits, each times a number of its row and one of its column, modulo 2^64.

    first  the number of the first row
    """
    of_columns, total = _numbers(0, view.shape[1]), np.uint64(0)
    for low in range(0, view.shape[0], 4096):
        block = view[low : low + 4096]
        of_rows = _numbers(2**40 + first + low, block.shape[0])
        if scipy.sparse.issparse(block):
            products = _bits(block.data) * of_columns[block.indices]
            ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(products, dtype=np.uint64)])[block.indptr]
            sums = ends[1:] - ends[:-1]
        else:
            sums = _bits(block) @ of_columns
        total += (sums * of_rows).sum(dtype=np.uint64)
    return int(total)


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)


def _numbers(first: int, count: int) -> np.ndarray:
    """Well mixed numbers of 64 bits for the places from `first` on (splitmix64; Steele et al. 2014)."""
    z = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
