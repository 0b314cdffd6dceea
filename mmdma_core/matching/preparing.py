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

from mmdma_core.models.memory import in_words

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
        return check_array(view, **options)
    except ValueError as error:  # of several lines
        raise ValueError(str(error).partition("\n")[0]) from None


def centred(rows: Matrix, name: str, mean: np.ndarray) -> np.ndarray:
    """The rows less the mean; a sparse view becomes dense, and the log says how large."""
    if scipy.sparse.issparse(rows):
        size = 4 * rows.shape[0] * rows.shape[1]
        _LOG.warning("center makes %s dense: %d bytes (%s)", name.upper(), size, in_words(size))
        rows = rows.toarray()
    return rows - mean


def digest(asked: list, views: Sequence[Matrix]) -> str:
    """Of what is asked, in plain values, and of the views' entries."""
    question = hashlib.sha256(json.dumps(asked).encode())
    for view in views:
        for part in (view.data, view.indices, view.indptr) if scipy.sparse.issparse(view) else (view,):
            question.update(np.ascontiguousarray(part))
    return question.hexdigest()
