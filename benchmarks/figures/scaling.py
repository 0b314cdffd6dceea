"""Speed-up and memory of each device, against the number of devices that share a cell."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures.style import PAGE, style

_MARKERS = "osD^vPX*<>"  # the larger n is, the further on
_KINDS = {"strong": "strong: n is fixed", "weak": "weak: n of each is fixed"}


def draw(table: pd.DataFrame, title: str) -> Figure:
    """A column for strong and one for weak scaling: above the speed-up with what is ideal, below memory of each."""
    figure = Figure(figsize=(PAGE, 5.2), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for column, (kind, words) in zip(panels.T, _KINDS.items(), strict=True):
        part = table[table["kind"] == kind]
        column[0].set_title(words, loc="left")
        if part.empty:
            for axes in column:
                axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", color="0.4")
        devices = sorted({1, *part["devices"]})
        column[0].plot(devices, devices if kind == "strong" else [1] * len(devices), color="0.7", linestyle="--")
        _lines(column[0], part, "speed_up", 1.0)
        _lines(column[1], part, "memory_of_each", 2**30)
        column[1].set_xlabel("devices")
        column[1].set_xticks(devices)
        for axes in column:
            axes.set_ylim(bottom=0)
            axes.grid(True, color="0.92", linewidth=0.6)
    panels[0, 0].set_ylabel("speed-up")
    panels[1, 0].set_ylabel("peak of each, GiB")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _lines(axes: Axes, table: pd.DataFrame, name: str, unit: float) -> None:
    sizes = sorted(table["n"].unique())
    for (variant, p, n), cells in table.groupby(["variant", "p", "n"]):
        look, marker = style(variant), _MARKERS[sizes.index(n) % len(_MARKERS)]
        label = f"{look.label}, n = {n:,}, p = {p:,}"
        axes.plot(cells["devices"], cells[name] / unit, color=look.color, marker=marker, markersize=4, label=label)
