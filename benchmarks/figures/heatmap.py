"""Figure 1A: the fastest variant over n and p. A second map takes every exact variant of the study."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle

from benchmarks.analysis.published import Winners, winners_over
from benchmarks.figures.style import (
    LEGEND_ROW,
    TIGHT,
    across_in,
    bands,
    grid_axes,
    key_of_unlike,
    label,
    legend,
    log_axis,
    style,
)

_NOTHING_FITS = {"facecolor": "white", "edgecolor": "0.35", "hatch": "////", "linewidth": 0}
_TOO_SLOW = {"facecolor": "0.82", "edgecolor": "none"}
_NOT_ALL = {"facecolor": "0.93", "edgecolor": "0.6", "hatch": "..", "linewidth": 0}
_UNTESTED = {"facecolor": "none", "edgecolor": "0.8", "linestyle": ":", "linewidth": 0.6}
_EQUAL = "split: equally fast"
_WIDTH, _LEFT, _RIGHT, _ABOVE, _BELOW, _FRAME = 5.3, 0.65, 0.1, 0.45, 0.75, 2.55  # inches
_LEAST = 0.1  # inches: where a point on log axes would be thinner, all have one size


def draw(
    table: pd.DataFrame,
    ns: Sequence[int],
    ps: Sequence[int],
    maps: Sequence[tuple[str, Sequence[str]]],
    apart: Collection[str] = (),
) -> list[Figure]:
    """Draw a map for each (title, variants): colour = the variant with the lowest runtime_s among `variants`.

    Split are points with several that are equally fast (benchmarks.analysis.published.winners), the lowest runtime at
    the lower left. Hatched: every variant ran out of memory there. Grey: none came to an end, and time was a reason.
    Stippled: none came to an end, and some could not be tried. Dotted outline: no variant was tried. Marked are
    the variants in `apart`, which do not agree with their family.

    The maps stand side by side: size and frame are the same, whatever their legends hold.
    """
    found = [winners_over(table, ns, ps, variants) for _, variants in maps]
    legends = [_legend(what, variants, apart) for what, (_, variants) in zip(found, maps, strict=True)]
    across = min(across_in(handles, _WIDTH) for handles in legends)
    rows = max(-(-len(legend) // across) for legend in legends)
    height = _ABOVE + _FRAME + _BELOW + LEGEND_ROW * rows
    frame = (_LEFT / _WIDTH, 1 - (_ABOVE + _FRAME) / height, 1 - (_LEFT + _RIGHT) / _WIDTH, _FRAME / height)
    figures = []
    for (title, _), what, handles in zip(maps, found, legends, strict=True):
        figure = Figure(figsize=(_WIDTH, height))
        _draw_map(figure.add_axes(frame), what, ns, ps)
        figure.text(0.06 / _WIDTH, 1 - 0.05 / height, title, ha="left", va="top")
        place = {"loc": "upper left", "bbox_to_anchor": (0, 1 - (_ABOVE + _FRAME + _BELOW - 0.05) / height)}
        legend(figure, handles, ncols=across, **place, **TIGHT)
        figures.append(figure)
    return figures


def _draw_map(axes: Axes, found: Winners, ns: Sequence[int], ps: Sequence[int]) -> None:
    even = min(_thinnest(ns, _WIDTH - _LEFT - _RIGHT), _thinnest(ps, _FRAME)) < _LEAST
    edges_n, edges_p = (np.arange(len(values) + 1) - 0.5 if even else _edges(values) for values in (ns, ps))
    for i, n in enumerate(ns):
        for j, p in enumerate(ps):
            low, high = np.array([edges_n[i], edges_p[j]]), np.array([edges_n[i + 1], edges_p[j + 1]])
            what = found[n, p]
            if len(what) == 1:
                axes.add_patch(Rectangle(low, *(high - low), **_patch_style(what[0])))
            for variant, corners in zip(what, bands(len(what)) if len(what) > 1 else (), strict=False):
                inside = np.array(corners)
                where = low + (high - low) * inside if even else low * (high / low) ** inside
                axes.add_patch(Polygon(where, **_patch_style(variant)))
    axes.set_xlim(edges_n[0], edges_n[-1])
    axes.set_ylim(edges_p[0], edges_p[-1])
    if even:
        grid_axes(axes, ns, ps)
    for which, values in () if even else (("x", ns), ("y", ps)):
        log_axis(axes, which, values)
    axes.set_xlabel("number of cells n")
    axes.set_ylabel("number of features p")


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


def _legend(found: Winners, variants: Sequence[str], apart: Collection[str]) -> list[Patch | Line2D]:
    used = {variant for what in found.values() for variant in what}
    handles = [
        Patch(label=SPECIAL[what][0] if what in SPECIAL else label(what, apart), **_patch_style(what))
        for what in (*variants, *SPECIAL)
        if what in used
    ]
    if any(len(what) > 1 for what in found.values()):
        look = {"markersize": 9, "markerfacecolor": "0.35", "markerfacecoloralt": "0.75", "markeredgecolor": "white"}
        handles.append(Line2D([], [], linestyle="none", marker="s", fillstyle="left", label=_EQUAL, **look))
    return handles + key_of_unlike(used, apart)


def _thinnest(values: Sequence[int], size: float) -> float:
    """Return how wide the thinnest point on a log axis of this size is."""
    logs = np.log(_edges(values))
    return float(np.diff(logs).min() / np.ptp(logs) * size)


def _edges(values: Sequence[int]) -> np.ndarray:
    """Return the borders of the points: halfway between neighbours on the log axis."""
    logs = np.log(np.asarray(values, dtype=float))
    if len(logs) == 1:
        return np.exp([logs[0] - 0.5, logs[0] + 0.5])
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))
