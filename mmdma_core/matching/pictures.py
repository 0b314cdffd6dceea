"""Two pictures of a fit: its loss, and both embedded views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmdma_core.files.atomic import atomically

_VIEW_COLORS = ("#0072B2", "#D55E00")  # Okabe and Ito 2008, as the labels'
_LABEL_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#0072B2", "#D55E00")
_MARKERS = ("o", "^")


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
    _save(figure, path)


_NAMES = {"total": "loss", "mmd": "MMD²", "pen_x": "x", "pen_y": "y", "dis_x": "x", "dis_y": "y"}


def draw_embedding(
    e_x: np.ndarray, e_y: np.ndarray, labels_x: np.ndarray | None, labels_y: np.ndarray | None, path: Path
) -> None:
    """Both views in the first two principal components of all points, coloured by view, and by label if given."""
    points = np.concatenate([e_x, e_y]).astype(float)
    points -= points.mean(0)
    _, values, axes_of = np.linalg.svd(points, full_matrices=False)
    shown = (points @ axes_of[:2].T) if points.shape[1] > 1 else np.column_stack([points, np.zeros(len(points))])
    share = values**2 / max(float((values**2).sum()), np.finfo(float).tiny)
    parts = shown[: len(e_x)], shown[len(e_x) :]
    labelled = labels_x is not None and labels_y is not None
    if labelled:  # numbers in one view may be text in the other
        labels_x, labels_y = labels_x.astype(str), labels_y.astype(str)
    figure = Figure(figsize=(9 if labelled else 4.8, 4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 2 if labelled else 1))
    size = float(np.clip(4000 / len(points), 2, 20))
    for part, color, marker, name in zip(parts, _VIEW_COLORS, _MARKERS, "xy", strict=True):
        style = {"s": size, "marker": marker, "alpha": 0.6, "linewidths": 0}
        panels[0].scatter(*part.T, color=color, label=f"view {name}", **style)
        if labelled:
            labels = labels_x if name == "x" else labels_y
            for color, label in zip(_colors(labels_x, labels_y), np.union1d(labels_x, labels_y), strict=True):
                chosen = part[labels == label]
                panels[1].scatter(*chosen.T, color=color, label=f"{label}" if name == "x" else None, **style)
    for axes, title in zip(panels, ("by view", "by label (circles x, triangles y)"), strict=False):
        _label_axes(axes, title, f"PC1 ({share[0]:.0%})")
        axes.set_ylabel(f"PC2 ({share[1] if len(share) > 1 else 0:.0%})")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(frameon=False, fontsize=8, markerscale=2)
    _save(figure, path)


def _colors(labels_x: np.ndarray, labels_y: np.ndarray) -> list[str]:
    number = len(np.union1d(labels_x, labels_y))
    return [_LABEL_COLORS[k % len(_LABEL_COLORS)] for k in range(number)]


def _label_axes(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(x_label)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with atomically(path) as part:
        figure.savefig(part, dpi=160)
