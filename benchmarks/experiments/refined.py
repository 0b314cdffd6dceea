"""Refined matches of simulated data, over seeds of the data: is the right one chosen, how near is it, in which time.

A fit is MMDMA from the principal axes alone, no epochs, refined and chosen without the truth; see
mmdma_core.matching.refinement. Half of all fits of a shape with a mirror symmetry would be right by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from benchmarks.config import Scale
from benchmarks.experiments.fits import REFINED, Fit, known_or_measured, of_simulated
from benchmarks.figures.style import Style, above_legend, count, save
from benchmarks.measuring import records
from benchmarks.measuring.records import Record
from benchmarks.study import Study

_METHOD = "primal-fourier"  # which would train; nothing is trained
_PARAMETERS = (("starts", "symmetries"), ("n_starts", 0), ("n_epochs", 0), ("l2_normalize", False))
_RIGHT = 0.1  # FOSCTTM below which a match is the right one: a mirrored one has some 0.4 to 0.6
_LOOKS = {"branch": ("#0072B2", "o"), "triangle": ("#D55E00", "^")}
LOOK = Style(f"principal axes, {REFINED}; all stages", "#000000", "D", "-")  # beside single starts
_SPREAD = 0.12  # of the logarithm of n, by which the seeds stand apart


def run(study: Study, asked: Scale, who: dict[str, Any], retry: bool) -> tuple[pd.DataFrame, list[Record]]:
    """Fit what is not known; write seeds.csv, its summary and a figure.

    Returns a row for each fit, and the records of the study's own data.
    """
    root = study.root / "scale"
    rows, own = [], []
    for shape, data_seed, fits in _fits(study, asked):
        folder = root / "seeds" / f"{shape}{data_seed}"
        for record in known_or_measured(fits, folder, who, retry, f"{shape}, data seed {data_seed}: "):
            found = {key: record.metrics.get(key) for key in ("foscttm", "ambiguous", "errors")}
            about = {"shape": shape, "n": record.n, "data_seed": data_seed, "status": record.status}
            if (shape, data_seed) == (study.shape, study.seed):
                own.append(record)
            rows.append(about | found | {"seconds": record.runtime_s, "compile_s": record.metrics.get("compile_s")})
    table = pd.DataFrame(rows)
    records.write_atomically(root / "seeds.csv", table.to_csv(index=False))
    records.write_atomically(root / "seeds_summary.csv", summary(table).to_csv(index=False))
    save(draw(table, asked), root, "seeds")
    return table, own


def _fits(study: Study, asked: Scale) -> Iterator[tuple[str, int, list[Fit]]]:
    for shape in asked.refined.shapes:
        for data_seed in asked.refined.data_seeds:
            data = {"shape": shape, "data_seed": data_seed}
            ns = sorted(asked.refined.n)
            fits = [of_simulated(study, asked, _METHOD, n, asked.seed, whole=_PARAMETERS, **data) for n in ns]
            yield shape, data_seed, fits


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return for each shape and n the share of right matches, of ambiguous ones, the median FOSCTTM and seconds."""
    ended = table[table["status"] == "ok"]
    ended = ended.assign(right=ended["foscttm"] < _RIGHT, ambiguous=ended["ambiguous"].astype(bool))
    ended["wrong_unsaid"] = ~ended["right"] & ~ended["ambiguous"]
    means = ended.groupby(["shape", "n"])[["right", "ambiguous", "wrong_unsaid"]].mean()
    medians = ended.groupby(["shape", "n"])[["foscttm", "seconds"]].median()
    largest = ended.groupby(["shape", "n"])["foscttm"].max().rename("foscttm_largest")
    return means.join(medians).join(largest).join(ended.groupby(["shape", "n"]).size().rename("seeds")).reset_index()


def draw(table: pd.DataFrame, asked: Scale) -> Figure:
    """Draw FOSCTTM of each data seed against n; open: the software says that the data do not tell."""
    handles = [
        Line2D([], [], linestyle="", color=_LOOKS[shape][0], marker=_LOOKS[shape][1], label=shape)
        for shape in asked.refined.shapes
    ]
    handles.append(
        Line2D([], [], linestyle="", color="0.3", marker="o", fillstyle="none", label="said to be ambiguous")
    )
    figure, upper = above_legend(3.4, [handles])
    axes = upper.subplots()
    seeds = sorted(table["data_seed"].unique())
    for (shape, seed), rows in table[table["status"] == "ok"].groupby(["shape", "data_seed"]):
        color, marker = _LOOKS[shape]
        apart = 10 ** (_SPREAD * (seeds.index(seed) / max(1, len(seeds) - 1) - 0.5))
        faces = np.where(rows["ambiguous"].astype(bool), "none", color)
        axes.scatter(rows["n"] * apart, rows["foscttm"], s=28, facecolors=faces, edgecolors=color, marker=marker)
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted(table["n"].unique()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_xlabel("cells of each view")
    axes.set_ylabel("FOSCTTM (0 is best, 0.5 is chance)")
    axes.set_title(f"principal axes, {REFINED}, p = {asked.p}, data seeds {seeds[0]} to {seeds[-1]}", loc="left")
    axes.grid(True, color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def in_words(table: pd.DataFrame) -> list[str]:
    """Say the summary of all fits, a line for each shape and n."""
    return [
        f"{row.shape:<9} n = {row.n:<8} right {row.right:.0%}, ambiguous {row.ambiguous:.0%} of {row.seeds} seeds; "
        f"FOSCTTM {row.foscttm:.4f} (median), {row.foscttm_largest:.4f} (largest); {row.seconds:.1f} s"
        for row in summary(table).itertuples()
    ]
