"""Panels of many points: counts in bins in place of dots, one size of bin and one range for all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.ndimage import gaussian_filter

_BINS = 120  # along the longer side
_SHORTER = 0.4  # of the longer side, at least
_ENCLOSED = (0.5, 0.9)  # of the cells, by the contours
OTHERS = "0.75"  # the colour of labels that have none of their own
_SMOOTHING = 1.5  # bins, of the contours alone


@dataclass(frozen=True)
class Grid:
    """Square bins that hold all points: edges of the bins along both axes."""

    across: np.ndarray
    up: np.ndarray

    @classmethod
    def around(cls, parts: tuple[np.ndarray, ...]) -> Grid:
        """The grid around points (n, 2) of several parts."""
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
        """How many points each bin holds, (up, across)."""
        return np.histogram2d(points[:, 1], points[:, 0], bins=(self.up, self.across))[0]

    def show(self, axes: Axes, picture: np.ndarray, **style: object) -> ScalarMappable:
        """An array of (up, across) or colours of that shape, where it belongs."""
        extent = (self.across[0], self.across[-1], self.up[0], self.up[-1])
        return axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest", aspect="equal", **style)


def draw_counts(panels: list[Axes], grid: Grid, parts: tuple[np.ndarray, ...]) -> None:
    """A panel for each part, in one scale of colours, the logarithm of the count; empty bins stay white."""
    counts = [grid.counts(part) for part in parts]
    norm = LogNorm(1, max(2.0, *(float(of.max()) for of in counts)))
    for axes, of in zip(panels, counts, strict=True):
        shown = grid.show(axes, np.where(of > 0, of, np.nan), norm=norm, cmap="viridis_r")
    panels[-1].figure.colorbar(shown, ax=panels, label="cells in a bin", shrink=0.8, pad=0.01, format="%g")


def draw_contours(axes: Axes, grid: Grid, parts: tuple[np.ndarray, ...], colors: tuple[str, ...]) -> None:
    """Lines around the densest bins that hold half and nine tenths of a part's points: solid of x, dashed of y."""
    at = [(edges[1:] + edges[:-1]) / 2 for edges in (grid.across, grid.up)]
    lines = []
    for part, color, style, name in zip(parts, colors, ("solid", "dashed"), "xy", strict=True):
        density = gaussian_filter(grid.counts(part), _SMOOTHING)
        ranked = np.sort(density, axis=None)[::-1]
        held = ranked.cumsum() / ranked.sum()
        levels = np.unique([ranked[np.searchsorted(held, fraction)] for fraction in _ENCLOSED])
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
    """Each bin in the colour of its most frequent label, paler where it holds less; those not `shown` count as one."""
    shades = np.array([to_rgb(color) for color in (*shown.values(), OTHERS)])
    for axes, part, of in zip(panels, parts, labels, strict=True):
        every = grid.counts(part)
        counts = [grid.counts(part[of == name]) for name in shown]
        counts.append(every - np.sum(counts, axis=0))
        alpha = np.where(every > 0, 0.35 + 0.65 * np.log1p(every) / np.log1p(max(1.0, float(every.max()))), 0)
        grid.show(axes, np.dstack([shades[np.argmax(counts, axis=0)], alpha]))


def key(shown: dict[str, str], others: int) -> list[Patch]:
    """The key to the colours of labels, `others` of which are grey."""
    rest = [(f"{others} other{'s' * (others > 1)}", OTHERS)] if others else []
    return [Patch(color=color, label=name) for name, color in (*shown.items(), *rest)]
