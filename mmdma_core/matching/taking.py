"""What of a view is fitted: its matrix in memory and the names of its features, whatever holds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import pyarrow
import torch
from pyarrow.interchange import from_dataframe

from mmdma_core.files.annotated import Keys, chosen
from mmdma_core.inputs import on_host, unmasked

Pair = str | tuple[str | None, str | None] | None  # of both views, or of each


class Taken(NamedTuple):
    """A matrix, the names of its features or None, and of AnnData (use_rep, layer), else None."""

    matrix: Any
    features: tuple[str, ...] | None
    representation: tuple[str, str | None] | None


def take_both(x: Any, y: Any, use_rep: Pair, layer: Pair) -> tuple[Taken, Taken]:
    """What `fit` takes of its views; use_rep and layer are of both, or a pair. Raises ValueError of one line."""
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


def take(view: Any, name: str, use_rep: str | None = None, layer: str | None = None) -> Taken:
    """What is fitted of a view: of AnnData X, a layer, or with use_rep an entry of obsm. Raises ValueError."""
    use_rep = None if use_rep == "X" else use_rep
    if hasattr(view, "mod") and hasattr(view, "obs_names"):
        raise ValueError(f"{name} is MuData: give one modality, as mdata['rna'], or both to mmdma_core.match")
    if not is_annotated(view):
        if use_rep is not None or layer is not None:
            asked = f"use_rep {use_rep!r}" if use_rep is not None else f"layer {layer!r}"
            raise ValueError(f"{asked} is for AnnData, {name} is a {type(view).__name__}")
        matrix = _in_memory(view, name)
        names = tuple(map(str, matrix.columns)) if isinstance(matrix, pd.DataFrame) else None
        return Taken(matrix, names, None)
    if use_rep is not None and layer is not None:
        raise ValueError(f"{name}: give use_rep or layer, not both, got {use_rep!r} and {layer!r}")
    _, matrix, features = chosen(name, view, Keys(layer=layer, obsm=use_rep))
    return Taken(_in_memory(matrix, name), features, (use_rep or "X", layer))


def check_features(where: str, given: tuple[str, ...] | None, fitted: tuple[str, ...] | None) -> None:
    """Raises ValueError for the first feature that is another one than in `fit`; names may be absent."""
    if fitted is None or given is None or len(fitted) != len(given):
        return
    for k, (then, now) in enumerate(zip(fitted, given, strict=True)):
        if then != now:
            other = "the model was fitted with other features, or in another order"
            raise ValueError(f"{where}: {other}: feature {k} is {now!r}, was {then!r}")


def is_annotated(view: Any) -> bool:
    """Whether it is AnnData, or its raw part; anndata need not be there to tell."""
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
    """A data frame of another library by Arrow's or by the older protocol of frames; anything else as it is."""
    if hasattr(matrix, "collect") and hasattr(matrix, "collect_schema"):
        raise ValueError(f"{name} is a {type(matrix).__name__}: collect it first")
    try:
        if hasattr(matrix, "__arrow_c_stream__"):
            return pyarrow.table(matrix).to_pandas()
        if hasattr(matrix, "__dataframe__"):
            return from_dataframe(matrix).to_pandas()
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name}: a {type(matrix).__name__} cannot be read as a data frame: {reason}") from error
    return matrix
