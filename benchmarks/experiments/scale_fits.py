"""One whole fit, in a child of the guard: data, a fit from start to end, how well it matches."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

import mmdma_core
from benchmarks.experiments.peers import PEERS, missing
from benchmarks.measuring import memory
from benchmarks.measuring.measurement import Cell, Report, few
from mmdma_core import MMDMA, MissingDependency
from mmdma_core.fused.batches import LEAST
from mmdma_core.matching.sampling import EXACT_UP_TO

BATCHED = " in batches"  # behind the name of a variant
_SAMPLE = 1_000  # cells of each view that FOSCTTM is of, where it is not of all


@dataclass(frozen=True)
class Fit(Cell):
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
    batch_size = min(cell.batch_size, max(LEAST, n // 2)) if batched else None
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
    from mmdma_core.matching import metrics

    found = metrics.evaluate(e_x, e_y, match, sample=None if len(e_x) <= EXACT_UP_TO else _SAMPLE)
    low, high = found.intervals.get("foscttm", (None, None))
    return {"foscttm": found.values["foscttm"], "foscttm_low": low, "foscttm_high": high}
