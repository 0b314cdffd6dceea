"""Speed-up and memory of each device, against the number of devices that share a cell."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figures.style import PAGE, above_legend, across_in, halves, style

_MARKERS = "osD^vPX*<>"  # the larger n is, the further on
_CELL = ["variant", "p", "n"]
_KINDS = {"strong": "strong: n is fixed", "weak": "weak: n of each is fixed"}


def draw(table: pd.DataFrame, title: str) -> Figure:
    """A column for strong and one for weak scaling: above the speed-up with what is ideal, below memory of each."""
    first = table[table["kind"] == table["kind"].min()]  # strong, if there is any
    looks = {cell: _look(*cell, sorted(first["n"].unique())) for cell in first.groupby(_CELL).groups}
    handles = [Line2D([], [], **look) for look in looks.values()]
    figure, upper = above_legend(4.6, halves(handles) if across_in(handles, PAGE) == 2 else [handles])
    panels = upper.subplots(2, 2, sharex=True)
    for column, (kind, words) in zip(panels.T, _KINDS.items(), strict=True):
        part = table[table["kind"] == kind]
        column[0].set_title(words, loc="left")
        if part.empty:
            for axes in column:
                axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", color="0.4")
        devices = sorted({1, *part["devices"]})
        column[0].plot(devices, devices if kind == "strong" else [1] * len(devices), color="0.7", linestyle="--")
        for name, axes, unit in (("speed_up", column[0], 1.0), ("memory_of_each", column[1], 2**30)):
            for cell, rows in part.groupby(_CELL):
                look = looks.get(cell) or _look(*cell, sorted(part["n"].unique()))
                axes.plot(rows["devices"], rows[name] / unit, **look)
        column[1].set_xlabel("devices")
        column[1].set_xticks(devices)
        for axes in column:
            axes.set_ylim(bottom=0)
            axes.grid(True, color="0.92", linewidth=0.6)
    panels[0, 0].set_ylabel("speed-up")
    panels[1, 0].set_ylabel("peak of each, GiB")
    upper.suptitle(title, x=0.01, ha="left")
    return figure


def _look(variant: str, p: int, n: int, sizes: Sequence[int]) -> dict[str, object]:
    look, marker = style(variant), _MARKERS[sizes.index(n) % len(_MARKERS)]
    return {"color": look.color, "marker": marker, "markersize": 4, "label": f"{look.label}, n = {n:,}, p = {p:,}"}
