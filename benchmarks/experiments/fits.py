"""Whole fits, each in a process of its own and kept as a record: what `scale` and `quality` are made of.

A fit is a start of a variant through mmdma_core.MMDMA, or of a peer (benchmarks.experiments.peers). It is guarded and
recorded as every measurement is: the key of its record has the fingerprint of what it runs, so that a changed formula
is fitted anew, and what is known is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mmdma_core
from benchmarks.config import Scale
from benchmarks.experiments.peers import PEERS, absent, missing
from benchmarks.figures.style import Style, short_label, style
from benchmarks.measuring import guard, memory, records
from benchmarks.measuring.fingerprint import fingerprint_of, variant_fingerprint
from benchmarks.measuring.measurement import Limits, Measurement, Report, few
from benchmarks.measuring.records import Record
from benchmarks.study import Study, known_at
from mmdma_core import MMDMA, MissingDependency, Settings
from mmdma_core.matching.starts import Problem
from mmdma_core.matching.symmetries import rows_of_one_length
from mmdma_core.registry import LEAST_BATCH

REFINED = "refined"  # of the name of a method whose starts are refined and chosen from
OF_THE_ESTIMATOR = ("n_components", "sigma", "lambda1", "lambda2", "learning_rate", "unbiased")  # of Settings
_SAMPLE = 1_000  # cells of each view that FOSCTTM is of, where it is not of all
_PEER_STYLES = (("#D62728", "X", ":"), ("#7F7F7F", "P", ":"))


@dataclass(frozen=True)
class Fit(Measurement):
    """What is asked of one fit: a method, from one start; `seed` is that of the start, `data_mode` names the data.

    `variant`, by which records are named, is the method, and says where it goes in batches.

    method      a variant or a peer
    updates     epochs of the fit
    batch_size  cells of each view that an update takes, see mmdma_core.MMDMA; None: all
    data_seed   of the data
    judge       the variant of the primal whose loss of the found weights stands for the fit's; None: the fit's own
    whole       parameters of MMDMA, other than these, of a fit of several starts that are refined and chosen from, on
                views as they are; none: one start, as the paper trains it, of rows of unit length
    ties        what a tie counts in FOSCTTM, see mmdma_core.metrics.foscttm
    """

    method: str = ""
    updates: int = 1
    batch_size: int | None = None
    data_seed: int = 0
    judge: str | None = None
    ties: float = 0.5
    whole: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, method: str, batch_size: int | None = None, **asked: Any) -> Fit:
        """Ask for a fit of a variant or a peer; asked: further fields.

        A peer has settings, updates and a loss of its own.
        """
        name = method if batch_size is None else f"{method} in batches"
        if method in PEERS:
            peer = PEERS[method]
            source, lacks = fingerprint_of(peer.fit, module=__name__), absent(peer)
            asked |= {"settings": Settings(), "updates": 1, "judge": None}
        else:
            variant = mmdma_core.variant(method)
            source, lacks = variant_fingerprint(variant), variant.absent()
            if asked.get("whole"):
                name = f"{method} {REFINED}"
                source += fingerprint_of(Problem, MMDMA.fit, rows_of_one_length, module=Problem.__module__)
        asked |= {"method": method, "batch_size": batch_size, "epochs": 1}  # it is timed as a whole
        return cls(variant=name, source=source, absent=lacks, **asked)


def of_simulated(study: Study, asked: Scale, method: str, n: int, seed: int, **more: Any) -> Fit:
    """Ask for a fit of simulated data in the experiment `scale`; more: further fields."""
    return Fit.of(
        method,
        n=n,
        p=asked.p,
        settings=asked.settings,
        seed=seed,
        data_mode="exact" if n * asked.p <= study.exact_data_below else "fast",
        device=study.device,
        threads=study.threads,
        limits=Limits(asked.fit_timeout_s, asked.fit_timeout_s, study.host_gib, study.gpu_gib),
        **more,
    )


def known_or_measured(
    fits: Iterable[Fit], root: Path, who: dict[str, Any], retry: bool = False, about: str = ""
) -> list[Record]:
    """Return the record of each fit, in order; what is not known is measured, and told in a line.

    After a fit of a method that comes to no end its further fits, of a larger n or another start, are skipped.

    root   folder of the records
    who    the machine, see benchmarks.measuring.machine
    retry  measure again what ended in an error
    about  what the line says first
    """
    found, ended = [], {}  # all; of each method the first one without a result
    for fit in fits:
        path = records.record_path(root / f"start{fit.seed}", fit.variant, fit.p, fit.n)
        record, why = known_at(path, fit, ["error"] if retry else [])
        if record is None and (first := ended.get(fit.variant)):
            words = f"{first.status} at n = {first.n}, start {first.seed}"
            record = guard.new_record(fit, "skipped", words, who, implied_by=first.n, implied_end=first.status)
            records.write(record, path)
        elif record is None:
            if why:
                print(why, flush=True)
            record = guard.measure(fit, who, fit.limits.timeout_s, fit_and_evaluate)
            records.write(record, path)
            print(f"{about}{_line(record)}", flush=True)
        if record.status not in ("ok", "skipped"):
            ended.setdefault(fit.variant, record)
        found.append(record)
    return found


def _line(record: Record) -> str:
    where = f"{record.variant:<26} n = {record.n:<8} start {record.seed}: {record.status:<8}"
    if record.status != "ok":
        return f"{where} {record.last_words}"
    found = record.metrics
    loss = "" if found["loss"] is None else f", loss {found['loss']:.4g}"
    return f"{where} {record.runtime_s:8.1f} s, FOSCTTM {found['foscttm']:.4f}{loss}"


def fit_and_evaluate(fit: Fit, report: Report) -> None:
    """Do the work of a fit in a child of the guard, see benchmarks.measuring.measurement.measure."""
    peer = PEERS.get(fit.method)
    if peer and missing(peer):
        raise MissingDependency(missing(peer))
    compile_s = 0.0
    if not peer:
        begin = time.perf_counter()
        _fit_few(fit)
        compile_s = time.perf_counter() - begin
    before = memory.host_bytes()
    report({"stage": "data", "host_before": before})
    begin = time.perf_counter()
    x, y, match = _views(fit)
    report({"data_s": time.perf_counter() - begin, "stage": "fit"})
    memory.reset_host_peak()
    if peer:
        found = peer.fit(x, y, fit.seed)
        e_x, e_y, loss = found.e_x, found.e_y, found.loss
        compile_s, times = found.seconds["compile_s"], (found.seconds["prepare_s"], found.seconds["fit_s"])
    else:
        begin = time.perf_counter()
        model = _fitted(fit, x, y, fit.updates)
        times = 0.0, time.perf_counter() - begin
        e_x, e_y, loss = model.embedding_x_, model.embedding_y_, _loss(fit, x, y, model)
    report({"prepare_s": times[0], "epoch_s": [times[1]], "stage": "metrics"})
    report({"peak_host_bytes": max(0, memory.host_peak_bytes() - before)})
    found = _quality(e_x, e_y, match, fit.ties) | {"loss": loss, "compile_s": compile_s}
    if fit.whole:
        found |= {"ambiguous": model.ambiguous_, "errors": model.errors_, "l2_normalize": model.l2_normalize_}
        found |= {"starts": _of_starts(model, match, fit.ties)}
    report({"metrics": found, "status": "ok"})


def _of_starts(model: MMDMA, match: np.ndarray, ties: float) -> list[dict[str, Any]]:
    """A row for each start, with FOSCTTM as it was trained."""
    rows = model.starts_.drop(columns=["seconds", "stopped"]).replace({np.nan: None}).to_dict("records")
    embeddings = zip(rows, model.start_embeddings_, strict=True)
    return [row | {"foscttm": pair and _quality(*pair, match, ties)["foscttm"]} for row, pair in embeddings]


def _views(fit: Fit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both views, with rows of unit length for a fit of one start, and the match."""
    if fit.data is not None:
        x, y, match = fit.data.views(fit.n, fit.p, fit.data_seed)
    else:
        x, y, match = mmdma_core.simulate(fit.shape, fit.n, fit.p, fit.data_seed, noise=fit.data_mode)
    if fit.whole:
        return *(np.asarray(view, np.float32) for view in (x, y)), match
    return *(torch.nn.functional.normalize(torch.as_tensor(view), dim=1).numpy() for view in (x, y)), match


def _fit_few(fit: Fit) -> None:
    """Fit few cells before the clock starts, in which all is compiled, for CUDA too: see measurement.few."""
    n, p = few(fit.n, fit.p, fit.device)
    batched = fit.batch_size and fit.n > fit.batch_size
    batch_size = min(fit.batch_size, max(LEAST_BATCH, n // 2)) if batched else None
    random = np.random.default_rng(0)
    _fitted(replace(fit, batch_size=batch_size), *(random.random((n, p), np.float32) for _ in "xy"), updates=2)


def _fitted(fit: Fit, x: np.ndarray, y: np.ndarray, updates: int) -> MMDMA:
    parameters = {name: getattr(fit.settings, name) for name in OF_THE_ESTIMATOR}
    parameters |= {"random_state": fit.seed, "device": fit.device}
    if fit.whole:
        return MMDMA(fit.method, **parameters | dict(fit.whole), keep_starts=True).fit(x, y)
    return MMDMA(
        fit.method,
        **parameters,
        n_epochs=updates,
        n_starts=1,
        batch_size=fit.batch_size if len(x) > (fit.batch_size or 0) else None,
        loss_every=updates,
        scale=False,
        l2_normalize=False,
        starts="random",
        refine=False,
    ).fit(x, y)


def _loss(fit: Fit, x: np.ndarray, y: np.ndarray, model: MMDMA) -> float | None:
    """The loss by which a user chooses among starts: the fit's own, or that of the judge for all methods alike.

    Of a fit that has refined its starts it is that of the chosen one; None if nothing was trained.
    """
    if fit.whole:
        chosen = float(model.starts_["loss"][model.starts_["chosen"]].iloc[0])
        return chosen if model.n_iter_ else None
    if fit.judge is None:
        return float(model.starts_["loss"].iloc[0])
    weights = model.weights_x_, model.weights_y_
    return mmdma_core.start(fit.judge, x, y, fit.settings, fit.device, parameters=weights).loss().total


def _quality(e_x: np.ndarray, e_y: np.ndarray, match: np.ndarray, ties: float) -> dict[str, float | None]:
    """FOSCTTM, with the ends of its 95 % interval where it is from a sample of the cells."""
    from mmdma_core.matching import match_ranks

    sample = None if len(e_x) <= match_ranks.EXACT_UP_TO else _SAMPLE
    found = match_ranks.match_ranks(e_x, e_y, match, sample).foscttm(ties)
    low, high = found.interval or (None, None)
    return {"foscttm": found.value, "foscttm_low": low, "foscttm_high": high}


def style_of(method: str, in_batches: bool = False) -> Style:
    """Return how a variant or a peer is drawn."""
    if method in PEERS:
        return Style(PEERS[method].label, *_PEER_STYLES[list(PEERS).index(method)])
    if method.endswith(REFINED):
        return Style(f"{short_label(method.removesuffix(REFINED).strip())}, {REFINED}", "#000000", "D", "-")
    if not in_batches:
        return style(method)
    label = f"{short_label(method)}, in batches (approximate)"
    return replace(style(method), label=label, marker="*", color="#E7298A")
