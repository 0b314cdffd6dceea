"""A person's views before they are fitted: taken from whatever holds them, checked, in float32, centred.

Also the checks of the estimator's parameters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import scipy.sparse
import torch
from pyarrow.interchange import from_dataframe
from sklearn.base import BaseEstimator
from sklearn.utils import check_array

from mmdma_core.files.annotated import Keys, chosen
from mmdma_core.files.formats import View
from mmdma_core.fused.ranks import world
from mmdma_core.inputs import canonical, on_host, unmasked
from mmdma_core.models import in_words
from mmdma_core.registry import check_batch_size
from mmdma_core.settings import is_whole, plain

Matrix = np.ndarray | scipy.sparse.csr_array | scipy.sparse.csr_matrix
_LOG = logging.getLogger("mmdma_core")


def scale_of(rows: Matrix, kernel: bool) -> float:
    """Return the number that divides a view so that the mean square of its rows' lengths is 1; 1 for rows of zeros.

    A kernel has the squares on its diagonal.
    """
    ranks = world(rows.shape[0])
    if kernel:
        return float(np.diagonal(rows).mean(dtype=np.float64)) or 1.0
    values = rows.data if scipy.sparse.issparse(rows) else rows
    square = sum(float(np.vdot(part, part)) for part in np.array_split(values, max(1, len(values) // 4096)))
    return float(np.sqrt(ranks.sum(np.array([square]))[0] / ranks.n)) or 1.0


def as_rows(view: Any, name: str, least: int) -> Matrix:
    """Return the matrix as float32, dense or CSR, with at least so many rows. Raises ValueError of one line."""
    shape = getattr(view, "shape", ())
    if len(shape) == 1:
        hint = ": one cell is a matrix with one row, such as X[:1]" if least == 1 else ": rows are cells"
        raise ValueError(f"{name}: Expected 2D array, got 1D array{hint}")
    if len(shape) == 2 and shape[0] < least:
        raise ValueError(f"{name} must have at least {least} cell{'s' if least > 1 else ''}, its shape is {shape}")
    options = {"accept_sparse": "csr", "dtype": np.float32, "input_name": name, "ensure_min_samples": least}
    try:
        view = canonical(view) if scipy.sparse.issparse(view) else view
        rows = check_array(view, **options)
    except (TypeError, ValueError) as error:
        if np.any(pd.isna(view.data if scipy.sparse.issparse(view) else view)):
            remedy = "fill in what is missing, or drop its cells or features"
            raise ValueError(f"Input {name} contains NaN: {remedy}") from None
        of_one_line = str(error).partition("\n")[0]
        raise (TypeError if isinstance(error, TypeError) else ValueError)(of_one_line) from None
    return rows


def centred(rows: Matrix, name: str, mean: np.ndarray | None) -> Matrix:
    """Return the rows less the mean, if there is one; a sparse view becomes dense, and the log says how large."""
    if mean is None:
        return rows
    if scipy.sparse.issparse(rows):
        size = 4 * rows.shape[0] * rows.shape[1]
        _LOG.warning("center makes %s dense: %d bytes (%s)", name, size, in_words(size))
        rows = rows.toarray()
    return rows - mean


def column_means(rows: Matrix) -> np.ndarray:
    """Return the mean of each column (p,), over all ranks, in float32."""
    ranks = world(rows.shape[0])
    sums = ranks.sum(np.array(rows.sum(axis=0, dtype=np.float64)).reshape(-1))
    return (sums / ranks.n).astype(np.float32)


def digest(asked: list, views: Sequence[Matrix]) -> str:
    """Digest what is asked, in plain values, and the entries of the views, however many ranks share their rows."""
    question = hashlib.sha256(json.dumps(asked).encode())
    for view in views:
        ranks = world(view.shape[0])
        total = _sum_of_entries(view, ranks.first)
        low, high = ranks.sum(np.array([total % 2**32, total >> 32], np.float64))
        question.update(json.dumps([ranks.n, view.shape[1], (int(low) + (int(high) << 32)) % 2**64]).encode())
    return question.hexdigest()


def _sum_of_entries(view: Matrix, first: int) -> int:
    """Sum the entries' bits, each times a number of its row and one of its column, modulo 2^64.

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
    """Return well mixed numbers of 64 bits for the places from `first` on (splitmix64; Steele et al. 2014)."""
    steps = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return pd.util.hash_array(steps)


Pair = str | tuple[str | None, str | None] | None  # of both views, or of each


def take_both(x: Any, y: Any, use_rep: Pair, layer: Pair) -> tuple[View, View]:
    """Return what `fit` takes of its views; use_rep and layer are of both, or a pair. Raises ValueError of one line."""
    if y is None:  # in scikit-learn's words
        raise ValueError("MMDMA requires y to be passed, but the target y is None: Y is the second view")
    reps, layers = _pair("use_rep", use_rep), _pair("layer", layer)
    both = not (isinstance(use_rep, tuple) or isinstance(layer, tuple)) and is_annotated(x) != is_annotated(y)
    asked = [(rep, layer) for rep, layer in zip(reps, layers, strict=True)]
    if both:  # what is said of both holds for the one that is AnnData
        asked = [a if is_annotated(view) else (None, None) for a, view in zip(asked, (x, y), strict=True)]
    return take(x, "X", *asked[0]), take(y, "Y", *asked[1])


def _pair(name: str, value: Pair) -> tuple[str | None, str | None]:
    pair = (value, value) if value is None or isinstance(value, str) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(v is None or isinstance(v, str) for v in pair):
        raise ValueError(f"{name} must be a name, or a pair of them for X and Y, got {value!r}")
    return tuple(pair)


def take(view: Any, name: str, use_rep: str | None = None, layer: str | None = None) -> View:
    """Return what is fitted of a view: of AnnData X, a layer, or with use_rep an entry of obsm. Raises ValueError."""
    use_rep = None if use_rep == "X" else use_rep
    if hasattr(view, "mod") and hasattr(view, "obs_names"):
        raise ValueError(f"{name} is MuData: give one modality, as mdata['rna'], or both to mmdma_core.match")
    if not is_annotated(view):
        if use_rep is not None or layer is not None:
            asked = f"use_rep {use_rep!r}" if use_rep is not None else f"layer {layer!r}"
            raise ValueError(f"{asked} is for AnnData, {name} is a {type(view).__name__}")
        if isinstance(view, View):
            return view
        matrix = _in_memory(view, name)
        names = tuple(map(str, matrix.columns)) if isinstance(matrix, pd.DataFrame) else None
        return View(matrix, features=names)
    if use_rep is not None and layer is not None:
        raise ValueError(f"{name}: give use_rep or layer, not both, got {use_rep!r} and {layer!r}")
    held = chosen(name, view, Keys(layer=layer, obsm=use_rep))
    return replace(held, matrix=_in_memory(held.matrix, name), representation=(use_rep or "X", layer))


def check_features(where: str, given: tuple[str, ...] | None, fitted: tuple[str, ...] | None) -> None:
    """Raise ValueError for the first feature that is another one than in `fit`; names may be absent."""
    if fitted is None or given is None or len(fitted) != len(given):
        return
    for k, (then, now) in enumerate(zip(fitted, given, strict=True)):
        if then != now:
            other = "the model was fitted with other features, or in another order"
            raise ValueError(f"{where}: {other}: feature {k} is {now!r}, was {then!r}")


def is_annotated(view: Any) -> bool:
    """Tell whether it is AnnData, or its raw part; anndata need not be there to tell."""
    return all(hasattr(view, name) for name in ("X", "obs_names", "var_names"))


def _in_memory(matrix: Any, name: str) -> Any:
    """Read what lies in a file of HDF5 or zarr, compute what is put off; data frames of all kinds become pandas'."""
    if type(matrix).__module__.partition(".")[0] == "dask":
        matrix = matrix.compute()
    matrix = unmasked(name, matrix)
    if isinstance(matrix, torch.Tensor):
        return on_host(matrix)
    if hasattr(matrix, "to_memory"):  # anndata's sparse matrices in a file
        return matrix.to_memory()
    if type(matrix).__module__.partition(".")[0] in ("h5py", "zarr"):
        if not hasattr(matrix, "keys"):
            return matrix[...]
        from anndata.io import read_elem

        return read_elem(matrix)
    return matrix if isinstance(matrix, pd.DataFrame) else _from_frame(matrix, name)


def _from_frame(matrix: Any, name: str) -> Any:
    """Read a data frame of another library by Arrow's or by the older protocol of frames; anything else as it is."""
    if hasattr(matrix, "collect") and hasattr(matrix, "collect_schema"):
        raise ValueError(f"{name} is a {type(matrix).__name__}: collect it first")
    try:
        if hasattr(matrix, "__arrow_c_stream__"):
            return pyarrow.table(matrix).to_pandas()
        if hasattr(matrix, "__dataframe__"):
            return from_dataframe(matrix).to_pandas()
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = ": ".join(map(str, error.args)).partition("\n")[0]  # of pyarrow there may be several
        raise ValueError(f"{name}: a {type(matrix).__name__} cannot be read as a data frame: {reason}") from error
    return matrix


def check_parameters(model: BaseEstimator) -> None:
    """Raise ValueError for the first parameter that cannot be, those that are Settings' own aside."""
    ways = ("both", "random", "symmetries")
    if model.starts not in ways:
        raise ValueError(f"starts must be one of {', '.join(map(repr, ways))}, got {model.starts!r}")
    leasts = {"n_epochs": model.starts != "symmetries", "n_starts": model.starts == "random", "loss_every": 1}
    for name, least in leasts.items():
        value = plain(getattr(model, name))
        if not is_whole(value) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least:d}, got {value!r}")
    check_batch_size(plain(model.batch_size))
    for name in ("window", "tolerance"):
        value = plain(getattr(model, name))
        if not isinstance(value, numbers.Real) or value < 0:
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    if model.window and model.window < model.loss_every:
        raise ValueError(f"window must be 0 or at least loss_every = {model.loss_every}, got {model.window!r}")
    if model.kernel not in ("linear", "precomputed"):
        raise ValueError(f"kernel must be 'linear' or 'precomputed', got {model.kernel!r}")
    if model.preprocess not in ("auto", "counts", "none"):
        raise ValueError(f"preprocess must be one of 'auto', 'counts', 'none', got {model.preprocess!r}")
    if model.kernel == "precomputed" and model.preprocess == "counts":
        raise ValueError("preprocess='counts' is for features, not for kernel='precomputed'")
    if model.anchors is not None and (model.kernel == "precomputed" or not model.refine):
        raise ValueError(
            "anchors choose among refined matches of features: not with kernel='precomputed' or refine=False"
        )
    if model.l2_normalize not in (True, False, "auto"):
        raise ValueError(f"l2_normalize must be True, False or 'auto', got {model.l2_normalize!r}")
    if model.kernel == "precomputed" and (model.center or model.l2_normalize is True):
        raise ValueError("center and l2_normalize are for features, not for kernel='precomputed'")
    if isinstance(model.sigma, str) and model.sigma != "median":
        raise ValueError(f"sigma must be a positive number or 'median', got {model.sigma!r}")
