"""One whole fit, in a child of the guard: data, a fit from start to end, how well it matches.

Quality against time: whole fits of the simulated data up to a million cells, and what else one could take.

A fit is a start of a variant through mmdma_core.MMDMA, or of a peer (benchmarks.experiments.peers), in a child of the
guard; a cell of a study, but for what is measured. A method that ends without a result is not tried again at that n or
a larger one. Everything lies in results/MACHINE/scale/.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

import mmdma_core
from benchmarks.analysis.agreement import matches_apart
from benchmarks.config import ConfigError
from benchmarks.experiments.peers import PEERS, absent, missing
from benchmarks.figures.style import (
    SMALL,
    UNLIKE,
    Style,
    above_legend,
    count,
    halves,
    heading,
    key_of_unlike,
    save,
    short_label,
    style,
)
from benchmarks.measuring import guard, machine, memory, records
from benchmarks.measuring.device import alone
from benchmarks.measuring.fingerprint import fingerprint_of, variant_fingerprint
from benchmarks.measuring.measurement import Limits, Measurement, Report, few
from benchmarks.measuring.memory import GIB
from benchmarks.measuring.records import Record
from benchmarks.study import Study, chosen_variants, known_at, on_this_machine
from mmdma_core import MMDMA, MissingDependency, Settings
from mmdma_core.fused.compose import EXACT_UP_TO
from mmdma_core.matching.pictures import shortened
from mmdma_core.models import in_words
from mmdma_core.registry import LEAST_BATCH

BATCHED = " in batches"  # behind the name of a variant
_SAMPLE = 1_000  # cells of each view that FOSCTTM is of, where it is not of all


@dataclass(frozen=True)
class Fit(Measurement):
    """What is asked of one fit: a variant or a peer, from one start; `seed` is that of the start.

    updates     epochs of the fit
    batch_size  cells of each view that an update takes, see mmdma_core.MMDMA; None: all
    data_seed   of the data
    """

    updates: int = 1
    batch_size: int | None = None
    data_seed: int = 0


def fit_and_evaluate(cell: Fit, report: Report) -> None:
    """The work of a fit in a child of the guard, see benchmarks.measuring.measurement.measure."""
    peer = PEERS.get(cell.variant)
    if peer and missing(peer):
        raise MissingDependency(missing(peer))
    compile_s = 0.0
    if not peer:
        begin = time.perf_counter()
        _fit_few(cell)
        compile_s = time.perf_counter() - begin
    before = memory.host_bytes()
    report({"stage": "data", "host_before": before})
    begin = time.perf_counter()
    x, y, match = _views(cell, cell.n)
    report({"data_s": time.perf_counter() - begin, "stage": "fit"})
    memory.reset_host_peak()
    if peer:
        found = peer.fit(x, y, cell.seed)
        e_x, e_y, loss = found.e_x, found.e_y, found.loss
        compile_s, times = found.seconds["compile_s"], (found.seconds["prepare_s"], found.seconds["fit_s"])
    else:
        begin = time.perf_counter()
        model = _fitted(cell, x, y, cell.updates)
        times = 0.0, time.perf_counter() - begin
        e_x, e_y, loss = model.embedding_x_, model.embedding_y_, _loss(cell, x, y, model)
    report({"prepare_s": times[0], "epoch_s": [times[1]], "stage": "metrics"})
    report({"peak_host_bytes": max(0, memory.host_peak_bytes() - before)})
    report({"metrics": _quality(e_x, e_y, match) | {"loss": loss, "compile_s": compile_s}, "status": "ok"})


def _views(cell: Fit, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both views with rows of unit length, and the match."""
    if cell.data is not None:
        x, y, match = cell.data.views(n, cell.p, cell.data_seed)
    else:
        x, y, match = mmdma_core.simulate(cell.shape, n, cell.p, cell.data_seed, noise=cell.data_mode)
    return *(torch.nn.functional.normalize(torch.as_tensor(view), dim=1).numpy() for view in (x, y)), match


def _fit_few(cell: Fit) -> None:
    """A fit of few cells, before the clock starts, in which all is compiled, for CUDA too: see cell.few."""
    n, p = few(cell.n, cell.p, cell.device)
    batched = cell.batch_size and cell.n > cell.batch_size
    batch_size = min(cell.batch_size, max(LEAST_BATCH, n // 2)) if batched else None
    random = np.random.default_rng(0)
    _fitted(replace(cell, batch_size=batch_size), *(random.random((n, p), np.float32) for _ in "xy"), updates=2)


def _fitted(cell: Fit, x: np.ndarray, y: np.ndarray, updates: int) -> MMDMA:
    asked = {name: getattr(cell.settings, name) for name in ("n_components", "sigma", "lambda1", "lambda2")}
    return MMDMA(
        cell.variant.removesuffix(BATCHED),
        **asked,
        learning_rate=cell.settings.learning_rate,
        n_epochs=updates,
        n_starts=1,
        batch_size=cell.batch_size if len(x) > (cell.batch_size or 0) else None,
        loss_every=updates,
        device=cell.device,
        random_state=cell.seed,
    ).fit(x, y)


def _loss(cell: Fit, x: np.ndarray, y: np.ndarray, model: MMDMA) -> float:
    """The loss as primal-fourier reports it, whatever variant has fitted: exact up to 20,000 cells."""
    weights = model.weights_x_, model.weights_y_
    return mmdma_core.start("primal-fourier", x, y, cell.settings, cell.device, parameters=weights).loss().total


def _quality(e_x: np.ndarray, e_y: np.ndarray, match: np.ndarray) -> dict[str, float]:
    """FOSCTTM, with the ends of its 95 % interval where it is from a sample of the cells."""
    from mmdma_core.matching import match_ranks, metrics

    found = metrics.evaluate(e_x, e_y, match, sample=None if len(e_x) <= match_ranks.EXACT_UP_TO else _SAMPLE)
    low, high = found.intervals.get("foscttm", (None, None))
    return {"foscttm": found.values["foscttm"], "foscttm_low": low, "foscttm_high": high}


_PEER_STYLES = (("#D62728", "X", ":"), ("#7F7F7F", "P", ":"))


def run(study: Study, config: dict[str, Any], retry: bool = False) -> str:
    """Fit what is not known (with retry, errors again), write scale.csv and the figure; the table in words.

    Raises ConfigError for keys under `scale` that cannot be.
    """
    if "scale" not in config:
        raise ConfigError("scale: the configuration has no such key; the project's config.yaml shows it")
    asked, root = config["scale"], study.root / "scale"
    study = on_this_machine(study, config)
    fits = list(_fits(study, asked))
    with alone(study.device, study.root):
        guard.preload({fit.variant.removesuffix(BATCHED) for fit in fits if fit.variant not in PEERS}, study.device)
        who = machine.describe(study.device, study.threads)
        rows, ended = [], {}  # method -> the first record without a result
        for fit in fits:
            record = known_or_measured(fit, root, who, retry, ended.get(fit.variant))
            if record.status not in ("ok", "skipped"):
                ended.setdefault(fit.variant, record)
            rows.append(_row(fit, record))
    table = pd.DataFrame(rows)
    table["chosen"] = table["loss"] == table.groupby(["method", "n"])["loss"].transform("min")
    records.write_atomically(root / "scale.csv", table.to_csv(index=False))
    save(draw(table, study, asked), root, "scale")
    said = table[table["status"] == "ok"].groupby(["n", "method"], sort=False).apply(_in_words, include_groups=False)
    return "\n".join([*said, *(str(root / f"scale.{suffix}") for suffix in ("csv", "png", "svg"))])


def _fits(study: Study, asked: dict[str, Any]) -> Iterator[Fit]:
    """Every start, in the order in which they run: by n, then method, then start."""
    try:
        settings = Settings(**asked["settings"])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scale.settings: {error}") from None
    variants = chosen_variants("scale.variants", asked["variants"])
    for name in variants:
        if mmdma_core.variant(name).formulation != "primal":
            raise ConfigError(f"scale.variants: {name!r} has no weights of features; take those of the primal")
    for n in sorted(asked["n"]):
        methods = [*variants, *asked["peers"]]
        if asked["batch_size"] and n > asked["batch_size"]:
            methods.insert(len(variants), f"primal-fourier{BATCHED}")
        for method in methods:
            for k in range(asked["n_starts"]):
                yield _fit(study, asked, settings, method, n, asked["seed"] + k)


def _fit(study: Study, asked: dict[str, Any], settings: Settings, method: str, n: int, seed: int) -> Fit:
    variant = None if method in PEERS else mmdma_core.variant(method.removesuffix(BATCHED))
    return Fit(
        variant=method,
        n=n,
        p=asked["p"],
        source=variant_fingerprint(variant) if variant else fingerprint_of(PEERS[method].fit, module=__name__),
        absent=variant.absent() if variant else absent(PEERS[method]),
        settings=settings,
        shape=study.shape,
        seed=seed,
        data_mode="exact" if n * asked["p"] <= study.exact_data_below else "fast",
        epochs=1,  # a fit is timed as a whole
        device=study.device,
        threads=study.threads,
        limits=Limits(asked["fit_timeout_s"], asked["fit_timeout_s"], study.host_gib, study.gpu_gib),
        updates=asked["n_epochs"],
        batch_size=asked["batch_size"] if method.endswith(BATCHED) else None,
        data_seed=study.seed,
    )


def known_or_measured(
    fit: Fit, root: Path, who: dict[str, Any], retry: bool = False, ended: Record | None = None
) -> Record:
    """The known record of a fit, or a new one; skipped where a fit of the method has come to no end.

    root   folder of the experiment's records
    who    the machine, see benchmarks.measuring.machine
    retry  measure again what ended in an error
    ended  the record of that fit, at a smaller n or from an earlier start
    """
    path = _path(root, fit)
    record, why = known_at(path, fit, ["error"] if retry else [])
    if record:
        return record
    if ended:
        why = f"{ended.status} at n = {ended.n}, start {ended.seed}"
        record = guard.new_record(fit, "skipped", why, who, implied_by=ended.n, implied_end=ended.status)
    else:
        if why:
            print(why, flush=True)
        record = guard.measure(fit, who, fit.limits.timeout_s, fit_and_evaluate)
        print(_line(record), flush=True)
    records.write(record, path)
    return record


def _path(root: Path, fit: Fit) -> Path:
    return records.record_path(root / f"start{fit.seed}", fit.variant, fit.p, fit.n)


def _line(record: Record) -> str:
    where = f"{record.variant:<26} n = {record.n:<8} start {record.seed}: {record.status:<8}"
    if record.status != "ok":
        return f"{where} {record.last_words}"
    found = record.metrics
    return f"{where} {record.runtime_s:8.1f} s, FOSCTTM {found['foscttm']:.3f}, loss {found['loss']:.4g}"


def _row(fit: Fit, record: Record) -> dict[str, Any]:
    """A record as a row of scale.csv; seconds without compilation, which stands beside."""
    found = record.metrics
    held = record.peak_host_bytes if record.peak_device_bytes is None else record.peak_device_bytes
    return {
        "method": fit.variant,
        "n": fit.n,
        "p": fit.p,
        "start": fit.seed,
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
        "loss_is": "its own" if fit.variant in PEERS else "exact" if fit.n <= EXACT_UP_TO else "estimate",
        "peak_gib": None if held is None else held / GIB,
        "machine": record.machine["gpu"]["name"] if record.machine.get("gpu") else record.machine["cpu"],
        "commit": record.machine["commit"],
    }


def _in_words(rows: pd.DataFrame) -> str:
    n, method = rows.name
    chosen = rows.loc[rows["loss"].idxmin(), "foscttm"]
    peak = in_words(rows["peak_gib"].max() * GIB)
    return (
        f"n = {n:<8} {method:<26} {rows['seconds'].median():8.1f} s a start, FOSCTTM {chosen:.3f} at the lowest loss; "
        f"all starts {', '.join(f'{value:.3f}' for value in rows['foscttm'])}; peak {peak}"
    )


def draw(table: pd.DataFrame, study: Study, asked: dict[str, Any]) -> Figure:
    """FOSCTTM of each start against its seconds, a panel for each n; filled: the start of the lowest loss."""
    ns = sorted(table["n"].unique())
    down = -(-len(ns) // 2)
    figure, upper = above_legend(0.7 + 2.1 * down, _legend(list(dict.fromkeys(table["method"])), _apart(table)))
    panels = upper.subplots(down, min(len(ns), 2), sharey=True, sharex=True, squeeze=False)
    for axes in panels.flat[len(ns) :]:
        axes.set_visible(False)
    for axes, n in zip(panels.flat, ns, strict=False):
        _panel(axes, table[table["n"] == n], n)
    panels[0, 0].set_ylim(-0.03, 0.75)
    upper.supylabel("FOSCTTM (0 is best)")
    upper.supxlabel("seconds of a start, data in memory, without compilation")
    row = table.iloc[0]
    machine = shortened(row["machine"], 40)
    upper.suptitle(
        f"{asked['n_epochs']} epochs on {study.shape} data, p = {row['p']}: {machine}, {study.threads} threads\n"
        "every start; filled: the one of the lowest loss, which a user without the truth takes",
        x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _apart(table: pd.DataFrame) -> set[str]:
    """The variants whose best start is worse than that of their family, at some n."""
    best = table[table["status"] == "ok"].groupby(["n", "method"])["foscttm"].min()
    return set().union(*(matches_apart(best[n].to_dict()) for n in best.index.unique(0)))


def _legend(methods: list[str], apart: set[str]) -> list[list[Line2D]]:
    """Two columns: the variants, and the peers under a heading that says what they are."""
    looks = {method: style_of(method) for method in methods}
    lines = {
        method: Line2D(
            [],
            [],
            color=look.color,
            marker=look.marker,
            linestyle="none",
            label=UNLIKE * (method in apart) + look.label,
        )
        for method, look in looks.items()
    }
    peers = [line for method, line in lines.items() if method in PEERS]
    variants = [line for method, line in lines.items() if method not in PEERS]
    variants += key_of_unlike(methods, apart, "a match")
    return [variants, [heading("other objectives"), *peers]] if peers else halves(variants)


def _panel(axes: Axes, rows: pd.DataFrame, n: int) -> None:
    for method, starts in rows[rows["status"] == "ok"].groupby("method", sort=False):
        look = style_of(method)
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


def style_of(method: str) -> Style:
    """How a variant, with batches or not, or a peer is drawn."""
    if method in PEERS:
        return Style(PEERS[method].label, *_PEER_STYLES[list(PEERS).index(method)])
    if method.endswith(BATCHED):
        look = style(method.removesuffix(BATCHED))
        return dataclasses.replace(
            look,
            label=f"{short_label(method.removesuffix(BATCHED))}, in batches (approximate)",
            marker="*",
            color="#E7298A",
        )
    return style(method)
