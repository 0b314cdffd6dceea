"""Cells with names in the containers of scverse: AnnData in .h5ad, .h5ad.gz and .zarr, MuData in .h5mu."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmdma_core.errors import MissingDependency
from mmdma_core.files.formats import DAMAGED, View, existing, hdf5_filters, of_share, reading

# Suffix -> the package that reads it, and what every such file has at its top.
ANNOTATED = {
    ".h5ad": ("anndata", ("obs", "var")),
    ".h5ad.gz": ("anndata", ("obs", "var")),
    ".h5mu": ("mudata", ("mod",)),
    ".zarr": ("anndata", ("obs", "var")),
}


class Keys(NamedTuple):
    """What to take of an object with annotation; None: X, all features."""

    modality: str | None = None
    layer: str | None = None
    obsm: str | None = None
    feature_type: str | None = None


def called(where: str, keys: Keys) -> str:
    """Return what errors call a matrix of a file."""
    named = {"modality": keys.modality, "layer": keys.layer, "obsm": keys.obsm}
    return ", ".join([where, *(f"{name} {key!r}" for name, key in named.items() if key is not None)])


def read_annotated(path: Path, kind: str, keys: Keys, share: tuple[int, int] = (0, 1)) -> View:
    """Read what the keys name in such a file. Raises ValueError.

    share  (k, m): of a .h5ad file the rows of the k-th of m shares alone; its object leaves X in the file then
    """
    what = f"a {kind} {'folder' if kind == '.zarr' else 'file'}"
    try:
        module = importlib.import_module(ANNOTATED[kind][0])
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{path} needs {error.name}: pip install 'mmdma-benchmark[anndata]'") from error
    from anndata._io.specs.registry import IORegistryError  # it has no public name

    with ExitStack() as stack:
        file = stack.enter_context(_unpacked(path)) if kind.endswith(".gz") else path
        if kind == ".zarr":
            _check_codecs(path)
        else:
            stack.enter_context(hdf5_filters(path, file))
        modalities = _contents(path, file, kind, what)
        if kind == ".h5mu" and keys.modality not in modalities:
            got = "none was given" if keys.modality is None else f"there is no {keys.modality!r}"
            raise ValueError(f"{path}: modality must be one of {listed(modalities)}; {got}")
        read = {".h5mu": "read_h5mu", ".zarr": "read_zarr"}.get(kind, "read_h5ad")
        stack.enter_context(reading(path, what, *DAMAGED, SystemError, IORegistryError))
        # of mudata, about its own next version
        stack.enter_context(warnings.catch_warnings(category=FutureWarning, action="ignore"))
        apart = share[1] > 1 and kind == ".h5ad"
        source = getattr(module, read)(file, **({"backed": "r"} if apart else {}))
        data = source if keys.modality is None else source.mod[keys.modality]
        if apart:
            data = data[of_share(data.n_obs, share)].to_memory()
    view = chosen(called(str(path), Keys(keys.modality)), data, keys)
    cells = names(source.obs_names) if apart else view.cells
    return replace(view, cells=cells, source=source, modality=keys.modality)


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """Unpack a .gz file into a temporary one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, path.stem)
        with reading(path, "a .gz file", *DAMAGED), gzip.open(path) as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)
        yield file


def _check_codecs(path: Path) -> None:
    """Raise ValueError for a codec that unpickles: it would run code of the file."""
    for folder, _, files in os.walk(path, followlinks=True):
        for file in sorted(Path(folder, name) for name in files if name in (".zarray", ".zmetadata", "zarr.json")):
            with reading(path, "a .zarr folder", json.JSONDecodeError, UnicodeError, RecursionError):
                found = [name for name in _codecs(json.loads(existing(file).read_bytes())) if "pickle" in name.lower()]
            if found:
                raise ValueError(f"{path}: {file.relative_to(path)} has the codec {found[0]!r}, which could run code")


def _codecs(value: Any) -> Iterator[str]:
    """Find the names of codecs, and maybe others, in the metadata of zarr."""
    if isinstance(value, dict):
        yield from (value[key] for key in ("id", "name") if isinstance(value.get(key), str))
        for key, entry in value.items():
            if key != "attributes" and not key.endswith(".zattrs"):
                yield from _codecs(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _codecs(entry)


def _contents(path: Path, file: Path, kind: str, what: str) -> list[str]:
    """List the modalities of a .h5mu file, of others none. Raises ValueError for a file of another kind."""
    package, needed = ANNOTATED[kind]
    with reading(path, what, *DAMAGED):
        if kind == ".zarr":
            import zarr  # comes with anndata, as h5py does

            there, modalities = sorted(zarr.open_group(file, mode="r").keys()), []
        else:
            import h5py

            with h5py.File(file, "r") as opened:
                there = list(opened)
                modalities = list(opened["mod"]) if kind == ".h5mu" and "mod" in there else []
    if not set(needed) <= set(there):
        lacks = f"it has no {' and '.join(needed)}, it has {listed(there)}"
        raise ValueError(f"{path} is no {what.split()[-1]} of {package}: {lacks}")
    return modalities


def chosen(where: str, data: Any, keys: Keys) -> View:
    """Return what the keys name in an AnnData object, its modality aside. Raises ValueError."""
    layer, obsm = keys.layer, keys.obsm
    for name, key, attribute in (("layer", layer, "layers"), ("obsm", obsm, "obsm")):
        held = [held for held in getattr(data, attribute, ()) if held is not None]  # raw data have none
        if key is not None and key not in held:
            raise ValueError(f"{where}: there is no {name} {key!r}; {name}: {listed(held)}")
    cells = names(data.obs_names)
    if obsm is not None:
        if keys.feature_type is not None:
            raise ValueError(f"{where}: feature_type is for X and layers, not for obsm {obsm!r}")
        matrix = data.obsm[obsm]
        return View(matrix, cells, names(matrix.columns) if isinstance(matrix, pd.DataFrame) else None)
    matrix = data.X if layer is None else data.layers[layer]
    if matrix is None:
        raise ValueError(f"{where}: X is empty; layer: {listed(data.layers)}; obsm: {listed(data.obsm)}")
    view = View(matrix, cells, names(data.var_names))
    if keys.feature_type is None:
        return view
    if "feature_types" not in data.var:
        raise ValueError(f"{where}: there is no column 'feature_types' in var; columns: {listed(data.var)}")
    return of_type(called(where, Keys(layer=layer)), view, data.var["feature_types"].astype(str), keys.feature_type)


def of_type(where: str, view: View, types: Sequence[str], feature_type: str | None) -> View:
    """Return the features of a type; all, if none is asked for and all are of one. Raises ValueError."""
    types = np.array(types, object)
    present = pd.Series(types).value_counts(sort=False)
    if feature_type is None and len(present) <= 1:
        return view
    if feature_type not in present.index:
        got = "none was given" if feature_type is None else f"there is no {feature_type!r}"
        there = ", ".join(f"{name!r} ({count})" for name, count in present.items()) or "none"
        raise ValueError(f"{where}: feature_type must be one of {there}; {got}")
    taken = np.flatnonzero(types == feature_type)
    return View(view.matrix[:, taken], view.cells, tuple(view.features[k] for k in taken))


def rows_of_obs(source: Any, modality: str, cells: Sequence[str]) -> np.ndarray:
    """Return, for each cell of a modality, its row of the obs that all modalities of MuData share; -1 for none."""
    if modality not in source.obsmap:  # of a writer that has no such table
        return pd.Index(source.obs_names).get_indexer(pd.Index(cells))
    counted = np.asarray(source.obsmap[modality]).ravel()  # for each row its cell, counted from 1, or 0
    rows = np.full(len(cells), -1)
    rows[counted[counted > 0] - 1] = np.flatnonzero(counted > 0)
    return rows


def column_of_obs(view: Any, name: str) -> pd.Series | None:
    """Return a column of obs for the cells of a view from AnnData or MuData; None if there is none of the name.

    Of MuData it is one of the modality's own obs, else of the obs that all share, with the modality's prefix or as it
    is named; with the prefix of another modality, that one's.
    """
    if view.annotated is None:
        return None
    if name in view.annotated.obs:
        return view.annotated.obs[name]
    if view.modality is None:
        return None
    mudata, shared = view.source, None
    for key in (f"{view.modality}:{name}", name):
        if key in mudata.obs and shared is None:
            shared = mudata.obs[key].astype(object).reset_index(drop=True)
    other, _, column = name.partition(":")
    if shared is None and other in mudata.mod and column in mudata[other].obs:
        theirs = mudata[other].obs[column].astype(object)
        shared = theirs.set_axis(rows_of_obs(mudata, other, names(theirs.index))).drop(-1, errors="ignore")
    return None if shared is None else shared.reindex(rows_of_obs(mudata, view.modality, view.cells))


def names(index: pd.Index) -> tuple[str, ...]:
    """Return the names of an index as text."""
    return tuple(map(str, index))


def listed(keys: Any) -> str:
    """List keys for an error."""
    return ", ".join(repr(key) for key in keys if key is not None) or "none"


def as_stored(name: str, value: Any) -> Any:
    """Return a parameter as AnnData can write it into uns, see io.write_embedding. Raises ValueError."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not key or "/" in key:
                raise ValueError(f"{name} must have names without '/' as keys, got {key!r}")
        return {key: as_stored(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        kinds = {type(entry) for entry in value}
        if len(kinds) == 1 and issubclass(*kinds, (str, bool, int, float, np.generic)):
            value = np.array(value)
    if not isinstance(value, (list, tuple)) and np.asarray(value).dtype.kind in "biufU":
        return value
    try:
        return json.dumps(value)
    except TypeError:
        raise ValueError(f"{name} must be text, numbers, lists or mappings of them, got {value!r}") from None
