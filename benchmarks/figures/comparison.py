"""Two results folders compared, a panel for each variant: the picture of `python -m benchmarks compare --out`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from benchmarks.figures.style import grid_axes, style
from benchmarks.reading.compare import VERDICTS, WORDS, Comparison
from mmdma_core.files.atomic import atomically

SUFFIXES = (".png", ".svg", ".pdf")
_COLORS = {  # safe for colour-blind readers; the darker the worse
    "slower": "#D55E00",
    "lost": "#7A2E00",
    "faster": "#56B4E9",
    "gained": "#0072B2",
    "same": "0.88",
    "noisy": "white",
}
_DARK = ("lost", "gained", "slower")
_WIDTH = 11  # inches that panels share


def write(found: Comparison, path: Path) -> None:
    """Draw the comparison to a file. Raises ValueError for a suffix other than SUFFIXES, or where it cannot write."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--out must end in {', '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: No such file or directory")
    try:
        with atomically(path) as part:
            draw(found).savefig(part, bbox_inches="tight")
    except OSError as error:
        raise ValueError(f"--out {path}: {error.strerror}") from None


def draw(found: Comparison) -> Figure:
    """The verdict of each cell as a colour, and the ratio of the median epochs B / A as a number."""
    cells = found.cells
    ns, ps = (sorted(cells[axis].unique()) for axis in "np")
    variants = list(dict.fromkeys(cells["variant"]))
    width, height = max(2.5, 0.42 * len(ns)), max(1.1, 0.26 * len(ps))  # of a panel, in inches
    across = max(1, min(len(variants), int(_WIDTH / width)))
    down = math.ceil(len(variants) / across)
    size = (2.8 + across * (width + 0.4), 1.5 + down * (height + 0.7))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(variants) :]:
        axes.set_visible(False)
    for axes, variant in zip(panels.flat, variants, strict=False):
        _panel(axes, cells[cells["variant"] == variant], ns, ps)
        axes.set_title(style(variant).label, loc="left")
    figure.supxlabel("number of cells n", fontsize=9)
    figure.supylabel("number of features p", fontsize=9)
    title = f"B against A, ratio of the median epochs (threshold {found.threshold:g})\nA  {found.a}\nB  {found.b}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    shown = [verdict for verdict in VERDICTS if (cells["verdict"] == verdict).any()]
    handles = [
        Patch(facecolor=_COLORS[verdict], edgecolor="0.7", label=WORDS.get(verdict, verdict)) for verdict in shown
    ]
    figure.legend(handles=handles, loc="outside right center", title="B is", alignment="left")
    return figure


def _panel(axes: Axes, cells: pd.DataFrame, ns: Sequence[int], ps: Sequence[int]) -> None:
    grid_axes(axes, ns, ps)
    for cell in cells.itertuples():
        x, y = ns.index(cell.n), ps.index(cell.p)
        look = {"facecolor": _COLORS[cell.verdict], "edgecolor": "0.7", "linewidth": 0.5}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
        text = "" if pd.isna(cell.ratio) else f"{cell.ratio:.2f}"
        color = "white" if cell.verdict in _DARK else "0.15"
        axes.text(x, y, text, ha="center", va="center", fontsize=6.5, color=color)
