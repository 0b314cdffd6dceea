"""Log ratios of runtime over n and p: primal and dual, with and without KeOps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figures.style import PAGE, SMALL, TIGHT, factor, legend, log_axis, style

# Those of the published benchmark notebook.
PAIRS = (("primal-keops", "primal"), ("dual-keops", "dual"), ("primal-keops", "dual-keops"))
_LEAST_SPAN = math.log10(2)  # of the colours on either side of 0
_COLORS = "PuOr"  # diverging, safe for colour-blind readers


def log_ratios(table: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """Every cell where both variants of a pair were measured: first, second, n, p, log_ratio.

    log_ratio = log10(runtime of the first / runtime of the second): below 0 the first is faster.
    """
    ok = table[table["status"] == "ok"][["variant", "n", "p", "runtime_s"]]
    found = []
    for first, second in pairs:
        sides = (ok[ok["variant"] == name].drop(columns="variant") for name in (first, second))
        both = pd.merge(*sides, on=["n", "p"], suffixes=("_first", "_second"))
        both["log_ratio"] = np.log10(both["runtime_s_first"] / both["runtime_s_second"])
        found.append(both.assign(first=first, second=second)[["first", "second", "n", "p", "log_ratio"]])
    return pd.concat(found, ignore_index=True).sort_values(["first", "second", "p", "n"], ignore_index=True)


def draw(table: pd.DataFrame, ns: Sequence[int], ps: Sequence[int], title: str) -> Figure:
    """Filled contours over the cells of each pair, the line of equal runtimes, a dot for each cell measured in both.

    A contour needs four neighbours of the grid; where one is missing there it is blank, and the dots have its colour.
    """
    cells = log_ratios(table)
    span = max(_LEAST_SPAN, cells["log_ratio"].abs().max()) if len(cells) else _LEAST_SPAN
    levels = np.linspace(-span, span, 17)
    figure = Figure(figsize=(PAGE, 3.6), layout="constrained")
    panels = figure.subplots(1, len(PAIRS), sharex=True, sharey=True)
    norm = BoundaryNorm(levels, 256)
    for axes, (first, second) in zip(panels, PAIRS, strict=True):
        of_pair = cells[(cells["first"] == first) & (cells["second"] == second)]
        grid = of_pair.pivot(index="p", columns="n", values="log_ratio").reindex(index=ps, columns=ns)
        _panel(axes, grid, levels, norm)
        axes.set_title(f"{style(first).label}\n/ {style(second).label}", loc="left", fontsize=SMALL)
        log_axis(axes, "x", ns, apart=0.18)
        log_axis(axes, "y", ps)
        axes.set_xlim(ns[0] / 1.25, ns[-1] * 1.25)
        axes.set_ylim(ps[0] / 1.6, ps[-1] * 1.6)
    panels[0].set_ylabel("number of features p")
    panels[1].set_xlabel("number of cells n")
    figure.suptitle(title, x=0.01, ha="left")
    bar = figure.colorbar(ScalarMappable(norm, _COLORS), ax=list(panels), location="bottom", aspect=50)
    ticks = _ticks(span)
    bar.set_ticks([math.log10(tick) for tick in ticks], labels=[factor(tick) for tick in ticks])
    bar.minorticks_off()
    bar.set_label("runtime of the first / runtime of the second")
    equal = Line2D([], [], color="black", linewidth=1.4, label="equal runtimes")
    dot = Line2D([], [], color="0.3", marker="o", markersize=4, linestyle="none", label="measured in both")
    legend(figure, [equal, dot], loc="outside lower left", ncols=2, **TIGHT)
    return figure


def _panel(axes: Axes, grid: pd.DataFrame, levels: np.ndarray, norm: BoundaryNorm) -> None:
    """The contours of one pair; grid has p down, n across, NaN where one of the two is missing."""
    values = np.ma.masked_invalid(grid.to_numpy(dtype=float))
    if not values.count():
        look = {"transform": axes.transAxes, "ha": "center", "color": "0.4", "fontsize": SMALL}
        axes.text(0.5, 0.5, "no cell where both\nwere measured", **look)
        return
    n, p = np.meshgrid(grid.columns, grid.index)
    if min(grid.shape) >= 2:
        axes.contourf(n, p, values, levels=levels, norm=norm, cmap=_COLORS)
        if values.min() < 0 < values.max():
            axes.contour(n, p, values, levels=[0], colors="black", linewidths=1.4)
    known = ~np.ma.getmaskarray(values)
    axes.scatter(
        n[known], p[known], c=values[known], norm=norm, cmap=_COLORS, s=10, edgecolors="0.3", linewidths=0.5, zorder=3
    )


def _ticks(span: float) -> list[float]:
    """Factors 1, 2, 5, 10, ... and their inverses within the span, thinned to whole powers of ten if it is wide."""
    steps = (1, 2, 5) if span < 1 else (1, 3) if span < 2 else (1,)
    above = [step * 10**power for power in range(math.ceil(span) + 1) for step in steps]
    within = [factor for factor in above if math.log10(factor) <= span]
    return sorted({1 / factor for factor in within} | set(within))
