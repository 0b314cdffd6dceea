"""The paper's experiment on real data: genes against proteins of the same cells (CITE-seq), 1000 epochs.

The data are those of the NeurIPS 2021 competition where config.yaml names their file, else a simulated stand-in of the
same shape, which is called that in all that comes out. Either way x (n, genes) is sparse and y (n, proteins) dense,
float32, and each row (a cell) has unit length, as in the published evaluations. Memory is O(nnz) beside blocks of rows.

Each variant is measured as a point of a study of one n and one p. Everything lies in results/MACHINE/citeseq/real/ or
results/MACHINE/citeseq/stand-in/.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse
from matplotlib.figure import Figure
from scipy.optimize import brentq
from sklearn.preprocessing import normalize

import mmdma_core
from benchmarks import sweep
from benchmarks.analysis.agreement import matches_apart
from benchmarks.config import Citeseq, ConfigError, experiment
from benchmarks.figures.style import PAGE, SMALL, label, save, style
from benchmarks.measuring import machine, records
from benchmarks.measuring.memory import GIB
from benchmarks.measuring.records import Record
from benchmarks.study import Study, chosen_variants
from mmdma_core.matching.pictures import shortened
from mmdma_core.models import in_words
from mmdma_core.simulation import manifold

Views = tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray]
Row = dict[str, Any]  # of the table

_GENES, _PROTEINS = "GEX", "ADT"  # in var["feature_types"]
_BLOCK_ELEMENTS = 2**22  # of genes that are dense at a time
_SAMPLE = 256  # cells by which the density is set
_LEVEL_SD, _LOADING_SD = 1.5, 0.5  # chosen: few features are high, and all follow the manifold
_PROTEIN_MEAN = 100.0  # chosen: few proteins are 0

# The paper, Results: primal with KeOps on one V100 (16 GB).
PUBLISHED: Row = {
    "variant": "published",
    "data": "real",
    "n": 90_261,
    "all_cells": 90_261,
    "genes": 13_953,
    "proteins": 134,
    "epochs": 1000,
    "extrapolated": False,
    "status": "ok",
    "minutes": 68.4,
    "s_per_epoch": 68.4 * 60 / 1000,
    "machine": "V100",
}


def load(base: Study, config: dict[str, Any]) -> Study:
    """Return the experiment as a study of one n and one p, on the device and with the settings of `base`.

    Raises ConfigError for keys under `citeseq` that cannot be: a file that is not there or not CITE-seq, a variant that
    would make the genes dense.
    """
    asked = experiment(config, "citeseq")
    data = _data(asked)
    fraction = asked.cpu_fraction if base.device == "cpu" else 1
    return dataclasses.replace(
        base,
        name="citeseq",
        root=base.root / "citeseq" / data.name,
        n=(max(4, round(fraction * data.cells)),),
        p=(data.genes,),
        variants=_variants(asked.variants),
        epochs=asked.epochs,
        cell_budget_s=asked.cell_budget_s,
        cell_timeout_s=asked.cell_timeout_s,
        sweep_budget_s=2 * asked.cell_timeout_s,  # a sweep is one measurement, which its own limit ends
        gpu_gib=config.get("gpu_memory_gib"),
        host_gib=config.get("host_memory_gib"),
        data=data,
        further=(),  # the study's, which may ask for more cells at as many features
    )


def _data(asked: Citeseq) -> Real | StandIn:
    if asked.path is None:
        return StandIn(asked.cells, asked.genes, asked.proteins, asked.density)
    try:
        return Real.of_file(asked.path, asked.layer)
    except ValueError as error:
        raise ConfigError(f"citeseq.path: {error}") from None


def _variants(names: list[str]) -> tuple[str, ...]:
    able = [name for name in mmdma_core.variants() if "sparse" in mmdma_core.variant(name).accepts]
    chosen = chosen_variants("citeseq.variants", names)
    for name in chosen:
        if name not in able:
            raise ConfigError(f"citeseq.variants: {name!r} takes no sparse view; allowed: {', '.join(able)}")
    return chosen


def run(study: Study, retry: bool = False, budget_s: float = math.inf) -> None:
    """Measure what is not known (with retry, errors again), then write the table, print it and draw the figure.

    No measurement goes on after budget_s seconds.
    """
    print(headline(study), flush=True)
    sweep.run_sweeps(study, budget_s=budget_s, retry=retry)
    rows = [*(_row(study, record) for record in _records(study)), PUBLISHED]
    columns = list(rows[0])
    records.write_atomically(study.root / "citeseq.csv", pd.DataFrame(rows, columns=columns).to_csv(index=False))
    save(draw(study, rows), study.root, "citeseq")
    print(headline(study), *map(sentence, rows), sep="\n")
    print(*(study.root / f"citeseq.{suffix}" for suffix in ("csv", "png", "svg")), sep="\n")


def _records(study: Study) -> list[Record]:
    """What the sweep has just left, however it ended."""
    return [records.read(study.path(variant, study.n[0], study.p[0])) for variant in study.variants]


def _row(study: Study, record: Record) -> Row:
    """A record as a row of the table; times in the units named, None where the measurement did not get that far."""
    peaks = {kind: getattr(record, f"peak_{kind}_bytes") for kind in ("device", "torch", "host")}
    return {
        "variant": record.variant,
        "data": record.data_mode,
        "n": record.n,
        "all_cells": study.data.cells,
        "genes": record.p,
        "proteins": study.data.proteins,
        "density": record.density,
        "d": record.d,
        "epochs": record.epochs,
        "epochs_measured": record.epochs_measured,
        "extrapolated": record.extrapolated,
        "status": record.status,
        "detail": record.detail,
        "minutes": None if record.runtime_s is None else record.runtime_s / 60,
        "s_per_epoch": record.median_epoch_s,
        "data_s": record.data_s,
        "prepare_s": record.prepare_s,
        **{f"peak_{kind}_gib": None if peak is None else peak / GIB for kind, peak in peaks.items()},
        "foscttm": record.metrics.get("foscttm"),
        "foscttm_epoch": record.metrics.get("epoch"),
        "early_loss": record.losses.get("early", {}).get("total"),
        "final_loss": record.losses.get("final", {}).get("total"),
        "machine": machine.recorded_model(record.machine),
        "commit": record.machine["commit"],
    }


def headline(study: Study) -> str:
    """Say what is measured, in one line."""
    return f"{_data_in_words(study)}; {study.epochs:,} epochs on {study.device}, in {study.root}"


def _data_in_words(study: Study) -> str:
    n, data = study.n[0], study.data
    part = f"{n:,} of {data.cells:,} cells ({n / data.cells:.2g})" if n < data.cells else f"all {n:,} cells"
    return f"{data.title}, {part}, {data.genes:,} genes against {data.proteins:,} proteins"


def sentence(row: Row) -> str:
    """Say a row of the table in one line."""
    where = f"{row['variant']} ({row['data']}, {row['n']:,} cells)"
    if row["status"] != "ok":
        return f"{where}: {row['status']} {row['detail'].splitlines()[-1] if row['detail'] else ''}"
    times = f"{row['epochs']:,} epochs in {_time(row)}, {row['s_per_epoch']:.3g} s an epoch"
    if row is PUBLISHED:
        return f"{where}: {times}, on one V100"
    held = {kind: row[f"peak_{kind}_gib"] for kind in ("device", "host")}
    peaks = [f"{in_words(peak * GIB)} {kind}" for kind, peak in held.items() if peak]
    return f"{where}: {times}; peak {', '.join(peaks)}; {_matching(row)}"


def _time(row: Row) -> str:
    time = f"{row['minutes']:.3g} min" if row["minutes"] >= 1.5 else f"{60 * row['minutes']:.3g} s"
    return f"{time} (extrapolated from {row['epochs_measured']:,} epochs)" if row["extrapolated"] else time


def _matching(row: Row) -> str:
    return f"FOSCTTM {row['foscttm']:.3f} after {row['foscttm_epoch']:,} epochs"


def draw(study: Study, rows: list[Row]) -> Figure:
    """Draw the minutes of all epochs, a bar for each variant and the published run; hollow where extrapolated."""
    minutes = [row["minutes"] for row in rows if row["status"] == "ok"]
    left, right = min(minutes) / 4, max(minutes)
    figure = Figure(figsize=(PAGE, 1.6 + 0.6 * len(rows)))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        end = row["minutes"] if row["status"] == "ok" else left
        color = "0.6" if row is PUBLISHED else style(row["variant"]).color
        face = "none" if row["extrapolated"] else color
        axes.barh(place, end - left, 0.5, left, facecolor=face, edgecolor=color)
        axes.annotate(_note(row), (end, place), (5, 0), textcoords="offset points", va="center", fontsize=SMALL)
    axes.set_yticks(range(len(rows)), [_label(row, _apart(rows)) for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left, right * (right / left) ** 0.8)  # room for the notes
    decades = range(math.ceil(math.log10(left)), math.ceil(math.log10(right)) + 1)
    axes.set_xticks([10.0**decade for decade in decades], [f"{10.0**decade:g}" for decade in decades])
    axes.minorticks_off()
    axes.set_xlabel("minutes for all epochs")
    figure.suptitle(
        f"{_data_in_words(study)}\n{study.epochs:,} epochs on {shortened(rows[0]['machine'])}", x=0.02, ha="left"
    )
    figure.tight_layout()
    return figure


def _apart(rows: list[Row]) -> set[str]:
    """The variants whose match is worse than that of their family after as many epochs of the same problem."""
    measured = [row for row in rows if row is not PUBLISHED and row["status"] == "ok"]
    same = [
        {row["variant"]: row["foscttm"] for row in measured if _problem(row) == one} for one in map(_problem, measured)
    ]
    return set().union(*map(matches_apart, same))


def _problem(row: Row) -> tuple:
    return row["data"], row["n"], row["foscttm_epoch"]


def _label(row: Row, apart: set[str]) -> str:
    if row is PUBLISHED:
        return f"published, primal with KeOps, V100\nreal, {row['n']:,} cells, {row['epochs']:,} epochs"
    return f"{label(row['variant'], apart)}\n{row['data']}, {row['n']:,} cells"


def _note(row: Row) -> str:
    if row["status"] != "ok":
        return row["status"]
    return _time(row) if row is PUBLISHED else f"{_time(row)}\n{_matching(row)}"


# The views, simulated or read from a file


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
        """Draw x (n, p), y (n, proteins), and match (n,): row i of x is the same cell as row match[i] of y."""
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
        """Describe the data of a file, of which only the annotation is read. Raises ValueError in one line."""
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
        """Read x (n, p), y (n, proteins), and match (n,), which is row by row. n cells of all, drawn by the seed."""
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
