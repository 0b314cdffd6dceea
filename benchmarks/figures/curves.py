"""Runtime and memory against n, one panel for each p: Figures 1B and A1, all runtimes, and the memory figure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.analysis.published import PAPER_IMPLEMENTATIONS
from benchmarks.figures.style import above_legend, count, halves, in_groups, key_of_unlike, legend_line, log_axis, style

_ENDS = {"oom": ("x", "out of memory"), "timeout": ("|", "out of time"), "budget": ("|", "out of time")}
_PANEL, _PANELS = 2.4, 7.4  # inches: the height of a panel, and the most that all have
_FEW_DECADES = 3


def draw(
    table: pd.DataFrame,
    column: str,
    label: str,
    ns: Sequence[int],
    ps: Sequence[int],
    variants: Sequence[str],
    title: str,
    behind: pd.DataFrame | None = None,
    limit: tuple[float, str] | None = None,
    apart: Collection[str] = (),
) -> Figure:
    """Draw `column` against n on log axes. Hollow points were extrapolated; where a line ends, the reason is marked.

    Beyond the paper's implementations, the legend has the variants in groups.

    behind  another table (variant, p, n, column) drawn faint
    limit   (value, its name) of a horizontal line
    apart   variants to be marked, since they do not agree with their family
    """
    across = 2 if len(ps) == 4 else min(len(ps), 3)
    down = math.ceil(len(ps) / across)
    marks = _marks(table, behind, limit) + key_of_unlike(variants, apart)
    alone = set(variants) <= set(PAPER_IMPLEMENTATIONS)
    lines = [legend_line(variant, apart) for variant in variants]
    legend = halves([*lines, *marks]) if alone else in_groups(variants, marks, apart)
    figure, upper = above_legend(0.5 + min(_PANEL * down, _PANELS), legend)
    grid = upper.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(ps) :]:
        axes.set_visible(False)
    for axes, p in zip(grid.flat, ps, strict=False):
        if behind is not None:
            _draw_published(axes, behind[behind["p"] == p], column)
        for variant in variants:
            _line(axes, table[(table["variant"] == variant) & (table["p"] == p)], variant, column)
        if limit:
            axes.axhline(limit[0], color="0.4", linewidth=0.8, linestyle=(0, (4, 3)))
        _frame(axes, ns, p)
    _value_axis(grid[0, 0])
    if not variants:
        grid[0, 0].text(0.5, 0.5, "no such variant in the study", transform=grid[0, 0].transAxes, ha="center")
    upper.supxlabel("number of cells n")
    upper.supylabel(label)
    upper.suptitle(title, x=0.01, ha="left")
    return figure


def _frame(axes: Axes, ns: Sequence[int], p: int) -> None:
    axes.set_title(f"p = {count(p)}")
    axes.grid(True, color="0.92", linewidth=0.6)
    axes.set_yscale("log")
    log_axis(axes, "x", ns, apart=0.18)
    axes.margins(y=0.12)
    axes.tick_params(labelbottom=True)


def _value_axis(axes: Axes) -> None:
    """Set ticks of the log axis that all panels share: powers of ten, and three times these where there are few."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if math.log10(high / low) < _FEW_DECADES else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _line(axes: Axes, rows: pd.DataFrame, variant: str, column: str) -> None:
    look = style(variant)
    ok = rows[(rows["status"] == "ok") & rows[column].notna()].sort_values("n")
    if ok.empty:
        return
    axes.plot(ok["n"], ok[column], color=look.color, linestyle=look.dash, linewidth=1.3)
    for extrapolated, fill in ((False, look.color), (True, "white")):
        part = ok[ok["extrapolated"] == extrapolated]
        axes.plot(
            part["n"], part[column], look.marker, color=look.color, markerfacecolor=fill, markersize=4, linestyle="none"
        )
    last = ok.iloc[-1]
    beyond = rows[rows["n"] > last["n"]].sort_values("n")
    if not beyond.empty and beyond.iloc[0]["outcome"] in _ENDS:
        marker, _ = _ENDS[beyond.iloc[0]["outcome"]]
        axes.plot(
            [last["n"]], [last[column]], marker, color=look.color, markersize=11, markeredgewidth=1.6, linestyle="none"
        )


def _draw_published(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    for variant, points in rows.sort_values("n").groupby("variant"):
        axes.plot(points["n"], points[column], color=style(variant).color, linewidth=2.5, alpha=0.25)


def _marks(table: pd.DataFrame, behind: pd.DataFrame | None, limit: tuple[float, str] | None) -> list[Line2D]:
    """Return what the legend says beside the variants."""

    def key(marker: str, text: str, **more: object) -> Line2D:
        return Line2D([], [], color="0.3", marker=marker, linestyle="none", label=text, **more)

    handles = []
    if (table["extrapolated"] == True).any():  # noqa: E712  (it may hold None)
        handles.append(key("o", "extrapolated from fewer epochs", markerfacecolor="white"))
    seen = {_ENDS[outcome] for outcome in table["outcome"].unique() if outcome in _ENDS}
    handles += [key(marker, f"line ends: {text}", markersize=9, markeredgewidth=1.6) for marker, text in sorted(seen)]
    if behind is not None:
        handles.append(Line2D([], [], color="0.3", linewidth=2.5, alpha=0.25, label="published, one V100 (16 GB)"))
    if limit:
        handles.append(Line2D([], [], color="0.4", linewidth=0.8, linestyle=(0, (4, 3)), label=limit[1]))
    return handles
