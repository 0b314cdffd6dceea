"""Two pictures of a fit: its loss, and both embedded views, as dots or, of many cells, as counts in bins.

Text in them, and in other figures, stands as people have written it: no mathematics, no label that is skipped, no
script without a font.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
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
_LOG = logging.getLogger("mmdma_core")


@contextmanager
def as_it_stands() -> Iterator[None]:
    """While figures are made and measured: text is no mathematics, and a missing glyph is no warning."""
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
    """Have a text take what its font lacks from others."""
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
    """Whether the glyphs have outlines: some fonts of pictures have bitmaps of one size alone."""
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
    """Draw the terms of the winning start's loss over epochs, and the final losses of all starts."""
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
    lowest = starts["loss"] == starts["loss"].min()
    panels[3].scatter(np.arange(len(starts)), starts["loss"], color=np.where(lowest, _VIEW_COLORS[1], "0.6"))
    panels[3].xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_axes(panels[3], "final loss of each start", "start")
    save(figure, path, dpi=160)


@as_it_stands()
def draw_embedding(
    e_x: np.ndarray, e_y: np.ndarray, labels_x: np.ndarray | None, labels_y: np.ndarray | None, path: Path
) -> None:
    """Draw both views in the first two principal components of all points, by view, and by label if given.

    A dot for each cell, or how many cells lie where, from DENSITY_FROM cells of the larger view on. Cells of label
    None or NaN are not among those by label; those of all but the 20 most frequent labels are grey there.
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
        width, height = _label_legend(figure, "outside right upper", key(shown, others))
        figure.set_size_inches(9 + width, max(4, height + 0.3))
    return figure, list(zip(panels, ("by view", "by label (circles x, triangles y)"), strict=False))


def _draw_density(
    parts: tuple[np.ndarray, np.ndarray], labelled: tuple[Labelled, Labelled] | None
) -> tuple[Figure, list[tuple[Axes, str]]]:
    """Draw counts of x, of y, and contours of both; with labels a second row, the most frequent label of x and of y."""
    grid = Grid.around(parts)
    rows = 2 if labelled else 1
    panel_height = 3.0 * len(grid.up) / len(grid.across) + 0.9
    figure = Figure(figsize=(11, rows * panel_height), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    draw_counts(list(panels[0, :2]), grid, parts)
    draw_contours(panels[0, 2], grid, parts, _VIEW_COLORS)
    titled = list(zip(panels[0], ("cells of x", "cells of y", "both, around 50 % and 90 % of cells"), strict=True))
    if labelled:
        shown, others = _shown(labelled)
        draw_labels(list(panels[1, :2]), grid, *zip(*labelled, strict=True), shown)
        panels[1, 2].set_axis_off()
        width, height = _label_legend(panels[1, 2], "upper left", key(shown, others))
        heights = panel_height, max(panel_height, height + 0.7)
        panels[0, 0].get_gridspec().set_height_ratios(heights)
        figure.set_size_inches(max(11, 3 * (width + 0.7) + 1), sum(heights))
        titled += zip(panels[1, :2], ("x, most frequent label", "y, most frequent label"), strict=True)
    return figure, titled


def _shown(labelled: tuple[Labelled, Labelled]) -> tuple[dict[str, str], int]:
    """Map the most frequent labels to their colours, the most frequent first; and how many others there are."""
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


@dataclass(frozen=True)
class Grid:
    """Square bins that hold all points: edges of the bins along both axes."""

    across: np.ndarray
    up: np.ndarray

    @classmethod
    def around(cls, parts: tuple[np.ndarray, ...]) -> Grid:
        """Make the grid around points (n, 2) of several parts."""
        low = np.min([part.min(0) for part in parts], axis=0)
        high = np.max([part.max(0) for part in parts], axis=0)
        largest = float(np.abs([low, high]).max())
        side = max(float((high - low).max()) * 1.04, 1e-6 * largest) or 1.0  # of points without spread
        size, middle = side / _BINS, (low + high) / 2
        numbers = np.clip(np.ceil((high - low) * 1.04 / size), int(_SHORTER * _BINS), _BINS).astype(int)
        return cls(
            *(at + size * (np.arange(number + 1) - number / 2) for at, number in zip(middle, numbers, strict=True))
        )

    def counts(self, points: np.ndarray) -> np.ndarray:
        """Count how many points each bin holds, (up, across)."""
        return np.histogram2d(points[:, 1], points[:, 0], bins=(self.up, self.across))[0]

    def show(self, axes: Axes, picture: np.ndarray, **style: object) -> ScalarMappable:
        """Draw an array of (up, across), or colours of that shape, where it belongs."""
        extent = (self.across[0], self.across[-1], self.up[0], self.up[-1])
        return axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest", aspect="equal", **style)


def draw_counts(panels: list[Axes], grid: Grid, parts: tuple[np.ndarray, ...]) -> None:
    """Draw a panel for each part, in one scale of colours, the logarithm of the count; empty bins stay white."""
    counts = [grid.counts(part) for part in parts]
    norm = LogNorm(1, max(2.0, *(float(of.max()) for of in counts)))
    for axes, of in zip(panels, counts, strict=True):
        shown = grid.show(axes, np.where(of > 0, of, np.nan), norm=norm, cmap="viridis_r")
    panels[-1].figure.colorbar(shown, ax=panels, label="cells in a bin", shrink=0.8, pad=0.01, format="%g")


def draw_contours(axes: Axes, grid: Grid, parts: tuple[np.ndarray, ...], colors: tuple[str, ...]) -> None:
    """Draw lines around the densest bins that hold half and nine tenths of a part's points: solid of x, dashed of y."""
    at = [(edges[1:] + edges[:-1]) / 2 for edges in (grid.across, grid.up)]
    lines = []
    for part, color, style, name in zip(parts, colors, ("solid", "dashed"), "xy", strict=True):
        density = gaussian_filter(grid.counts(part), _SMOOTHING)
        ranked = np.sort(density, axis=None)[::-1]
        enclosed = ranked.cumsum() / ranked.sum()
        levels = np.unique([ranked[np.searchsorted(enclosed, fraction)] for fraction in _ENCLOSED])
        axes.contour(*at, density, levels=levels, colors=color, linestyles=style, linewidths=1.2)
        lines.append(Line2D([], [], color=color, linestyle=style, label=f"view {name}"))
    axes.set_aspect("equal")
    axes.legend(handles=lines, frameon=False, fontsize=8)


def draw_labels(
    panels: list[Axes],
    grid: Grid,
    parts: tuple[np.ndarray, ...],
    labels: tuple[np.ndarray, ...],
    shown: dict[str, str],
) -> None:
    """Draw each bin in the colour of its most frequent label, paler where it holds less; those not `shown` are one."""
    shades = np.array([to_rgb(color) for color in (*shown.values(), OTHERS)])
    for axes, part, of in zip(panels, parts, labels, strict=True):
        every = grid.counts(part)
        counts = [grid.counts(part[of == name]) for name in shown]
        counts.append(every - np.sum(counts, axis=0))
        alpha = np.where(every > 0, 0.35 + 0.65 * np.log1p(every) / np.log1p(max(1.0, float(every.max()))), 0)
        grid.show(axes, np.dstack([shades[np.argmax(counts, axis=0)], alpha]))


def key(shown: dict[str, str], others: int) -> list[Patch]:
    """Make the key to the colours of labels, `others` of which are grey."""
    rest = [(f"{others} other{'s' * (others > 1)}", OTHERS)] if others else []
    return [Patch(color=color, label=name) for name, color in (*shown.items(), *rest)]
