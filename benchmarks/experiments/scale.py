"""Quality against time: whole fits of the simulated data up to a million cells, and what else one could take.

Every start of every method at every n is a fit (benchmarks.experiments.fits); a method that ends without a result is
not tried again at that n or a larger one. Everything lies in results/MACHINE/scale/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

import mmdma_core
from benchmarks.analysis.agreement import matches_apart
from benchmarks.config import ConfigError, Scale, experiment
from benchmarks.experiments import refined
from benchmarks.experiments.fits import REFINED, Fit, known_or_measured, of_simulated, style_of
from benchmarks.experiments.peers import PEERS
from benchmarks.figures.style import SMALL, UNLIKE, Style, above_legend, count, halves, heading, key_of_unlike, save
from benchmarks.measuring import guard, machine, records
from benchmarks.measuring.device import alone
from benchmarks.measuring.memory import GIB
from benchmarks.measuring.records import Record
from benchmarks.study import Study, chosen_variants, on_this_machine
from mmdma_core.fused.compose import EXACT_UP_TO
from mmdma_core.matching.pictures import shortened
from mmdma_core.models import in_words

_JUDGE = "primal-fourier"  # whose loss all variants are compared by: exact up to 20,000 cells


def run(study: Study, config: dict[str, Any], retry: bool = False) -> str:
    """Fit what is not known (with retry, errors again), write scale.csv and the figure; return the table in words.

    Raises ConfigError for keys under `scale` that cannot be.
    """
    asked, root = experiment(config, "scale"), study.root / "scale"
    study = on_this_machine(study, config)
    fits = list(_fits(study, asked))
    with alone(study.device, study.root):
        guard.preload({fit.method for fit in fits if fit.method not in PEERS}, study.device)
        who = machine.describe(study.device, study.threads)
        found = known_or_measured(fits, root, who, retry)
        seeds, own = refined.run(study, asked, who, retry) if asked.refined else (None, [])
    beside = [record for record in own if record.n in asked.n]
    table = pd.DataFrame([_row(record) for record in (*found, *beside)])
    only = table.groupby(["method", "n"])["start"].transform("size") == 1
    table["chosen"] = only | (table["loss"] == table.groupby(["method", "n"])["loss"].transform("min"))
    records.write_atomically(root / "scale.csv", table.to_csv(index=False))
    looks = {fit.variant: style_of(fit.method, fit.batch_size is not None) for fit in fits}
    looks |= {record.variant: refined.LOOK for record in beside}
    save(draw(table, study, asked, looks), root, "scale")
    starts = table[(table["status"] == "ok") & table["loss"].notna()]
    said = starts.groupby(["n", "method"], sort=False).apply(_in_words, include_groups=False)
    if asked.refined:
        said = [*said, *refined.in_words(seeds)]
    return "\n".join([*said, *(str(root / f"scale.{suffix}") for suffix in ("csv", "png", "svg"))])


def _fits(study: Study, asked: Scale) -> Iterator[Fit]:
    """Every start, in the order in which they run: by n, then method, then start."""
    variants = chosen_variants("scale.variants", asked.variants)
    for name in variants:
        if mmdma_core.variant(name).formulation != "primal":
            raise ConfigError(f"scale.variants: {name!r} has no weights of features; take those of the primal")
    for n in sorted(asked.n):
        in_batches = asked.batch_size is not None and n > asked.batch_size
        whole, batched = [(name, None) for name in variants], [(_JUDGE, asked.batch_size)] * in_batches
        for method, batch_size in (*whole, *batched, *((peer, None) for peer in asked.peers)):
            for k in range(asked.n_starts):
                data = {"shape": study.shape, "data_seed": study.seed}
                how = {"batch_size": batch_size, "updates": asked.n_epochs, "judge": _JUDGE}
                yield of_simulated(study, asked, method, n, asked.seed + k, **data, **how)


def _row(record: Record) -> dict[str, Any]:
    """A record as a row of scale.csv; seconds without compilation, which stands beside."""
    found = record.metrics
    return {
        "method": record.variant,
        "n": record.n,
        "p": record.p,
        "start": record.seed,
        "status": record.status,
        "detail": record.last_words,
        "seconds": record.runtime_s,
        "prepare_s": record.prepare_s,
        "compile_s": found.get("compile_s"),
        "data_s": record.data_s,
        "foscttm": found.get("foscttm"),
        "foscttm_low": found.get("foscttm_low"),
        "foscttm_high": found.get("foscttm_high"),
        "loss": found.get("loss"),
        "loss_is": _loss_is(record),
        "peak_gib": None if record.peak_bytes is None else record.peak_bytes / GIB,
        "machine": machine.recorded_model(record.machine),
        "commit": record.machine["commit"],
    }


def _loss_is(record: Record) -> str:
    if record.variant in PEERS:
        return "its own"
    if record.variant.endswith(REFINED):
        return "none: nothing is trained"
    return "exact" if record.n <= EXACT_UP_TO else "estimate"


def _in_words(rows: pd.DataFrame) -> str:
    n, method = rows.name
    chosen = rows.loc[rows["loss"].idxmin(), "foscttm"]
    peak = in_words(rows["peak_gib"].max() * GIB)
    return (
        f"n = {n:<8} {method:<26} {rows['seconds'].median():8.1f} s a start, FOSCTTM {chosen:.3f} at the lowest loss; "
        f"all starts {', '.join(f'{value:.3f}' for value in rows['foscttm'])}; peak {peak}"
    )


def draw(table: pd.DataFrame, study: Study, asked: Scale, looks: dict[str, Style]) -> Figure:
    """Draw FOSCTTM of each start against its seconds, a panel for each n; filled: the start of the lowest loss."""
    ns = sorted(table["n"].unique())
    down = -(-len(ns) // 2)
    figure, upper = above_legend(0.7 + 2.1 * down, _legend(looks, _apart(table)))
    panels = upper.subplots(down, min(len(ns), 2), sharey=True, sharex=True, squeeze=False)
    for axes in panels.flat[len(ns) :]:
        axes.set_visible(False)
    for axes, n in zip(panels.flat, ns, strict=False):
        _panel(axes, table[table["n"] == n], n, looks)
    panels[0, 0].set_ylim(-0.03, 0.75)
    upper.supylabel("FOSCTTM (0 is best)")
    upper.supxlabel("seconds of a start, data in memory, without compilation")
    name = shortened(table["machine"].iloc[0], 40)
    upper.suptitle(
        f"{asked.n_epochs} epochs on {study.shape} data, p = {asked.p}: {name}, {study.threads} threads\n"
        "every start; filled: what a user without the truth takes, by the lowest loss or, refined, by MMD2",
        x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _apart(table: pd.DataFrame) -> set[str]:
    """The variants whose best start is worse than that of their family, at some n."""
    best = table[table["status"] == "ok"].groupby(["n", "method"])["foscttm"].min()
    return set().union(*(matches_apart(best[n].to_dict()) for n in best.index.unique(0)))


def _legend(looks: dict[str, Style], apart: set[str]) -> list[list[Line2D]]:
    """Two columns: the variants, and the peers under a heading that says what they are."""
    lines = {}
    for method, look in looks.items():
        text = UNLIKE * (method in apart) + look.label
        lines[method] = Line2D([], [], color=look.color, marker=look.marker, linestyle="none", label=text)
    peers = [line for method, line in lines.items() if method in PEERS]
    variants = [line for method, line in lines.items() if method not in PEERS]
    variants += key_of_unlike(looks, apart, "a match")
    return [variants, [heading("other objectives"), *peers]] if peers else halves(variants)


def _panel(axes: Axes, rows: pd.DataFrame, n: int, looks: dict[str, Style]) -> None:
    for method, starts in rows[rows["status"] == "ok"].groupby("method", sort=False):
        look = looks[method]
        faces = np.where(starts["chosen"], look.color, "none")
        axes.scatter(starts["seconds"], starts["foscttm"], s=45, c=faces, edgecolors=look.color, marker=look.marker)
    ended = rows[~rows["status"].isin(["ok", "skipped"])]
    notes = [f"{row.method}: {row.status.replace('_', ' ')}" for row in ended.itertuples()]
    axes.text(0.98, 0.98, "\n".join(notes), transform=axes.transAxes, ha="right", va="top", fontsize=SMALL, color="0.3")
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"n = {count(n)}", loc="left")
    axes.grid(True, color="0.93", linewidth=0.6)
