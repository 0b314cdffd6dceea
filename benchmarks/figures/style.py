"""One fixed colour, marker and dash for each variant, safe for colour-blind readers, and what all figures share.

A figure is at most PAGE inches wide, and its type is that of a page: 9 to 10 points at that width.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

import mmdma_core
from benchmarks.analysis.published import PAPER_VARIANTS
from mmdma_core.matching import pictures


@dataclass(frozen=True)
class Style:
    """How a variant is drawn."""

    label: str
    color: str
    marker: str
    dash: str | tuple


PAGE = 7.1  # inches: the text of a page of A4
SMALL = 9  # points, where 10 leave no room
APPROXIMATE = " (approximate)"  # at the end of the label of such a variant
ANOTHER = " (another objective)"
UNLIKE = (
    "\u2260 "  # before the label of a variant that does not agree with its family, see benchmarks.analysis.agreement
)
GROUPS = ("paper", "published package", "originals", "fused", "approximate", "others", "another objective")
LEGEND_ROW = 0.2  # inches
LABEL = 40  # characters of a variant's label
TIGHT = {"borderpad": 0, "handlelength": 1.9, "columnspacing": 1.2}  # of a legend below a figure
_HEADING = "heading"
_LETTER = 0.55 * SMALL / 72  # about the width of one in a legend, in inches
_PUBLISHED = (0, (4, 1.5, 1, 1.5))
_ORIGINAL = (0, (6, 2))
_APPROXIMATE = (0, (1, 1.5))  # dotted, and no exact variant is
_ANOTHER = (0, (1, 4))
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
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "figure.titlesize": "medium",
    "figure.labelsize": "medium",
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lsmmd-ma",  # the same picture is the same file
}
matplotlib.rcParams |= pictures.AS_IT_STANDS  # labels of plugins, names of machines and folders


def style(variant: str) -> Style:
    """Return the style of a variant; those without a fixed one take the spare ones in order of registration."""
    known = mmdma_core.variant(variant) if variant in mmdma_core.variants() else None
    label = pictures.shortened(known.label if known else variant, LABEL)
    if known and not known.exact:
        label += ANOTHER if known.objective else APPROXIMATE
    if variant in _FIXED:
        return Style(label, *_FIXED[variant])
    others = [name for name in mmdma_core.variants() if name not in _FIXED]
    number = others.index(variant) if variant in others else len(others)
    dashes = (_ANOTHER,) if known and known.objective else _SPARE_DASHES
    return Style(label, *(choices[number % len(choices)] for choices in (_SPARE_COLORS, _SPARE_MARKERS, dashes)))


def short_label(variant: str) -> str:
    """Return the label without what a heading or the text says of its group."""
    return style(variant).label.removesuffix(APPROXIMATE).removesuffix(ANOTHER).removesuffix(" (biased MMD)")


def label(variant: str, apart: Collection[str]) -> str:
    """Return the label, marked if the variant is among those that stand apart from their family."""
    return UNLIKE * (variant in apart) + style(variant).label


def key_of_unlike(variants: Iterable[str], apart: Collection[str], what: str = "losses") -> list[Line2D]:
    """Return the line of a legend that says what UNLIKE means; none where it marks nobody."""
    return [_blank(f"{UNLIKE}{what} unlike its family's")] if set(variants) & set(apart) else []


def legend_line(variant: str, apart: Collection[str] = ()) -> Line2D:
    """Return the legend's entry of a variant."""
    look = style(variant)
    line = {"color": look.color, "marker": look.marker, "linestyle": look.dash, "markersize": 5}
    return Line2D([], [], label=label(variant, apart), **line)


def group(variant: str) -> str:
    """Return the heading under which a legend of many variants has this one."""
    known = mmdma_core.variant(variant) if variant in mmdma_core.variants() else None
    if known and not known.exact:
        return "another objective" if known.objective else "approximate"
    if variant in PAPER_VARIANTS:
        return "paper"
    ends = {"published-": "published package", "original-": "originals", "-fused": "fused"}
    fits = (words for end, words in ends.items() if variant.startswith(end) or variant.endswith(end))
    return next(fits, "others")


def in_groups(variants: Sequence[str], marks: Sequence[Line2D], apart: Collection[str] = ()) -> list[list[Line2D]]:
    """Return three columns of a legend: the variants under the headings of their groups, then what the marks mean."""
    groups: dict[str, list[Line2D]] = {name: [] for name in GROUPS}
    for variant in variants:
        line = legend_line(variant)
        line.set_label(UNLIKE * (variant in apart) + short_label(variant))
        groups[group(variant)].append(line)
    groups["marks"] = list(marks)
    blocks = [[heading(name), *lines] for name, lines in groups.items() if lines]
    cuts = itertools.combinations_with_replacement(range(len(blocks) + 1), 2)
    ways = ((blocks[:first], blocks[first:second], blocks[second:]) for first, second in cuts)
    return min(
        ([list(itertools.chain(*part)) for part in parts] for parts in ways), key=lambda found: max(map(len, found))
    )


def above_legend(height: float, columns: Sequence[Sequence[Patch | Line2D]]) -> tuple[Figure, SubFigure]:
    """Return a figure of a page's width with a legend at its foot, and the part above it, `height` inches high."""
    rows = max(map(len, columns))
    foot = LEGEND_ROW * rows + 0.15
    figure = Figure(figsize=(PAGE, height + foot), layout="constrained")
    upper, _ = figure.subfigures(2, 1, height_ratios=(height, foot))
    handles = [handle for column in columns for handle in (*column, *(_blank("") for _ in range(rows - len(column))))]
    place = {"loc": "upper left", "bbox_to_anchor": (0, foot / (height + foot))}
    legend(figure, handles, ncols=len(columns), **place, **TIGHT)
    return figure, upper


def across_in(handles: Sequence[Artist], width: float) -> int:
    """Return how many columns of a legend stand side by side in so many inches, 2 at most."""
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    return 2 if 2 * (longest * _LETTER + 0.45) <= width - 0.2 else 1


def halves(handles: Sequence[Patch | Line2D]) -> list[Sequence[Patch | Line2D]]:
    """Return two columns of a legend."""
    middle = (len(handles) + 1) // 2
    return [handles[:middle], handles[middle:]]


def legend(parent: Axes | Figure | SubFigure, handles: Sequence[Artist], **place: object) -> Legend:
    """Draw a legend of all the handles, headings in bold."""
    made = pictures.legend(parent, handles, **place)
    for text, handle in zip(made.get_texts(), handles, strict=True):
        if handle.get_gid() == _HEADING:
            text.set_fontweight("bold")
    return made


def heading(words: str) -> Line2D:
    """Return a heading within a legend."""
    line = _blank(words)
    line.set_gid(_HEADING)
    return line


def _blank(label: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=label)


def log_axis(axes: Axes, which: str, values: Sequence[int], apart: float = 0.12) -> None:
    """Set up a log axis with ticks at grid values that stand far enough apart to be read: that share of the axis."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    shown: list[int] = []
    room = apart * max(1.0, np.log10(max(values) / min(values)))
    for value in sorted(values, key=lambda v: (str(v).strip("0") != "1", v)):  # powers of ten first
        if all(abs(np.log10(value / other)) >= room for other in shown):
            shown.append(value)
    axis.set_ticks(sorted(shown))
    axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def count(value: float) -> str:
    """Return '1k' for 1000, '1M' for 1000000."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def factor(value: float) -> str:
    """Return '3 x' for 3.0, '1/2 x' for 0.5."""
    return f"{value:.3g} x" if value > 0.995 else f"1/{1 / value:.3g} x"


def bands(count: int) -> list[list[tuple[float, float]]]:
    """Cut the unit square into parts of one area by lines that fall from left to right; return their corners (u, v)."""
    shares = np.linspace(0, 1, count + 1)
    cuts = np.where(shares <= 0.5, np.sqrt(2 * shares), 2 - np.sqrt(2 * (1 - shares)))  # u + v, ascending
    ends = [(min(cut, 1.0), max(cut - 1, 0.0)) for cut in cuts.tolist()]  # of a line, at the right
    parts = []
    for i in range(count):
        corner = [(1.0, 0.0)] if cuts[i] < 1 < cuts[i + 1] else []
        right = [ends[i], *corner, ends[i + 1]]
        parts.append([*right, *((v, u) for u, v in reversed(right))])
    return parts


def grid_axes(axes: Axes, ns: Sequence[int], ps: Sequence[int]) -> None:
    """Set up axes of a grid whose points are unit squares: n across, p up, each value named where there is room."""
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
        axes.text(0.98, 0.05, word, transform=axes.transAxes, ha="right", color="0.2", bbox=ground, zorder=9)
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as PNG and SVG."""
    for suffix, metadata in (("png", None), ("svg", {"Date": None})):
        pictures.save(figure, folder / f"{name}.{suffix}", metadata=metadata)
