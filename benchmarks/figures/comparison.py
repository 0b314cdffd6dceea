"""Two results folders compared, a panel for each variant: the picture of `python -m benchmarks compare --out`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from benchmarks.analysis.compare import VERDICTS, WORDS, Comparison
from benchmarks.figures.style import PAGE, SMALL, TIGHT, grid_axes, legend, short_label
from mmdma_core.matching import pictures

SUFFIXES = (".png", ".svg", ".pdf")
_COLORS = {  # safe for colour-blind readers; the darker the worse
    "slower": "#D55E00",
    "lost": "#7A2E00",
    "faster": "#56B4E9",
    "gained": "#0072B2",
    "same": "0.88",
    "noisy": "white",
}
_LINE = 80  # characters of a title
_DARK = ("lost", "gained", "slower")
_LEGIBLE = 0.4  # inches: the least width of a square that holds its ratio


def write(found: Comparison, path: Path) -> None:
    """Draw the comparison to a file. Raises ValueError for a suffix other than SUFFIXES, or where it cannot write."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--out must end in {', '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: No such file or directory")
    try:
        pictures.save(draw(found), path)
    except OSError as error:
        raise ValueError(f"--out {path}: {error.strerror}") from None


def draw(found: Comparison) -> Figure:
    """Draw the verdict at each point as a colour, and the ratio of the median epochs B / A where it has room."""
    rows = found.found
    ns, ps = (sorted(rows[axis].unique()) for axis in "np")
    variants = list(dict.fromkeys(rows["variant"]))
    numbers = (_LEGIBLE + 0.02) * len(ns) <= PAGE - 0.7
    square = (_LEGIBLE + 0.02, 0.21) if numbers else (0.12, 0.12)
    width, height = max(1.9, square[0] * len(ns)), max(0.8, square[1] * len(ps))  # of a panel, in inches
    across = max(1, min(len(variants), int((PAGE - 0.7) / width)))
    down = math.ceil(len(variants) / across)
    figure = Figure(figsize=(PAGE, 1.7 + down * (height + 0.55)), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(variants) :]:
        axes.set_visible(False)
    for axes, variant in zip(panels.flat, variants, strict=False):
        _panel(axes, rows[rows["variant"] == variant], ns, ps, numbers)
        axes.set_title(short_label(variant), loc="left", fontsize=SMALL)
    figure.supylabel("number of features p")
    title = f"B against A over n cells: ratio of the median epochs (threshold {found.threshold:g})"
    names = (f"{letter}  {name}" for letter, name in (("A", found.a), ("B", found.b)))
    lines = [title, *(line for name in names for line in textwrap.wrap(name, _LINE))]
    figure.suptitle("\n".join(lines), x=0.01, ha="left")
    shown = [verdict for verdict in VERDICTS if (rows["verdict"] == verdict).any()]
    handles = [
        Patch(facecolor=_COLORS[verdict], edgecolor="0.7", label=WORDS.get(verdict, verdict)) for verdict in shown
    ]
    legend(figure, handles, loc="outside lower left", ncols=3, title="B is", alignment="left", **TIGHT)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, ns: Sequence[int], ps: Sequence[int], numbers: bool) -> None:
    grid_axes(axes, ns, ps)
    for row in rows.itertuples():
        x, y = ns.index(row.n), ps.index(row.p)
        look = {"facecolor": _COLORS[row.verdict], "edgecolor": "0.7", "linewidth": 0.5}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
        text = "" if pd.isna(row.ratio) or not numbers else f"{row.ratio:.2f}"
        color = "white" if row.verdict in _DARK else "0.15"
        axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, color=color)
