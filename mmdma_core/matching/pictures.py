"""Two pictures of a fit: its loss, and both embedded views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmdma_core.matching import density, lettering

DENSITY_FROM = 50_000  # cells of the larger view
_BLOCK = 2**16  # rows

Labelled = tuple[np.ndarray, np.ndarray]  # points and their labels

_VIEW_COLORS = ("#0072B2", "#D55E00")  # Okabe and Ito 2008, as the labels'
_LABEL_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#0072B2", "#D55E00", "#000000")
# For more labels: Matplotlib's tab20 with other colours in the place of its greys, which are those of the rest.
_MANY_COLORS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#000000"),
    *("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5", "#00441b"),
)
_MARKERS = ("o", "^")


@lettering.as_it_stands()
def draw_loss(history: pd.DataFrame, starts: pd.DataFrame, path: Path) -> None:
    """The terms of the winning start's loss over epochs, and the final losses of all starts."""
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
    lettering.save(figure, path, dpi=160)


_NAMES = {"total": "loss", "mmd": "MMD²", "pen_x": "x", "pen_y": "y", "dis_x": "x", "dis_y": "y"}


@lettering.as_it_stands()
def draw_embedding(
    e_x: np.ndarray, e_y: np.ndarray, labels_x: np.ndarray | None, labels_y: np.ndarray | None, path: Path
) -> None:
    """Both views in the first two principal components of all points, by view, and by label if given.

    A dot for each cell, or how many cells lie where, from DENSITY_FROM cells of the larger view on. Cells of label
    None or NaN are not among those by label; those of all but the 20 most frequent labels are grey there.
    """
    mean, axes_of, share = _principal(e_x, e_y)
    parts = tuple(e @ axes_of - mean @ axes_of for e in (e_x, e_y))
    labelled = None
    if labels_x is not None and labels_y is not None:
        labelled = _labelled(parts[0], labels_x), _labelled(parts[1], labels_y)
    draw = _draw_density if max(len(e_x), len(e_y)) >= DENSITY_FROM else _draw_dots
    figure, panels = draw(parts, labelled)
    for axes, title in panels:
        _label_axes(axes, title, f"PC1 ({share[0]:.0%})")
        axes.set_ylabel(f"PC2 ({share[1]:.0%})")
    lettering.save(figure, path, dpi=160)


def _principal(e_x: np.ndarray, e_y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of all points, their first two principal axes, (d, 2), and shares of the variance; 0 where d = 1.

    From the covariance (d, d), summed over blocks of rows, so that no copy of the points is made.
    """
    n, d = len(e_x) + len(e_y), e_x.shape[1]
    mean = (e_x.sum(0, dtype=float) + e_y.sum(0, dtype=float)) / n
    scatter = np.zeros((d, d))
    for e in (e_x, e_y):
        for low in range(0, len(e), _BLOCK):
            block = e[low : low + _BLOCK] - mean
            scatter += block.T @ block
    values, vectors = np.linalg.eigh(scatter)
    axes_of, share = np.zeros((d, 2)), np.zeros(2)
    axes_of[:, : min(d, 2)] = vectors[:, ::-1][:, :2]
    share[: min(d, 2)] = values[::-1][:2].clip(0) / max(float(values.sum()), np.finfo(float).tiny)
    return mean, axes_of, share


def _labelled(part: np.ndarray, labels: np.ndarray) -> Labelled:
    """The points that have a label, and these as text: numbers in one view may be text in the other."""
    held = ~pd.isna(labels)
    return part[held], labels[held].astype(str)


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
            colors = np.array([shown.get(label, density.OTHERS) for label in of], dtype=object)
            for color in (density.OTHERS, *shown.values()):  # the rarest in the end, above the others
                panels[1].scatter(*points[colors == color].T, color=color, **style)
    for axes in panels:
        axes.set_aspect("equal", adjustable="datalim")
    panels[0].legend(frameon=False, fontsize=8, markerscale=2)
    if labelled:
        width, height = _label_legend(figure, "outside right upper", density.key(shown, others))
        figure.set_size_inches(9 + width, max(4, height + 0.3))
    return figure, list(zip(panels, ("by view", "by label (circles x, triangles y)"), strict=False))


def _draw_density(
    parts: tuple[np.ndarray, np.ndarray], labelled: tuple[Labelled, Labelled] | None
) -> tuple[Figure, list[tuple[Axes, str]]]:
    """Counts of x, of y, and contours of both; with labels a second row, the most frequent label of x and of y."""
    grid = density.Grid.around(parts)
    rows = 2 if labelled else 1
    panel_height = 3.0 * len(grid.up) / len(grid.across) + 0.9
    figure = Figure(figsize=(11, rows * panel_height), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    density.draw_counts(list(panels[0, :2]), grid, parts)
    density.draw_contours(panels[0, 2], grid, parts, _VIEW_COLORS)
    titled = list(zip(panels[0], ("cells of x", "cells of y", "both, around 50 % and 90 % of cells"), strict=True))
    if labelled:
        shown, others = _shown(labelled)
        density.draw_labels(list(panels[1, :2]), grid, *zip(*labelled, strict=True), shown)
        panels[1, 2].set_axis_off()
        width, height = _label_legend(panels[1, 2], "upper left", density.key(shown, others))
        heights = panel_height, max(panel_height, height + 0.7)
        panels[0, 0].get_gridspec().set_height_ratios(heights)
        figure.set_size_inches(max(11, 3 * (width + 0.7) + 1), sum(heights))
        titled += zip(panels[1, :2], ("x, most frequent label", "y, most frequent label"), strict=True)
    return figure, titled


def _shown(labelled: tuple[Labelled, Labelled]) -> tuple[dict[str, str], int]:
    """Label -> colour of the most frequent ones, the most frequent first; and how many others there are."""
    names, numbers = np.unique(np.concatenate([labels for _, labels in labelled]), return_counts=True)
    names = names[(-numbers).argsort(kind="stable")]
    colors = _LABEL_COLORS if len(names) <= len(_LABEL_COLORS) else _MANY_COLORS
    return dict(zip(names.tolist(), colors, strict=False)), max(0, len(names) - len(colors))


def _label_legend(place: Figure | Axes, loc: str, handles: list[Patch]) -> tuple[float, float]:
    """The key to the colours; how wide and high it is, in inches."""
    labels = [lettering.shortened(handle.get_label()) for handle in handles]
    look = {"frameon": False, "fontsize": 8, "borderaxespad": 0, "handlelength": 1}
    made = lettering.legend(place, handles, labels, loc=loc, title="label", alignment="left", **look)
    figure = place if isinstance(place, Figure) else place.figure
    box = made.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    return box.width / figure.dpi, box.height / figure.dpi


def _label_axes(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(x_label)
    axes.spines[["top", "right"]].set_visible(False)
