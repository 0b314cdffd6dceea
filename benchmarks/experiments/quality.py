"""Matching quality on real data: FOSCTTM of MMD-MA on SNARE-seq and scGEM, beside the published values.

The published protocol: rows l2-normalised, linear kernel, several starts of which the lowest loss wins, and the setting
of a small grid chosen on the truth. The whole grid is fitted with one variant, its best setting with the others.
Peers (benchmarks.experiments.peers) have other objectives, and settings of their own.
FOSCTTM is the published one, which counts no ties (scGEM has ten cells that coincide in pairs: 0.0001).
Losses of different lambda or sigma are not comparable; what the loss alone would have chosen from the grid is shown
all the same, because it is what a user without the truth can do.

Every start is a fit (benchmarks.experiments.fits). Everything lies in results/MACHINE/quality/.
"""

from __future__ import annotations

import hashlib
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.cross_decomposition import CCA
from sklearn.preprocessing import normalize

from benchmarks.analysis.agreement import matches_apart
from benchmarks.config import ConfigError, HyperparameterGrid, Quality, experiment
from benchmarks.experiments.fits import OF_THE_ESTIMATOR, REFINED, Fit, known_or_measured, style_of
from benchmarks.experiments.peers import PEERS
from benchmarks.figures.style import PAGE, UNLIKE, save
from benchmarks.measuring import guard, machine
from benchmarks.measuring.device import alone
from benchmarks.measuring.measurement import Limits
from benchmarks.measuring.records import Record, write_atomically
from benchmarks.study import Study, chosen_variants, on_this_machine
from mmdma_core import MMDMA, Settings
from mmdma_core.files import views
from mmdma_core.matching import metrics

_LINE, _TOP = 34, 1.3  # of the figure: characters of a line in a legend, and the end of an axis that has room for it
_SETTING = ("n_components", "lambda1", "lambda2", "sigma")
_FIXED = ("learning_rate", "n_epochs", "n_starts", "unbiased", "seed")

Setting = dict[str, Any]  # of the grid: the values of _SETTING; {} of a peer


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
    """The views of a data set as a source of data for a fit, see benchmarks.measuring.measurement.DataSource.

    folder           that holds the files; it is no part of the question
    content          a digest of both files: another file of the same name is another question
    cells, features  of the first view
    """

    folder: InitVar[Path]
    dataset: str
    content: str
    cells: int
    features: int

    name: ClassVar[str] = "published"

    def __post_init__(self, folder: Path) -> None:
        object.__setattr__(self, "_folder", folder)

    @classmethod
    def of_folder(cls, folder: Path, dataset: str) -> Published:
        """Describe the data set below a folder. Raises ConfigError if one of its files is absent."""
        files = _files(folder, dataset)
        for file in files:
            if not file.exists():
                raise ConfigError(
                    f"quality.data: {file} is not there; {DATASETS[dataset].title} is published as "
                    f"{DATASETS[dataset].source}, in this form with SCOT (github.com/rsinghlab/SCOT, data)"
                )
        content = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        return cls(folder, dataset, content, *views.read_view(files[0]).matrix.shape)

    def views(self, n: int, p: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read all cells, which lie in the same order, whatever is asked."""
        x, y = (views.read_view(file).matrix for file in _files(self._folder, self.dataset))
        return x, y, np.arange(self.cells)


def _files(folder: Path, dataset: str) -> tuple[Path, Path]:
    return folder / DATASETS[dataset].x, folder / DATASETS[dataset].y


def run(study: Study, config: dict[str, Any], retry: bool = False) -> str:
    """Fit what is not known (with retry, errors again), write the tables and the figure; return the table in words.

    What lacks something here is a row with the status missing_dependency. Raises ConfigError for keys under `quality`
    that cannot be or if a file of the data is absent, RuntimeError if no setting of the grid comes to an end.
    """
    asked, root = experiment(config, "quality"), study.root / "quality"
    study = on_this_machine(study, config)
    data = {name: Published.of_folder(Path(asked.data), name) for name in asked.datasets}
    others = chosen_variants("quality.variants", asked.variants) if asked.variants else ()
    variants = list(dict.fromkeys([*chosen_variants("quality.grid_variant", [asked.grid_variant]), *others]))
    with alone(study.device, study.root):
        guard.preload(variants, study.device)
        of_each = [_Starts(study, asked, source, retry).of_all(variants) for source in data.values()]
    runs = pd.concat(of_each, ignore_index=True)
    if asked.refined:
        write_atomically(root / "starts.csv", pd.concat([_starts_of(one) for one in of_each]).to_csv(index=False))
    runs = runs.drop(columns="starts")
    write_atomically(root / "runs.csv", runs.to_csv(index=False))
    summary = pd.concat(
        [_summary(starts, source) for starts, source in zip(of_each, data.values(), strict=True)], ignore_index=True
    )
    write_atomically(root / "quality.csv", summary.to_csv(index=False))
    save(_draw(runs, summary), root, "quality")
    return summary.to_string(index=False, na_rep="")


@dataclass(frozen=True)
class _Starts:
    """The fits of a data set, as a table with a row for each start; see `of_all`."""

    study: Study
    asked: Quality
    data: Published
    retry: bool

    def of_all(self, variants: Sequence[str]) -> pd.DataFrame:
        """Fit the grid with the first of the variants, then its best setting with the others, then the peers."""
        grid = pd.concat([self._of(variants[0], setting) for setting in _grid(self.asked.grid)], ignore_index=True)
        best = _best_setting(grid)
        others = [self._of(variant, best) for variant in variants[1:]]
        without_setting = [self._of(variants[0], {})] if self.asked.refined else []
        without_setting += [self._of(peer, {}) for peer in self.asked.peers]
        return pd.concat([grid, *others, *without_setting], ignore_index=True)

    def _of(self, method: str, setting: Setting) -> pd.DataFrame:
        """A row for each start of a method in a setting.

        Without one the starts of a variant are one fit, with the defaults of the estimator, refined; peers run on the
        CPU.
        """
        asked, device, folder = self.asked, self.study.device, self.study.root / "quality" / self.data.dataset
        words = [f"{key} = {value:g}" for key, value in setting.items()]
        starts = asked.n_starts
        if setting:
            folder /= "-".join(f"{key}_{value}" for key, value in setting.items())
        elif method in PEERS:
            device = "cpu"
        else:
            starts = 1
        fits = [self._fit(method, setting, device, asked.seed + k) for k in range(starts)]
        who = machine.describe(device, self.study.threads)
        about = ", ".join([self.data.dataset, *words]) + ": "
        rows = [_row(record) for record in known_or_measured(fits, folder, who, self.retry, about)]
        fixed = {key: getattr(asked, key) for key in _FIXED}
        unset = dict.fromkeys(_SETTING, np.nan)
        of_all = (
            {"dataset": self.data.dataset, "variant": fits[0].variant} | unset | setting | fixed | {"device": device}
        )
        return pd.DataFrame(rows).assign(**of_all)

    def _fit(self, method: str, setting: Setting, device: str, seed: int) -> Fit:
        study, timeout_s = self.study, self.asked.fit_timeout_s
        whole = () if setting or method in PEERS else (("n_starts", self.asked.n_starts),)
        settings = Settings(learning_rate=self.asked.learning_rate, unbiased=self.asked.unbiased, **setting)
        if whole:
            settings = Settings(**{name: getattr(MMDMA(), name) for name in OF_THE_ESTIMATOR})
        return Fit.of(
            method,
            whole=whole,
            n=self.data.cells,
            p=self.data.features,
            settings=settings,
            shape="",
            seed=seed,
            data_mode=Published.name,
            device=device,
            threads=study.threads,
            limits=Limits(timeout_s, timeout_s, study.host_gib, study.gpu_gib if device == "cuda" else None),
            data=self.data,
            updates=self.asked.n_epochs,
            ties=0.0,  # as in the published values
        )


def _grid(values: HyperparameterGrid) -> Iterator[Setting]:
    for chosen in itertools.product(*(getattr(values, key) for key in _SETTING)):
        yield dict(zip(_SETTING, chosen, strict=True))


def _row(record: Record) -> dict[str, Any]:
    found = {key: record.metrics.get(key) for key in ("loss", "foscttm")}
    return {
        "start": record.seed,
        **found,
        "seconds": record.runtime_s,
        "starts": record.metrics.get("starts"),
        "status": record.status,
        "detail": record.last_words,
    }


def _starts_of(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each start of the refined fit, as it was trained."""
    fit = runs[runs["variant"].str.endswith(REFINED)].iloc[0]
    table = pd.DataFrame(fit["starts"] or [])
    table.insert(0, "dataset", fit["dataset"])
    return table


def _of_grid(starts: pd.DataFrame) -> pd.DataFrame:
    """The starts of the grid, which the first variant has fitted, that came to an end."""
    grid = starts[starts["variant"] == starts["variant"].iloc[0]]
    ended = grid[grid["status"] == "ok"]
    if ended.empty:
        dataset, variant, status, detail = grid.iloc[0][["dataset", "variant", "status", "detail"]]
        raise RuntimeError(f"quality: no fit of {dataset} by {variant} came to an end: {status}: {detail}")
    return ended


def _chosen(grid: pd.DataFrame) -> pd.DataFrame:
    """Of each setting the start of the lowest loss."""
    return grid.loc[grid.groupby(list(_SETTING))["loss"].idxmin()]


def _best_setting(starts: pd.DataFrame) -> Setting:
    """The setting of the grid whose chosen start has the least FOSCTTM: it is chosen on the truth."""
    chosen = _chosen(_of_grid(starts))
    row = chosen.loc[chosen["foscttm"].idxmin()]
    return {key: row[key].item() for key in _SETTING} | {"n_components": int(row["n_components"])}


def _compared(starts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of each method its starts in the best setting of the grid, and all of a peer, which has no setting."""
    in_best = (starts[list(_SETTING)] == pd.Series(_best_setting(starts))).all(axis=1)
    kept = starts[in_best | starts["sigma"].isna()]
    return dict(list(kept.groupby("variant", sort=False)))


def _summary(starts: pd.DataFrame, data: Published) -> pd.DataFrame:
    """A row for each method, one of what the loss alone chooses from the grid, and one for each reference."""
    rows = []
    for method, own in _compared(starts).items():
        ended = own[own["status"] == "ok"]
        how = "best setting by truth, start by loss"
        if method in PEERS:
            how = "start by its own loss, another objective"
        elif method.endswith(REFINED):
            how = "defaults, refined, start by what is left"
        if ended.empty:
            rows.append({"variant": method, **own.iloc[0][["status", "detail"]]})
        else:
            rows.append(_summary_row(method, how, ended, ended))
    grid = _of_grid(starts)
    rows.insert(1, _summary_row(rows[0]["variant"], "setting and start by loss", _chosen(grid), grid))
    rows += _references(data, _best_setting(starts)["n_components"])
    table = pd.DataFrame(rows)
    table.insert(0, "dataset", DATASETS[data.dataset].title)
    return table


def _summary_row(variant: str, choice: str, candidates: pd.DataFrame, starts: pd.DataFrame) -> dict[str, Any]:
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


def _references(data: Published, d: int) -> list[dict[str, Any]]:
    x, y, match = data.views(data.cells, data.features, 0)
    pair = CCA(d, max_iter=2000).fit_transform(*(normalize(view) for view in (x, y)))
    found = {
        "published MMD-MA": DATASETS[data.dataset].published,
        "random": 0.5,
        f"linear CCA of {d} components, told the truth": metrics.foscttm(*pair, match, ties=0),
    }
    return [{"variant": name, "foscttm": value} for name, value in found.items()]


def _draw(runs: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """FOSCTTM of every start, one column a method; the chosen one is filled."""
    names = list(dict.fromkeys(runs["dataset"]))
    figure = Figure(figsize=(min(PAGE, 4.7 * len(names)), 4.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for axes, name in zip(panels, names, strict=True):
        references = summary[(summary["dataset"] == DATASETS[name].title) & summary["status"].isna()]
        _panel(axes, _compared(runs[runs["dataset"] == name]), references)
        axes.set_title(f"{DATASETS[name].title}, best setting of the grid", loc="left")
    panels[0].set_ylabel("FOSCTTM of each start; filled: chosen")
    panels[0].set_ylim(0, _TOP)
    panels[0].set_yticks(np.linspace(0, 1, 6))
    return figure


def _panel(axes: Axes, compared: dict[str, pd.DataFrame], references: pd.DataFrame) -> None:
    columns = {method: starts[starts["status"] == "ok"] for method, starts in compared.items()}
    columns = {method: starts for method, starts in columns.items() if not starts.empty}
    for column, (method, starts) in enumerate(columns.items()):
        look = style_of(method)
        axes.scatter(
            column + np.linspace(-0.2, 0.2, len(starts)),
            starts["foscttm"],
            facecolors=np.where(starts["loss"] == starts["loss"].min(), look.color, "none"),
            edgecolors=look.color,
            marker=look.marker,
        )
    for dash, row in zip(("--", ":", "-."), references.itertuples(), strict=True):
        label = textwrap.fill(f"{row.variant}: {row.foscttm:.3f}", _LINE)
        axes.axhline(row.foscttm, color="0.4", linewidth=1, linestyle=dash, label=label)
    apart = matches_apart({method: starts["foscttm"].min() for method, starts in columns.items()})
    ticks = [UNLIKE * (method in apart) + method for method in columns]
    axes.set_xticks(range(len(columns)), ticks, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel(f"{UNLIKE}a match unlike its family's" if apart else "")
    axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
