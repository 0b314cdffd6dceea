"""Matching quality on real data: FOSCTTM of MMD-MA on SNARE-seq and scGEM, beside the published values.

The published protocol: rows l2-normalised, linear kernel, several starts of which the lowest loss wins, and the setting
of a small grid chosen on the truth. The whole grid is fitted with one variant, its best setting with the others.
Peers (benchmarks.experiments.peers) have other objectives, and settings of their own.
FOSCTTM is the published one, which counts no ties (scGEM has ten cells that coincide in pairs: 0.0001).
Losses of different lambda or sigma are not comparable; what the loss alone would have chosen from the grid is shown
all the same, because it is what a user without the truth can do.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.cross_decomposition import CCA
from sklearn.preprocessing import normalize

from benchmarks.analysis.agreement import matches_apart
from benchmarks.config import ConfigError
from benchmarks.experiments.peers import PEERS, absent
from benchmarks.experiments.scale import Fit, known_or_measured, style_of
from benchmarks.figures.style import PAGE, UNLIKE, save
from benchmarks.measuring import machine
from benchmarks.measuring.fingerprint import fingerprint_of
from benchmarks.measuring.measurement import Limits
from benchmarks.measuring.records import Record, write_atomically
from mmdma_core import MMDMA, MissingDependency, Settings
from mmdma_core.files import views
from mmdma_core.matching import metrics

_LINE, _TOP = 34, 1.3  # of the figure: characters of a line in a legend, and the end of an axis that has room for it
_SETTING = ["n_components", "lambda1", "lambda2", "sigma"]
_FIT = ["dataset", "variant", *_SETTING]


@dataclass(frozen=True)
class Dataset:
    """Files of both views below the data folder, where they are published, and the published FOSCTTM of MMD-MA."""

    title: str
    x: str
    y: str
    source: str
    published: float


DATASETS = {
    "snareseq": Dataset(
        "SNARE-seq", "snareseq/SNAREseq_atac_feat.npy", "snareseq/SNAREseq_rna_feat.npy", "GEO GSE126074", 0.150
    ),
    "scgem": Dataset("scGEM", "scgem/scGEM_expression.txt", "scgem/scGEM_methylation.txt", "SRP077853", 0.201),
}


@dataclass(frozen=True)
class Published:
    """The views of a data set as a source of data for a fit, see benchmarks.measuring.measurement.DataSource."""

    folder: str
    dataset: str

    name: ClassVar[str] = "published"

    def views(self, n: int, p: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All cells, which lie in the same order, whatever is asked."""
        x, y = _load(Path(self.folder), self.dataset)
        return x, y, np.arange(len(x))


def run(options: dict[str, Any], root: Path, device: str = "cpu", threads: int = 1) -> str:
    """Fit what is not known yet, write the tables and the figure; the table in words.

    options  `quality` of config.yaml
    root     results/MACHINE; everything lies in its folder `quality`
    device   where the variants run
    threads  of the peers

    What lacks something here is named, and a row with the status missing_dependency. Raises ConfigError if a file of
    the data is absent.
    """
    data = {name: _load(Path(options["data"]), name) for name in options["datasets"]}
    # First, since their children must not be forked off a process that has computed.
    peers = {name: _of_peers(options, root / "quality", name, x.shape, threads) for name, (x, _) in data.items()}
    runs = _Runs(root / "quality" / "runs.csv", options, device)
    lacking: dict[str, dict[str, str]] = {name: {} for name in data}
    for name, (x, y) in data.items():
        for setting in _grid(options):
            runs.fit(name, x, y, options["grid_variant"], setting)
        best = _best_setting(runs.of(name, options["grid_variant"]))
        for variant in options["variants"]:
            try:
                runs.fit(name, x, y, variant, best)
            except MissingDependency as error:
                print(f"{name}: left out: {error}", flush=True)
                lacking[name][variant] = str(error)
    parts = []
    for name, (x, y) in data.items():
        rows = [
            *_rows(runs, name),
            *_unfitted(lacking[name]),
            *_rows_of_peers(peers[name]),
            *_references(runs, name, x, y),
        ]
        parts.append(pd.DataFrame(rows).assign(dataset=DATASETS[name].title).set_index("dataset").reset_index())
    summary = pd.concat(parts, ignore_index=True)
    write_atomically(root / "quality" / "quality.csv", summary.to_csv(index=False))
    save(_draw(runs, peers, summary, options), root / "quality", "quality")
    return summary.to_string(index=False, na_rep="")


def _of_peers(
    options: dict[str, Any], root: Path, dataset: str, shape: tuple[int, int], threads: int
) -> dict[str, list[Record]]:
    """Of each peer the records of its starts."""
    found, who = {}, machine.describe("cpu", threads)
    for name in options["peers"]:
        fits = [
            Fit(
                variant=name,
                n=shape[0],
                p=shape[1],
                source=fingerprint_of(PEERS[name].fit, module=__name__),
                absent=absent(PEERS[name]),
                settings=Settings(),
                shape="",
                seed=options["seed"] + k,
                data_mode=Published.name,
                epochs=1,
                device="cpu",
                threads=threads,
                limits=Limits(options["fit_timeout_s"], options["fit_timeout_s"], None, None),
                data=Published(options["data"], dataset),
            )
            for k in range(options["n_starts"])
        ]
        found[name] = [known_or_measured(fit, root / dataset, who) for fit in fits]
    return found


def _load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    files = [folder / DATASETS[name].x, folder / DATASETS[name].y]
    for file in files:
        if not file.exists():
            raise ConfigError(
                f"quality.data: {file} is not there; {DATASETS[name].title} is published as {DATASETS[name].source}, "
                "in this form with SCOT (github.com/rsinghlab/SCOT, data)"
            )
    return tuple(views.read_view(file).matrix for file in files)


def _grid(options: dict[str, Any]) -> Iterator[dict[str, float]]:
    for values in itertools.product(*(options["grid"][key] for key in _SETTING)):
        yield dict(zip(_SETTING, values, strict=True))


class _Runs:
    """The table of all starts, one row each; a fit that it holds already is not repeated."""

    def __init__(self, path: Path, options: dict[str, Any], device: str) -> None:
        self.path, self.options = path, options
        self.fixed = {key: options[key] for key in ("learning_rate", "n_epochs", "n_starts", "unbiased", "seed")}
        self.fixed["device"] = device
        self.table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*_FIT, *self.fixed])

    def of(self, dataset: str, variant: str, setting: dict[str, float] | None = None) -> pd.DataFrame:
        """The starts of the options as they are now."""
        wanted = {"dataset": dataset, "variant": variant} | self.fixed | (setting or {})
        chosen = pd.Series(True, index=self.table.index)
        for key, value in wanted.items():
            chosen &= self.table[key] == value
        return self.table[chosen]

    def fit(self, dataset: str, x: np.ndarray, y: np.ndarray, variant: str, setting: dict[str, float]) -> None:
        if not self.of(dataset, variant, setting).empty:
            return
        match, found = np.arange(len(x)), []

        def evaluate(run: Any, terms: Any) -> None:
            found.append(metrics.foscttm(*run.embeddings(), match, ties=0))

        parameters = {k: v for k, v in self.fixed.items() if k != "seed"} | setting
        model = MMDMA(
            variant,
            **parameters,
            random_state=self.options["seed"],
            l2_normalize=True,
            loss_every=self.options["n_epochs"],
            callbacks=[evaluate],
        ).fit(x, y)
        if set(model.starts_["stopped"].dropna()):
            raise KeyboardInterrupt  # a fit that was cut short is not recorded
        rows = model.starts_[["seed", "loss", "seconds"]].rename(columns={"seed": "start"}).assign(foscttm=found)
        rows = rows.assign(dataset=dataset, variant=variant, **setting, **self.fixed)
        self.table = rows if self.table.empty else pd.concat([self.table, rows], ignore_index=True)
        write_atomically(self.path, self.table.to_csv(index=False))
        chosen = rows.loc[rows["loss"].idxmin(), "foscttm"]
        words = ", ".join(f"{key} = {value:g}" for key, value in setting.items())
        print(f"{dataset:<9} {variant:<13} {words}: FOSCTTM {chosen:.3f}", flush=True)


def _chosen(starts: pd.DataFrame) -> pd.DataFrame:
    """Of each setting the start with the lowest loss."""
    return starts.loc[starts.groupby(_SETTING)["loss"].idxmin()]


def _best_setting(starts: pd.DataFrame) -> dict[str, float]:
    chosen = _chosen(starts)
    row = chosen.loc[chosen["foscttm"].idxmin()]
    return {key: row[key].item() for key in _SETTING} | {"n_components": int(row["n_components"])}


def _rows(runs: _Runs, dataset: str) -> list[dict[str, Any]]:
    """One row a variant in the best setting, and one of what the loss alone chooses from the grid."""
    options = runs.options
    grid = runs.of(dataset, options["grid_variant"])
    best = _best_setting(grid)
    rows = []
    for variant in _variants(runs, dataset, best):
        starts = runs.of(dataset, variant, best)
        rows.append(_row(variant, "best setting by truth, start by loss", starts, starts))
    rows.insert(1, _row(options["grid_variant"], "setting and start by loss", _chosen(grid), grid))
    return rows


def _unfitted(lacking: dict[str, str]) -> list[dict[str, Any]]:
    return [{"variant": name, "status": "missing_dependency", "detail": why} for name, why in lacking.items()]


def _rows_of_peers(peers: dict[str, list[Record]]) -> list[dict[str, Any]]:
    rows = []
    for name, records in peers.items():
        starts = _starts(records)
        if starts.empty:
            detail = records[0].last_words
            rows.append({"variant": name, "status": records[0].status, "detail": detail})
        else:
            rows.append(_row(name, "start by its own loss, another objective", starts, starts))
    return rows


def _starts(records: list[Record]) -> pd.DataFrame:
    """Those that came to an end, as the rows of a variant's; there is no setting of MMD-MA."""
    ended = [record for record in records if record.status == "ok"]
    columns = ("loss", "foscttm")
    rows = [{key: record.metrics[key] for key in columns} | {"seconds": record.runtime_s} for record in ended]
    return pd.DataFrame(rows, columns=[*columns, "seconds", *_SETTING])


def _references(runs: _Runs, dataset: str, x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
    d = _best_setting(runs.of(dataset, runs.options["grid_variant"]))["n_components"]
    pair = CCA(d, max_iter=2000).fit_transform(*(normalize(view) for view in (x, y)))
    found = {
        "published MMD-MA": DATASETS[dataset].published,
        "random": 0.5,
        f"linear CCA of {d} components, told the truth": metrics.foscttm(*pair, np.arange(len(x)), ties=0),
    }
    return [{"variant": name, "foscttm": value} for name, value in found.items()]


def _variants(runs: _Runs, dataset: str, setting: dict[str, float]) -> list[str]:
    """Those that were fitted, the one of the grid first."""
    asked = [runs.options["grid_variant"], *runs.options["variants"]]
    return [variant for variant in asked if not runs.of(dataset, variant, setting).empty]


def _row(variant: str, choice: str, candidates: pd.DataFrame, starts: pd.DataFrame) -> dict[str, Any]:
    """The candidate of the lowest loss, and how much the starts scatter."""
    winner = candidates.loc[candidates["loss"].idxmin()]
    return {
        "variant": variant,
        "status": "ok",
        "chosen": choice,
        "foscttm": winner["foscttm"],
        **{key: winner[key] for key in _SETTING},
        "starts": len(starts),
        "starts_lowest": starts["foscttm"].min(),
        "starts_median": starts["foscttm"].median(),
        "starts_highest": starts["foscttm"].max(),
        "seconds_a_start": starts["seconds"].median(),
    }


def _draw(
    runs: _Runs, peers: dict[str, dict[str, list[Record]]], summary: pd.DataFrame, options: dict[str, Any]
) -> Figure:
    """FOSCTTM of every start, one column a variant, then the peers; the start of the lowest loss is filled."""
    names = options["datasets"]
    figure = Figure(figsize=(min(PAGE, 4.7 * len(names)), 4.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for axes, name in zip(panels, names, strict=True):
        best = _best_setting(runs.of(name, options["grid_variant"]))
        columns = {variant: runs.of(name, variant, best) for variant in _variants(runs, name, best)}
        columns |= {peer: starts for peer, found in peers[name].items() if not (starts := _starts(found)).empty}
        for column, (method, starts) in enumerate(columns.items()):
            look = style_of(method)
            axes.scatter(
                column + np.linspace(-0.2, 0.2, len(starts)),
                starts["foscttm"],
                facecolors=np.where(starts["loss"] == starts["loss"].min(), look.color, "none"),
                edgecolors=look.color,
                marker=look.marker,
            )
        references = summary[(summary["dataset"] == DATASETS[name].title) & summary["status"].isna()]
        for dash, row in zip(("--", ":", "-."), references.itertuples(), strict=True):
            label = textwrap.fill(f"{row.variant}: {row.foscttm:.3f}", _LINE)
            axes.axhline(row.foscttm, color="0.4", linewidth=1, linestyle=dash, label=label)
        apart = matches_apart({method: starts["foscttm"].min() for method, starts in columns.items()})
        ticks = [UNLIKE * (method in apart) + method for method in columns]
        axes.set_xticks(range(len(columns)), ticks, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlabel(f"{UNLIKE}a match unlike its family's" if apart else "")
        axes.set_title(f"{DATASETS[name].title}, best setting of the grid", loc="left")
        axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
    panels[0].set_ylabel("FOSCTTM of each start (filled: lowest loss)")
    panels[0].set_ylim(0, _TOP)
    panels[0].set_yticks(np.linspace(0, 1, 6))
    return figure
