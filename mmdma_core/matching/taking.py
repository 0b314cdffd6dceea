"""What of a view is fitted: its matrix in memory and the names of its features, whatever holds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import torch

from mmdma_core.files.annotated import Keys, chosen

Pair = str | tuple[str | None, str | None] | None  # of both views, or of each


class Taken(NamedTuple):
    """A matrix, the names of its features or None, and of AnnData (use_rep, layer), else None."""

    matrix: Any
    features: tuple[str, ...] | None
    representation: tuple[str, str | None] | None


def take_both(x: Any, y: Any, use_rep: Pair, layer: Pair) -> tuple[Taken, Taken]:
    """What `fit` takes of its views; use_rep and layer are of both, or a pair. Raises ValueError of one line."""
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
        names = tuple(map(str, view.columns)) if isinstance(view, pd.DataFrame) else None
        return Taken(_in_memory(view), names, None)
    if use_rep is not None and layer is not None:
        raise ValueError(f"{name}: give use_rep or layer, not both, got {use_rep!r} and {layer!r}")
    _, matrix, features = chosen(name, view, Keys(layer=layer, obsm=use_rep))
    return Taken(_in_memory(matrix), features, (use_rep or "X", layer))


def is_annotated(view: Any) -> bool:
    """Whether it is AnnData, or its raw part; anndata need not be there to tell."""
    return all(hasattr(view, name) for name in ("X", "obs_names", "var_names"))


def _in_memory(matrix: Any) -> Any:
    """Read what lies in a file of HDF5 or zarr, and compute what is put off."""
    if isinstance(matrix, torch.Tensor):
        return matrix.detach().cpu().numpy()
    if hasattr(matrix, "to_memory"):  # anndata's sparse matrices in a file
        return matrix.to_memory()
    if type(matrix).__module__.partition(".")[0] == "dask":
        return matrix.compute()
    if type(matrix).__module__.partition(".")[0] in ("h5py", "zarr"):
        if not hasattr(matrix, "keys"):
            return matrix[...]
        from anndata.io import read_elem

        return read_elem(matrix)
    return matrix
