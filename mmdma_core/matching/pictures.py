"""Two pictures of a fit: its loss, and both embedded views, as dots or, of many cells, as counts in bins.

Text in them, and in other figures, stands as people have written it: no mathematics, no label that is skipped, no
script without a font.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from mmdma_core.files.atomic import atomically

# For text that is created, and for ticks, which are created when a figure is saved.
AS_IT_STANDS = {"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False}
_MOST = 60  # characters of one text
_NO_LETTERS = ("Last Resort", "cm", "STIXNonUnicode", "STIXSize")  # fonts of boxes, or with characters out of place

DENSITY_FROM = 50_000  # cells of the larger view

_VIEW_COLORS = ("#0072B2", "#D55E00")  # Okabe and Ito 2008, as the labels'
_LABEL_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#0072B2", "#D55E00", "#000000")
# For more labels: Matplotlib's tab20 with other colours in the place of its greys, which are those of the rest.
_MANY_COLORS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#000000"),
    *("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5", "#00441b"),
)
_MARKERS = ("o", "^")
_BINS = 120  # along the longer side
_SHORTER = 0.4  # of the longer side, at least
_ENCLOSED = (0.5, 0.9)  # of the cells, by the contours
OTHERS = "0.75"  # the colour of labels that have none of their own
_SMOOTHING = 1.5  # bins, of the contours alone
_NAMES = {"total": "loss", "mmd": "MMD²", "pen_x": "x", "pen_y": "y", "dis_x": "x", "dis_y": "y"}

Labelled = tuple[np.ndarray, np.ndarray]  # points and their labels
Extent = tuple[float, float, float, float]  # left, right, bottom, top
_LOG = logging.getLogger("mmdma_core")


@contextmanager
def as_it_stands() -> Iterator[None]:
    """Make and measure figures whose text is no mathematics, and whose missing glyphs are no warning."""
    with matplotlib.rc_context(AS_IT_STANDS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        yield


def shortened(text: str, most: int = _MOST) -> str:
    """Return the text on one line, without its middle where it is longer than `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}\u2026{text[len(text) - (most - 1) // 2 :]}"


def legend(
    parent: Axes | Figure, handles: Sequence[Artist], labels: Iterable[str] | None = None, **place: object
) -> Legend:
    """Make a legend with every label, be it one that begins with '_', which Matplotlib takes as a sign to skip it.

    labels  by default those of the handles
    """
    labels = [str(handle.get_label()) for handle in handles] if labels is None else list(labels)
    made = parent.legend(handles, [f"{k}" for k in range(len(handles))], **place)
    for text, label in zip(made.get_texts(), labels, strict=True):
        text.set_text(label)
        text.set_parse_math(False)
        _complete(text)
    return made


def save(figure: Figure, path: Path, **options: object) -> None:
    """Write a figure in one step. What the font lacks comes from others; what none has costs one line in the log."""
    with as_it_stands():
        for axes in figure.axes:  # ticks have their text when they are asked for
            axes.get_xticklabels(), axes.get_yticklabels()
        for text in figure.findobj(Text):
            _complete(text)
        with atomically(path) as part:
            figure.savefig(part, **options)


def _complete(text: Text) -> None:
    """Let a text take what its font lacks from others."""
    families = text.get_fontfamily()
    others = _others(frozenset(text.get_text()), families[0]) if text.get_text() else ()
    if others and len(families) == 1:
        text.set_fontfamily([*families, *others])


@cache
def _others(characters: frozenset[str], family: str) -> tuple[str, ...]:
    """Find families that have what the font of a family lacks."""
    own = findfont(FontProperties(family=[family]))
    lacking = {character for character in characters if character.isprintable()} - _characters(own)
    found = []
    for name, file in _families().items() if lacking else ():
        there = lacking & _characters(file)
        if there and _can_draw(file, there):
            found.append(name)
            lacking -= there
    if lacking:
        _LOG.warning("no font that is installed has %s: boxes stand in their place", " ".join(sorted(lacking)))
    return tuple(found)


@cache
def _families() -> dict[str, str]:
    """Map each family to the file of its plainest face; those without serifs first."""
    entries = [entry for entry in fontManager.ttflist if not entry.name.startswith(_NO_LETTERS)]
    entries.sort(key=lambda entry: ("Sans" not in entry.name, entry.name, entry.style != "normal", entry.weight != 400))
    found: dict[str, str] = {}
    for entry in entries:
        found.setdefault(entry.name, entry.fname)
    return found


@cache
def _characters(file: str) -> frozenset[str]:
    with suppress(RuntimeError, OSError):  # one that FreeType cannot read
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    return frozenset()


def _can_draw(file: str, characters: Iterable[str]) -> bool:
    """Tell whether the glyphs have outlines: some fonts of pictures have bitmaps of one size alone."""
    try:
        font = FT2Font(file)
        font.set_size(8, 72)
        for character in characters:
            font.load_char(ord(character))
    except RuntimeError:
        return False
    return True


@as_it_stands()
def draw_loss(history: pd.DataFrame, starts: pd.DataFrame, path: Path) -> None:
    """Draw the terms of the chosen start's loss over epochs, and the final losses of all starts."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    panels = figure.subplots(1, 4)
    for axes, title, columns in (
        (panels[0], "loss", ("total", "mmd")),
        (panels[1], "penalties", ("pen_x", "pen_y")),
        (panels[2], "distortions", ("dis_x", "dis_y")),
    ):
        for column, color in zip(columns, _VIEW_COLORS, strict=True):
            axes.plot(history["epoch"], history[column], color=color, label=_NAMES[column])
        _label_axes(axes, title, "epoch")
        axes.legend(frameon=False, fontsize=8)
    colors = np.where(starts["chosen"], _VIEW_COLORS[1], "0.6")
    panels[3].scatter(np.arange(len(starts)), starts["loss"].astype(float), color=colors)
    panels[3].xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_axes(panels[3], "final loss of each start", "start")
    save(figure, path, dpi=160)


@as_it_stands()
def draw_embedding(
    e_x: np.ndarray,
    e_y: np.ndarray,
    labels_x: np.ndarray | None,
    labels_y: np.ndarray | None,
    path: Path,
    verdict: str | None = None,
) -> None:
    """Draw both views in the first two principal components of all points, by view, and by label if given.

    A dot for each cell, or how many cells lie where, from DENSITY_FROM cells of the larger view on. Cells of label
    None or NaN are not among those by label; those of all but the 20 most frequent labels are grey there.

    verdict  a line above all
    """
    mean, axes_of, share = _principal(e_x, e_y)
    parts = tuple((e - mean) @ axes_of for e in (e_x, e_y))
    labelled = None
    if labels_x is not None and labels_y is not None:
        labelled = _labelled(parts[0], labels_x), _labelled(parts[1], labels_y)
    draw = _draw_density if max(len(e_x), len(e_y)) >= DENSITY_FROM else _draw_dots
    figure, panels = draw(parts, labelled)
    for axes, title in panels:
        _label_axes(axes, title, f"PC1 ({share[0]:.0%})")
        axes.set_ylabel(f"PC2 ({share[1]:.0%})")
    if verdict:
        figure.suptitle(verdict, fontsize=8, color=_VIEW_COLORS[1])
    save(figure, path, dpi=160)


def _principal(e_x: np.ndarray, e_y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of all points, the first two principal axes (d, 2) and shares of the variance; 0 where d = 1."""
    points, d = np.concatenate([e_x, e_y]).astype(float), e_x.shape[1]
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(points, rowvar=False)))
    axes_of, share = np.zeros((d, 2)), np.zeros(2)
    axes_of[:, : min(d, 2)] = vectors[:, ::-1][:, :2]
    share[: min(d, 2)] = values[::-1][:2].clip(0) / max(float(values.sum()), np.finfo(float).tiny)
    return points.mean(0), axes_of, share


def _labelled(part: np.ndarray, labels: np.ndarray) -> Labelled:
    """Return the points that have a label, and these as text: numbers in one view may be text in the other."""
    known = ~pd.isna(labels)
    return part[known], labels[known].astype(str)


def _draw_dots(
    parts: tuple[np.ndarray, np.ndarray], labelled: tuple[Labelled, Labelled] | None
) -> tuple[Figure, list[tuple[Axes, str]]]:
    figure = Figure(figsize=(9 if labelled else 4.8, 4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 2 if labelled else 1))
    shown, others = _shown(labelled) if labelled else ({}, 0)
    size = float(np.clip(4000 / sum(map(len, parts)), 2, 20))
    for k, (part, color, marker) in enumerate(zip(parts, _VIEW_COLORS, _MARKERS, strict=True)):
        style = {"s": size, "marker": marker, "alpha": 0.6, "linewidths": 0}
        panels[0].scatter(*part.T, color=color, label=f"view {'xy'[k]}", **style)
        if labelled:
            points, of = labelled[k]
            colors = np.array([shown.get(label, OTHERS) for label in of], dtype=object)
            for color in (OTHERS, *shown.values()):  # the rarest in the end, above the others
                panels[1].scatter(*points[colors == color].T, color=color, **style)
    for axes in panels:
        axes.set_aspect("equal", adjustable="datalim")
    panels[0].legend(frameon=False, fontsize=8, markerscale=2)
    if labelled:
        width, height = _label_legend(figure, "outside right upper", _key(shown, others))
        figure.set_size_inches(9 + width, max(4, height + 0.3))
    return figure, list(zip(panels, ("by view", "by label (circles x, triangles y)"), strict=False))


def _draw_density(
    parts: tuple[np.ndarray, np.ndarray], labelled: tuple[Labelled, Labelled] | None
) -> tuple[Figure, list[tuple[Axes, str]]]:
    """Draw counts of x, of y, and contours of both; with labels a second row, the most frequent label of x and of y."""
    extent = left, right, bottom, top = _extent(parts)
    rows = 2 if labelled else 1
    panel_height = 3.0 * (top - bottom) / (right - left) + 0.9
    figure = Figure(figsize=(11, rows * panel_height), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    _draw_counts(list(panels[0, :2]), extent, parts)
    _draw_contours(panels[0, 2], extent, parts)
    titled = list(zip(panels[0], ("cells of x", "cells of y", "both, around 50 % and 90 % of cells"), strict=True))
    if labelled:
        shown, others = _shown(labelled)
        for axes, of in zip(panels[1, :2], labelled, strict=True):
            _draw_labels(axes, extent, of, shown)
        panels[1, 2].set_axis_off()
        width, height = _label_legend(panels[1, 2], "upper left", _key(shown, others))
        heights = panel_height, max(panel_height, height + 0.7)
        panels[0, 0].get_gridspec().set_height_ratios(heights)
        figure.set_size_inches(max(11, 3 * (width + 0.7) + 1), sum(heights))
        titled += zip(panels[1, :2], ("x, most frequent label", "y, most frequent label"), strict=True)
    return figure, titled


def _shown(labelled: tuple[Labelled, Labelled]) -> tuple[dict[str, str], int]:
    """Map the most frequent labels to their colours, in that order; also how many others there are."""
    names, numbers = np.unique(np.concatenate([labels for _, labels in labelled]), return_counts=True)
    names = names[(-numbers).argsort(kind="stable")]
    colors = _LABEL_COLORS if len(names) <= len(_LABEL_COLORS) else _MANY_COLORS
    return dict(zip(names.tolist(), colors, strict=False)), max(0, len(names) - len(colors))


def _label_legend(place: Figure | Axes, loc: str, handles: list[Patch]) -> tuple[float, float]:
    """Draw the key to the colours; how wide and high it is, in inches."""
    labels = [shortened(handle.get_label()) for handle in handles]
    look = {"frameon": False, "fontsize": 8, "borderaxespad": 0, "handlelength": 1}
    made = legend(place, handles, labels, loc=loc, title="label", alignment="left", **look)
    figure = place if isinstance(place, Figure) else place.figure
    box = made.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    return box.width / figure.dpi, box.height / figure.dpi


def _label_axes(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(x_label)
    axes.spines[["top", "right"]].set_visible(False)


def _extent(parts: tuple[np.ndarray, np.ndarray]) -> Extent:
    """Return ranges that hold all points (n, 2), the shorter one at least a part of the longer one."""
    points = np.concatenate(parts)
    low, high = points.min(0), points.max(0)
    side = max(float((high - low).max()), 1e-6 * float(np.abs(points).max())) or 1.0  # of points without spread
    half = 0.52 * np.maximum(high - low, _SHORTER * side)
    (left, bottom), (right, top) = (low + high) / 2 - half, (low + high) / 2 + half
    return left, right, bottom, top


def _bins(axes: Axes, extent: Extent, points: np.ndarray, **style: object) -> PolyCollection:
    """Draw the hexagons that hold points, of one size for one extent; the others stay white."""
    left, right, bottom, top = extent
    size = max(right - left, top - bottom) / _BINS
    numbers = round((right - left) / size), round((top - bottom) / size / 3**0.5)
    axes.set_aspect("equal")
    return axes.hexbin(*points.T, gridsize=numbers, extent=extent, mincnt=1, linewidths=0.2, **style)


def _draw_counts(panels: Sequence[Axes], extent: Extent, parts: tuple[np.ndarray, np.ndarray]) -> None:
    """Draw a panel for each part, in one scale of colours, the logarithm of the count."""
    shown = [_bins(axes, extent, part, cmap="viridis_r") for axes, part in zip(panels, parts, strict=True)]
    norm = LogNorm(1, max(2.0, *(bins.get_array().max() for bins in shown)))
    for bins in shown:
        bins.set_norm(norm)
    panels[-1].figure.colorbar(shown[-1], ax=panels, label="cells in a bin", shrink=0.8, pad=0.01, format="%g")


def _draw_contours(axes: Axes, extent: Extent, parts: tuple[np.ndarray, np.ndarray]) -> None:
    """Draw lines around the densest bins that hold half and nine tenths of a part's points: solid of x, dashed of y."""
    left, right, bottom, top = extent
    lines = []
    for part, color, style, name in zip(parts, _VIEW_COLORS, ("solid", "dashed"), "xy", strict=True):
        counts, *edges = np.histogram2d(*part.T, bins=_BINS, range=((left, right), (bottom, top)))
        density = gaussian_filter(counts.T, _SMOOTHING)
        ranked = np.sort(density, axis=None)[::-1]
        enclosed = ranked.cumsum() / ranked.sum()
        levels = np.unique([ranked[np.searchsorted(enclosed, fraction)] for fraction in _ENCLOSED])
        middles = [(of[1:] + of[:-1]) / 2 for of in edges]
        axes.contour(*middles, density, levels=levels, colors=color, linestyles=style, linewidths=1.2)
        lines.append(Line2D([], [], color=color, linestyle=style, label=f"view {name}"))
    axes.set_aspect("equal")
    axes.legend(handles=lines, frameon=False, fontsize=8)


def _draw_labels(axes: Axes, extent: Extent, labelled: Labelled, shown: dict[str, str]) -> None:
    """Draw each bin in the colour of its most frequent label; those not `shown` are one."""
    points, labels = labelled
    codes = pd.Categorical(labels, [*shown]).codes % (len(shown) + 1)  # of the others -1
    colors = ListedColormap([*shown.values(), OTHERS])
    most = {"C": codes, "reduce_C_function": lambda of: np.bincount(np.array(of, int)).argmax()}
    _bins(axes, extent, points, cmap=colors, vmin=-0.5, vmax=len(shown) + 0.5, **most)


def _key(shown: dict[str, str], others: int) -> list[Patch]:
    """Make the key to the colours of labels, `others` of which are grey."""
    rest = [(f"{others} other{'s' * (others > 1)}", OTHERS)] if others else []
    return [Patch(color=color, label=name) for name, color in (*shown.items(), *rest)]
