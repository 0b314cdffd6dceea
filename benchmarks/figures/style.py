"""One fixed colour, marker and dash for each variant, safe for colour-blind readers, and what all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

import mmdma_core
from mmdma_core.files.atomic import atomically


@dataclass(frozen=True)
class Style:
    """How a variant is drawn."""

    label: str
    color: str
    marker: str
    dash: str | tuple


_PUBLISHED = (0, (4, 1.5, 1, 1.5))
_ORIGINAL = (0, (6, 2))
_APPROXIMATE = (0, (1, 1.5))  # dotted, and no exact variant is
# The first six colours are those of Okabe and Ito 2008; the published package has a dark shade of our variant's.
_FIXED = {
    "primal": ("#0072B2", "o", "-"),
    "primal-keops": ("#D55E00", "s", "-"),
    "dual": ("#009E73", "^", "--"),
    "dual-keops": ("#CC79A7", "D", "--"),
    "primal-fused": ("#E69F00", "v", "-"),
    "dual-fused": ("#56B4E9", "p", "--"),
    "primal-fourier": ("#5B3794", "H", _APPROXIMATE),
    "dual-fourier": ("#B2182B", "1", _APPROXIMATE),
    "published-primal": ("#00395A", "8", _PUBLISHED),
    "published-primal-keops": ("#7A3500", "P", _PUBLISHED),
    "published-dual": ("#004F39", "<", _PUBLISHED),
    "published-dual-keops": ("#7D2F5B", "X", _PUBLISHED),
    "original-2019": ("#666666", "h", _ORIGINAL),
    "original-2020": ("#A6761D", ">", _ORIGINAL),
    "original-2020-stream": ("#C9A66B", "d", _APPROXIMATE),
    "linear-time": ("#7FB800", "*", _APPROXIMATE),
}
_SPARE_COLORS = ("#000000", "#7F6000", "#2F6F8F", "#999999", "#8B0000")
_SPARE_MARKERS = ("h", "<", ">", "d", "8", "P", "X")
_SPARE_DASHES = ("-.", (0, (3, 1)), (0, (5, 1, 1, 1)))

matplotlib.rcParams |= {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lsmmd-ma",  # the same picture is the same file
}


def style(variant: str) -> Style:
    """The style of a variant; those that are not in the fixed list take the spare ones in order of registration."""
    label = mmdma_core.variant(variant).label if variant in mmdma_core.variants() else variant
    if label != variant and not mmdma_core.variant(variant).exact:
        label += " (approximate)"
    if variant in _FIXED:
        return Style(label, *_FIXED[variant])
    others = [name for name in mmdma_core.variants() if name not in _FIXED]
    number = others.index(variant) if variant in others else len(others)
    return Style(label, *(choices[number % len(choices)] for choices in (_SPARE_COLORS, _SPARE_MARKERS, _SPARE_DASHES)))


def legend_line(variant: str) -> Line2D:
    """The legend's entry of a variant."""
    look = style(variant)
    return Line2D([], [], color=look.color, marker=look.marker, linestyle=look.dash, markersize=5, label=look.label)


def log_axis(axes: Axes, which: str, values: Sequence[int]) -> None:
    """A log axis with ticks at grid values that stand far enough apart to be read."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    shown: list[int] = []
    room = 0.12 * max(1.0, np.log10(max(values) / min(values)))
    for value in sorted(values, key=lambda v: (str(v).strip("0") != "1", v)):  # powers of ten first
        if all(abs(np.log10(value / other)) >= room for other in shown):
            shown.append(value)
    axis.set_ticks(sorted(shown))
    axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def count(value: float) -> str:
    """1000 -> '1k', 1000000 -> '1M'."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def factor(value: float) -> str:
    """3.0 -> '3 x', 0.5 -> '1/2 x'."""
    return f"{value:.3g} x" if value >= 1 else f"1/{1 / value:.3g} x"


def grid_axes(axes: Axes, ns: Sequence[int], ps: Sequence[int]) -> None:
    """Axes of a grid whose cells are unit squares: n across, p up, each value named where there is room."""
    for axis, values in ((axes.xaxis, ns), (axes.yaxis, ps)):
        axis.set_ticks(range(len(values)), [count(value) for value in values])
        axis.set_tick_params(length=0)
    axes.tick_params(axis="x", rotation=90 if len(ns) > 12 else 0)
    axes.set_xlim(-0.5, len(ns) - 0.5)
    axes.set_ylim(-0.5, len(ps) - 0.5)


def mark(figure: Figure, word: str) -> Figure:
    """Write the word into every panel, so that no part of the picture can be taken for something else."""
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
    for axes in figure.axes:
        axes.text(
            0.98, 0.05, word, transform=axes.transAxes, ha="right", fontsize=12, color="0.2", bbox=ground, zorder=9
        )
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as PNG and SVG."""
    for suffix, metadata in (("png", None), ("svg", {"Date": None})):
        with atomically(folder / f"{name}.{suffix}") as part:
            figure.savefig(part, bbox_inches="tight", metadata=metadata)
