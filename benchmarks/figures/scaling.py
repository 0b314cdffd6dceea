"""How runtime and memory grow: their exponents in n and p with the theory, and speed-up over several devices."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.analysis.exponents import FLOOR, exponents
from benchmarks.figures.style import (
    PAGE,
    SMALL,
    TIGHT,
    UNLIKE,
    above_legend,
    across_in,
    halves,
    key_of_unlike,
    legend,
    short_label,
    style,
)
from benchmarks.measuring.records import Record, read_all

_POINT = ["variant", "p", "n"]
_COLUMNS = ["kind", *_POINT, "devices", "speed_up", "memory_of_each"]
_KINDS = {"strong": "strong: n is fixed", "weak": "weak: n of each is fixed"}
_MARKERS = "osD^vPX*<>"  # the larger n is, the further on
_SHOWN = (-0.7, 3.7)  # an interval that is wider ends at the frame
_QUANTITIES = {"runtime": "runtime of an epoch", "memory": "peak memory"}
_HOST = "peaks of host memory include what the allocator keeps of freed arrays"


def draw_exponents(table: pd.DataFrame, title: str, apart: Collection[str] = ()) -> Figure:
    """Draw every exponent that could be fitted with its 95 % interval, and the theoretical one of the dominating term.

    apart  variants to be marked, since they do not agree with their family
    """
    fitted = exponents(table)
    fitted = fitted[fitted["n"].notna() | fitted["p"].notna()]
    parts = {quantity: fitted[fitted["quantity"] == quantity] for quantity in _QUANTITIES}
    notes = [_HOST] if (table["device"] == "cpu").any() else []
    rows = [max(len(part), 1) for part in parts.values()]
    figure = Figure(figsize=(PAGE, 2.0 + 0.23 * sum(rows)), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[count + 1 for count in rows])
    for (quantity, part), panels in zip(parts.items(), grid, strict=True):
        labels = [
            f"{UNLIKE * (row.variant in apart)}{short_label(row.variant)}: {_raised(row.term)}"
            for row in part.itertuples()
        ]
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(max(len(labels), 1) - 0.5, -0.5)
        for axis, axes in zip("np", panels, strict=True):
            _panel(axes, part, axis)
            axes.set_title(f"{_QUANTITIES[quantity]}:\nexponent of {axis}", loc="left")
    figure.suptitle("\n".join([title, *notes]), x=0.01, ha="left")
    dot = Line2D([], [], color="0.3", marker="o", markersize=4, label="measured, with its 95 % interval")
    theory = Line2D([], [], color="black", marker="|", markersize=11, linestyle="none", label="theory, dominating term")
    legend(figure, [dot, theory, *key_of_unlike(fitted["variant"], apart)], loc="outside lower left", ncols=2, **TIGHT)
    return figure


def _raised(term: str) -> str:
    """Return 'n\u00b2 p' for 'n^2 p'."""
    return term.replace("^2", "\u00b2").replace("^3", "\u00b3")


def _panel(axes: Axes, rows: pd.DataFrame, axis: str) -> None:
    axes.set_xlim(*_SHOWN)
    axes.set_xticks(range(4))
    axes.grid(True, axis="x", color="0.92", linewidth=0.6)
    axes.tick_params(labelbottom=True)
    if not rows[axis].notna().any():
        reason = f"no term has enough points\n{FLOOR:g} x above the least"
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color="0.4", fontsize=SMALL)
    for y, row in enumerate(rows.to_dict("records")):
        if pd.notna(row[axis]):
            color = style(row["variant"]).color
            axes.plot([row[f"{axis}_low"], row[f"{axis}_high"]], [y, y], color=color, linewidth=1.6)
            axes.plot([row[axis]], [y], "o", color=color, markersize=4.5)
            axes.plot([row[f"{axis}_theory"]], [y], "|", color="black", markersize=11, markeredgewidth=1.4)


def read_scaling(root: Path) -> pd.DataFrame:
    """Return `scaled` of results/MACHINE and of its folders devices2, devices3 and so on."""
    folders = [root, *sorted(folder for folder in root.glob("devices*") if folder.name[7:].isdecimal())]
    return scaled([record for folder in folders for record in read_all(folder)])


def scaled(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row for each measurement on several devices and the one on one device that it is set against.

    kind            'strong': the same n; 'weak': the same n of each device
    n               of the measurement on one device
    speed_up        cells an epoch and second, over that of one device: of strong scaling at most about `devices`; of
                    weak scaling that of each device, at most about 1
    memory_of_each  bytes: the largest peak of a rank, on a GPU of PyTorch's allocator
    """
    ok = {(r.variant, r.p, r.n, r.devices): r for r in records if r.status == "ok"}
    rows = []
    for (variant, p, n, devices), record in ok.items():
        for kind, of_one in (("strong", n), ("weak", n // devices)):
            one = ok.get((variant, p, of_one, 1))
            if one is None or (kind == "weak" and n % devices):
                continue
            speed_up = one.median_epoch_s / record.median_epoch_s
            rows.append((kind, variant, p, of_one, devices, speed_up, _of_each(record)))
    table = pd.DataFrame(rows, columns=_COLUMNS)
    several = table.groupby(["kind", "variant", "p", "n"])["devices"].transform("nunique") > 1
    return table[several].sort_values(_COLUMNS[:5], ignore_index=True)


def _of_each(record: Record) -> float | None:
    name = "peak_torch_bytes" if record.device == "cuda" else "peak_host_bytes"
    held = [rank[name] for rank in record.ranks if rank.get(name) is not None]
    return max(held) if held else getattr(record, name)


def draw(table: pd.DataFrame, title: str) -> Figure:
    """Draw a column for strong, one for weak scaling: above the speed-up with what is ideal, below memory of each."""
    first = table[table["kind"] == table["kind"].min()]  # strong, if there is any
    looks = {point: _look(*point, sorted(first["n"].unique())) for point in first.groupby(_POINT).groups}
    handles = [Line2D([], [], **look) for look in looks.values()]
    figure, upper = above_legend(4.6, halves(handles) if across_in(handles, PAGE) == 2 else [handles])
    panels = upper.subplots(2, 2, sharex=True)
    for column, (kind, words) in zip(panels.T, _KINDS.items(), strict=True):
        part = table[table["kind"] == kind]
        column[0].set_title(words, loc="left")
        if part.empty:
            for axes in column:
                axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", color="0.4")
        devices = sorted({1, *part["devices"]})
        column[0].plot(devices, devices if kind == "strong" else [1] * len(devices), color="0.7", linestyle="--")
        for name, axes, unit in (("speed_up", column[0], 1.0), ("memory_of_each", column[1], 2**30)):
            for point, rows in part.groupby(_POINT):
                look = looks.get(point) or _look(*point, sorted(part["n"].unique()))
                axes.plot(rows["devices"], rows[name] / unit, **look)
        column[1].set_xlabel("devices")
        column[1].set_xticks(devices)
        for axes in column:
            axes.set_ylim(bottom=0)
            axes.grid(True, color="0.92", linewidth=0.6)
    panels[0, 0].set_ylabel("speed-up")
    panels[1, 0].set_ylabel("peak of each, GiB")
    upper.suptitle(title, x=0.01, ha="left")
    return figure


def _look(variant: str, p: int, n: int, sizes: Sequence[int]) -> dict[str, object]:
    look, marker = style(variant), _MARKERS[sizes.index(n) % len(_MARKERS)]
    return {"color": look.color, "marker": marker, "markersize": 4, "label": f"{look.label}, n = {n:,}, p = {p:,}"}
