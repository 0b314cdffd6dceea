"""The exponents of runtime and memory in n and p, measured and in theory."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figures.style import PAGE, SMALL, TIGHT, UNLIKE, key_of_unlike, legend, short_label, style
from benchmarks.analysis.exponents import FLOOR, exponents

_SHOWN = (-0.7, 3.7)  # an interval that is wider ends at the frame
_QUANTITIES = {"runtime": "runtime of an epoch", "memory": "peak memory"}
_HOST = "peaks of host memory include what the allocator keeps of freed arrays"


def draw(table: pd.DataFrame, title: str, apart: Collection[str] = ()) -> Figure:
    """Every exponent that could be fitted with its 95 % interval, and the theoretical one of the dominating term.

    apart  variants to be marked, since they do not agree with their family
    """
    fitted = exponents(table)
    fitted = fitted[fitted["n"].notna() | fitted["p"].notna()]
    parts = {quantity: fitted[fitted["quantity"] == quantity] for quantity in _QUANTITIES}
    notes = [_HOST] if (table["device"] == "cpu").any() else []
    rows = [max(len(part), 1) for part in parts.values()]
    figure = Figure(figsize=(PAGE, 2.0 + 0.23 * sum(rows)), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[count + 1 for count in rows])
    for (quantity, part), panels in zip(parts.items(), grid, strict=True):
        labels = [
            f"{UNLIKE * (row.variant in apart)}{short_label(row.variant)}: {_raised(row.term)}"
            for row in part.itertuples()
        ]
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(max(len(labels), 1) - 0.5, -0.5)
        for axis, axes in zip("np", panels, strict=True):
            _panel(axes, part, axis)
            axes.set_title(f"{_QUANTITIES[quantity]}:\nexponent of {axis}", loc="left")
    figure.suptitle("\n".join([title, *notes]), x=0.01, ha="left")
    dot = Line2D([], [], color="0.3", marker="o", markersize=4, label="measured, with its 95 % interval")
    theory = Line2D([], [], color="black", marker="|", markersize=11, linestyle="none", label="theory, dominating term")
    legend(figure, [dot, theory, *key_of_unlike(fitted["variant"], apart)], loc="outside lower left", ncols=2, **TIGHT)
    return figure


def _raised(term: str) -> str:
    """'n^2 p' -> 'n\u00b2 p'."""
    return term.replace("^2", "\u00b2").replace("^3", "\u00b3")


def _panel(axes: Axes, rows: pd.DataFrame, axis: str) -> None:
    axes.set_xlim(*_SHOWN)
    axes.set_xticks(range(4))
    axes.grid(True, axis="x", color="0.92", linewidth=0.6)
    axes.tick_params(labelbottom=True)
    if not rows[axis].notna().any():
        reason = f"no term has enough cells\n{FLOOR:g} x above the least"
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color="0.4", fontsize=SMALL)
    for y, row in enumerate(rows.to_dict("records")):
        if pd.notna(row[axis]):
            color = style(row["variant"]).color
            axes.plot([row[f"{axis}_low"], row[f"{axis}_high"]], [y, y], color=color, linewidth=1.6)
            axes.plot([row[axis]], [y], "o", color=color, markersize=4.5)
            axes.plot([row[f"{axis}_theory"]], [y], "|", color="black", markersize=11, markeredgewidth=1.4)
