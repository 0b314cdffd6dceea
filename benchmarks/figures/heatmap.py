"""Figure 1A: the fastest variant over n and p. A second map takes every exact variant of the study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from benchmarks.figures.style import log_axis, style
from benchmarks.paper.fastest import winner

_NOTHING_FITS = {"facecolor": "white", "edgecolor": "0.35", "hatch": "////", "linewidth": 0}
_TOO_SLOW = {"facecolor": "0.82", "edgecolor": "none"}
_NOT_ALL = {"facecolor": "0.93", "edgecolor": "0.6", "hatch": "..", "linewidth": 0}
_UNTESTED = {"facecolor": "none", "edgecolor": "0.8", "linestyle": ":", "linewidth": 0.6}


def draw(table: pd.DataFrame, ns: Sequence[int], ps: Sequence[int], variants: Sequence[str], title: str) -> Figure:
    """The map: colour = the variant with the lowest runtime_s among `variants`.

    Hatched: every variant ran out of memory there. Grey: none came to an end, and time was a reason. Stippled: none
    came to an end, and some could not be tried. Dotted outline: no variant was tried.
    """
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_subplot()
    edges_n, edges_p = _edges(ns), _edges(ps)
    cells = {point: group for point, group in table[table["variant"].isin(variants)].groupby(["n", "p"])}
    used: set[str] = set()
    for i, n in enumerate(ns):
        for j, p in enumerate(ps):
            what = winner(cells.get((n, p)), len(variants))
            used.add(what)
            corner = (edges_n[i], edges_p[j])
            size = (edges_n[i + 1] - edges_n[i], edges_p[j + 1] - edges_p[j])
            axes.add_patch(Rectangle(corner, *size, **_patch_style(what)))
    axes.set_xlim(edges_n[0], edges_n[-1])
    axes.set_ylim(edges_p[0], edges_p[-1])
    log_axis(axes, "x", ns)
    log_axis(axes, "y", ps)
    axes.set_xlabel("number of cells n")
    axes.set_ylabel("number of features p")
    axes.set_title(title, loc="left")
    _legend(axes, [*(v for v in variants if v in used), *(s for s in SPECIAL if s in used)])
    return figure


SPECIAL = {
    "nothing fits": ("every variant ran out of memory", _NOTHING_FITS),
    "too slow": ("none ended in the time given", _TOO_SLOW),
    "not all": ("none ended, not all could run", _NOT_ALL),
    "untested": ("not tested", _UNTESTED),
}


def _patch_style(what: str) -> dict:
    if what in SPECIAL:
        return SPECIAL[what][1]
    return {"facecolor": style(what).color, "edgecolor": "white", "linewidth": 0.8}


def _legend(axes: Axes, used: Sequence[str]) -> None:
    handles = [
        Patch(label=SPECIAL[what][0] if what in SPECIAL else style(what).label, **_patch_style(what)) for what in used
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), title="fastest")


def _edges(values: Sequence[int]) -> np.ndarray:
    """Borders of the cells: halfway between neighbours on the log axis."""
    logs = np.log(np.asarray(values, dtype=float))
    if len(logs) == 1:
        return np.exp([logs[0] - 0.5, logs[0] + 0.5])
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))
