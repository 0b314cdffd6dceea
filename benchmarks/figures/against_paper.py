"""One machine against the published V100: the fastest variant at each point, and how many times longer each took.

And two variants against each other: log ratios of runtime over n and p, for primal and dual, with and without KeOps.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.analysis import against_paper, published
from benchmarks.analysis.published import NOTHING_FITS, PAPER_VARIANTS
from benchmarks.figures.style import PAGE, SMALL, TIGHT, factor, grid_axes, legend, log_axis, style

_PALE = 0.22  # of the published winner's colour where it could not be tested
_LINE = 82  # characters of a title
_MAP = 4.4  # inches: the height of the map
_NOTHING = {"facecolor": "white", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}
PAIRS = (("primal-keops", "primal"), ("dual-keops", "dual"), ("primal-keops", "dual-keops"))  # of the paper's notebook
_LEAST_SPAN = math.log10(2)  # of the colours on either side of 0
_COLORS = "PuOr"  # diverging, safe for colour-blind readers


def draw(table: pd.DataFrame, title: str) -> Figure:
    """Draw the table of one machine against the published one.

    Above, the published grid. Full colour: the same variant is the fastest. Two triangles: the published one above,
    the one found here below, with '~' where the two may be equally fast. Pale: the published one, not tested here.
    Below, runtime here / published of all that was measured in both, median and quartiles by variant.
    """
    ratios = against_paper.ratios(table)
    order = _order(ratios)
    heights = (_MAP, 1.1 + 0.28 * len(order))
    figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    _draw_map(above, against_paper.winners(table))
    _draw_ratios(below, ratios, order)
    _, left_out = against_paper.comparable(table)
    lines = [line for text in (title, *left_out) for line in textwrap.wrap(text, _LINE)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left")
    return figure


def draw_map(points: pd.DataFrame, title: str) -> Figure:
    """Draw the upper part alone, of points as benchmarks.analysis.against_paper.winners gives them."""
    figure = Figure(figsize=(PAGE, _MAP), layout="constrained")
    _draw_map(figure.subfigures(), points)
    figure.suptitle("\n".join(textwrap.wrap(title, _LINE)), x=0.01, ha="left")
    return figure


def _draw_map(figure: SubFigure, points: pd.DataFrame) -> None:
    axes = figure.subplots()
    ns, ps = published.grid()
    grid_axes(axes, ns, ps)
    for point in points.itertuples():
        x, y = ns.index(point.n) - 0.5, ps.index(point.p) - 0.5
        axes.add_patch(Rectangle((x, y), 1, 1, **_patch_style(point.there, point.verdict == "untestable")))
        if point.verdict in ("equal", "differ"):
            axes.add_patch(Polygon([(x, y), (x + 1, y), (x + 1, y + 1)], **_patch_style(point.here, pale=False)))
        if point.verdict == "equal":
            axes.text(x + 0.5, y + 0.5, "~", ha="center", va="center", color="white", fontweight="bold")
    axes.set_xlabel("number of cells n (the published grid)")
    axes.set_ylabel("number of features p")
    counts = points["verdict"].value_counts()
    words = ", ".join(f"{counts.get(v, 0)} {v}" for v in ("agree", "equal", "differ", "untestable"))
    axes.set_title(f"Fastest of the paper's variants: {words}", loc="left")
    legend(figure, _legend(), loc="outside lower left", ncols=2, **TIGHT)


def _patch_style(what: str, pale: bool) -> dict:
    if what == NOTHING_FITS:
        return _NOTHING | ({"edgecolor": "0.85"} if pale else {})
    return {"facecolor": style(what).color, "edgecolor": "white", "linewidth": 0.6, "alpha": _PALE if pale else 1}


def _legend() -> list[Patch]:
    handles = [Patch(label=style(name).label, **_patch_style(name, pale=False)) for name in PAPER_VARIANTS]
    handles.append(Patch(label="every variant out of memory", **_NOTHING))
    notes = (
        ("full colour: the same here as published", "0.5", 1),
        ("pale: published, not testable here", "0.5", _PALE),
    )
    handles += [Patch(facecolor=color, alpha=alpha, label=label) for label, color, alpha in notes]
    split = {"marker": "s", "fillstyle": "top", "markersize": 9, "markerfacecoloralt": "0.8", "markeredgecolor": "0.8"}
    for label, look in (("published above, here below", split), ("may be equally fast", {"marker": "$\\sim$"})):
        handles.append(Line2D([], [], linestyle="none", color="0.3", label=label, **look))
    return handles


def _order(ratios: pd.DataFrame) -> list[str]:
    """Return the paper's variants, then the published package's own where they were measured."""
    measured = set(ratios["variant"])
    return [*PAPER_VARIANTS, *(name for v in PAPER_VARIANTS if (name := f"published-{v}") in measured)]


def _draw_ratios(figure: SubFigure, ratios: pd.DataFrame, order: Sequence[str]) -> None:
    """Draw a row of dots for each variant, its median and how many there are at the right."""
    axes = figure.subplots()
    for row, variant in enumerate(order):
        label = _row_of_ratios(axes, row, ratios[ratios["variant"] == variant], style(variant).color)
        axes.text(1.01, row, label, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL)
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim((0.1, 10) if ratios.empty else (min(low, 0.45), max(high, 2.2)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if np.ptp(np.log10(axes.get_xlim())) < 2 else (1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: factor(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(order)), [style(name).label for name in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    good = f"{100 * published.READING:g} %"
    axes.set_xlabel(f"runtime here / published (good to {good}); n grows downwards")
    axes.set_title("median", loc="right", fontsize=SMALL, x=1.01, ha="left")
    hollow = Line2D([], [], color="0.3", marker="o", markerfacecolor="white", linestyle="none", markersize=4)
    bar = Line2D([], [], color="0.2", linewidth=5, alpha=0.35)
    labels = ["published value from another p", "quartiles; the stroke is the median"]
    figure.legend([hollow, bar], labels, loc="outside lower left", ncols=2, **TIGHT)


def _row_of_ratios(axes: Axes, row: int, mine: pd.DataFrame, color: str) -> str:
    """Draw dots slightly above and below the row by n: the same table, the same picture. Return the median in words."""
    ns = sorted(mine["n"].unique())
    if not ns:
        return "none"
    for source, fill in (("read", color), ("other p", "white")):
        part = mine[mine["source"] == source]
        y = row - 0.25 + 0.5 * (np.searchsorted(ns, part["n"]) + 0.5) / len(ns)
        axes.plot(part["ratio"], y, "o", color=color, markerfacecolor=fill, markersize=3.5)
    low, middle, high = mine["ratio"].quantile([0.25, 0.5, 0.75])
    axes.plot([low, high], [row, row], color="0.2", linewidth=5, alpha=0.35, solid_capstyle="butt")
    axes.plot([middle], [row], "|", color="black", markersize=15, markeredgewidth=1.8)
    return f"{factor(middle)}, {len(mine)} point{'s' if len(mine) != 1 else ''}"


def log_ratios(table: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """Return every point where both variants of a pair were measured: first, second, n, p, log_ratio.

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


def draw_log_ratios(table: pd.DataFrame, ns: Sequence[int], ps: Sequence[int], title: str) -> Figure:
    """Draw filled contours over the points of each pair, the line of equal runtimes, a dot where both were measured.

    A contour needs four neighbours of the grid; where one is missing there it is blank, and the dots have its colour.
    """
    found = log_ratios(table)
    span = max(_LEAST_SPAN, found["log_ratio"].abs().max()) if len(found) else _LEAST_SPAN
    levels = np.linspace(-span, span, 17)
    figure = Figure(figsize=(PAGE, 3.6), layout="constrained")
    panels = figure.subplots(1, len(PAIRS), sharex=True, sharey=True)
    norm = BoundaryNorm(levels, 256)
    for axes, (first, second) in zip(panels, PAIRS, strict=True):
        of_pair = found[(found["first"] == first) & (found["second"] == second)]
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
    """Draw the contours of one pair; grid has p down, n across, NaN where one of the two is missing."""
    values = np.ma.masked_invalid(grid.to_numpy(dtype=float))
    if not values.count():
        look = {"transform": axes.transAxes, "ha": "center", "color": "0.4", "fontsize": SMALL}
        axes.text(0.5, 0.5, "no point where both\nwere measured", **look)
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
    """Return factors 1, 2, 5, 10, ... and their inverses within the span, thinned to powers of ten if it is wide."""
    steps = (1, 2, 5) if span < 1 else (1, 3) if span < 2 else (1,)
    above = [step * 10**power for power in range(math.ceil(span) + 1) for step in steps]
    within = [factor for factor in above if math.log10(factor) <= span]
    return sorted({1 / factor for factor in within} | set(within))
