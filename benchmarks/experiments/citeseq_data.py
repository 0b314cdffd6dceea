"""The views of the CITE-seq experiment: genes against proteins of the same cells, read from a file or simulated.

Either way x (n, genes) is sparse and y (n, proteins) dense, float32, and each row (a cell) has unit length, as in the
published evaluations. Memory is O(nnz) beside blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import scipy.sparse
from scipy.optimize import brentq
from sklearn.preprocessing import normalize

from mmdma_core.simulation import manifold

Views = tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray]

_GENES, _PROTEINS = "GEX", "ADT"  # in var["feature_types"]
_BLOCK_ELEMENTS = 2**22  # of genes that are dense at a time
_SAMPLE = 256  # cells by which the density is set
_LEVEL_SD, _LOADING_SD = 1.5, 0.5  # chosen: few features are high, and all follow the manifold
_PROTEIN_MEAN = 100.0  # chosen: few proteins are 0


@dataclass(frozen=True)
class StandIn:
    """Simulated counts with the shape and the sparsity of the real ones, in place of data that are not there.

    The cells lie on the branch of mmdma_core.simulate, z (n, 2). A count of cell i is Poisson with the mean
    s exp(b_j + z_i . m_j), b_j ~ N(0, 1.5^2), m_j ~ N(0, 0.5^2 I), for genes and proteins alike; s is such that the
    fraction `density` of the gene counts is expected not to be 0, and that protein counts have the mean 100. The rows
    of the genes are permuted.
    """

    cells: int
    genes: int
    proteins: int
    density: float

    name: ClassVar[str] = "stand-in"
    title: ClassVar[str] = "CITE-seq stand-in (simulated)"

    def views(self, n: int, p: int, seed: int) -> Views:
        """x (n, p), y (n, proteins), and match (n,): row i of x is the same cell as row match[i] of y."""
        z = manifold("branch", n, np.random.RandomState(seed + 1))
        stream = np.random.default_rng([seed, n])
        match = stream.permutation(n)
        genes, proteins = (_means(stream, width) for width in (p, self.proteins))
        sample = genes(z[stream.choice(n, min(n, _SAMPLE), replace=False)])
        # A Poisson count of mean r is 0 with the probability exp(-r).
        log_s = brentq(lambda log_s: -np.expm1(-np.exp(log_s) * sample).mean() - self.density, -50, 50)
        rows = max(1, _BLOCK_ELEMENTS // p)
        blocks = (
            scipy.sparse.csr_array(stream.poisson(np.exp(log_s) * genes(z[match[low : low + rows]])).astype(np.float32))
            for low in range(0, n, rows)
        )
        x = scipy.sparse.vstack(list(blocks), format="csr")
        expected = proteins(z)
        y = stream.poisson(_PROTEIN_MEAN / expected.mean() * expected).astype(np.float32)
        return normalize(x, copy=False), normalize(y, copy=False), match


def _means(stream: np.random.Generator, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """z (m, 2) -> the means (m, width) of the counts at those points, up to a factor."""
    levels, loadings = stream.normal(0, _LEVEL_SD, width), stream.normal(0, _LOADING_SD, (2, width))
    return lambda z: np.exp(levels + z @ loadings)


@dataclass(frozen=True)
class Real:
    """Genes (GEX) and proteins (ADT) of an .h5ad file, as they lie beside each other in one of its matrices.

    layer  that is read; None: X
    bytes  size of the file: another file at the same path is another question
    """

    path: str
    layer: str | None
    bytes: int
    cells: int
    genes: int
    proteins: int

    name: ClassVar[str] = "real"

    @property
    def title(self) -> str:
        return f"CITE-seq, {Path(self.path).name}"

    @classmethod
    def of_file(cls, path: str, layer: str | None) -> Real:
        """The data of a file, of which only the annotation is read. Raises ValueError in one line, ImportError."""
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; README says where the data are published, null takes the stand-in")
        with _open(path) as file:
            kinds = _feature_types(file, path)
            matrix = _matrix(file, path, layer)
            shape = tuple(int(size) for size in matrix.attrs.get("shape", getattr(matrix, "shape", ())))
        if len(shape) != 2 or shape[1] != len(kinds) or shape[0] < 4:
            where = f"layer {layer!r}" if layer else "X"
            raise ValueError(
                f"{path}: {where} must hold 4 cells or more of {len(kinds)} features, its shape is {shape}"
            )
        genes, proteins = (int((kinds == kind).sum()) for kind in (_GENES, _PROTEINS))
        return cls(path, layer, Path(path).stat().st_size, shape[0], genes, proteins)

    def views(self, n: int, p: int, seed: int) -> Views:
        """x (n, p), y (n, proteins), and match (n,), which is row by row. n cells of all, drawn by the seed."""
        from anndata.io import read_elem

        with _open(self.path) as file:
            kinds = _feature_types(file, self.path)
            matrix = scipy.sparse.csr_array(read_elem(_matrix(file, self.path, self.layer)))
        if n < self.cells:
            matrix = matrix[np.sort(np.random.default_rng(seed).choice(self.cells, n, replace=False))]
        x, y = (matrix[:, np.flatnonzero(kinds == kind)].astype(np.float32) for kind in (_GENES, _PROTEINS))
        return normalize(x, copy=False), normalize(y.toarray(), copy=False), np.arange(n)


@contextmanager
def _open(path: str) -> Iterator[object]:
    """The file as h5py has it. Raises ValueError for one of another format."""
    import h5py  # comes with anndata

    try:
        file = h5py.File(path, "r")
    except OSError:
        raise ValueError(f"{path}: not an .h5ad file (HDF5); if it ends in .gz, unpack it first") from None
    with file:
        yield file


def _feature_types(file: object, path: str) -> np.ndarray:
    """var["feature_types"] as text. Raises ValueError where there is none, or no genes or proteins."""
    from anndata.io import read_elem

    var = read_elem(file["var"]) if "var" in file else None
    if not isinstance(var, pd.DataFrame):
        raise ValueError(f"{path}: not an .h5ad file: it has no table var, but {', '.join(file) or 'nothing'}")
    if "feature_types" not in var:
        columns = ", ".join(map(str, var.columns)) or "none"
        raise ValueError(f"{path}: var has no column feature_types; its columns: {columns}")
    kinds = var["feature_types"].astype(str).to_numpy()
    for kind, what in ((_GENES, "genes"), (_PROTEINS, "proteins")):
        if kind not in kinds:
            there = ", ".join(f"{name} ({count})" for name, count in pd.Series(kinds).value_counts().items())
            raise ValueError(f"{path}: var['feature_types'] has no {kind} ({what}); there is {there}")
    return kinds


def _matrix(file: object, path: str, layer: str | None) -> object:
    """The element of the file that holds the counts. Raises ValueError if it is absent."""
    place = file if layer is None else file.get("layers", {})
    name = layer or "X"
    if name not in place:
        what = f"layer {layer!r}; its layers: {', '.join(file.get('layers', {})) or 'none'}" if layer else "X"
        raise ValueError(f"{path}: there is no {what}{'; null takes X' if layer else ''}")
    return place[name]
