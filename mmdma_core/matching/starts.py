"""Several starts of one problem, of which the lowest loss wins; their variant, seeds, and sigma by the first."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from tqdm.auto import tqdm

from mmdma_core import advice, registry
from mmdma_core.fused.ranks import in_world, world
from mmdma_core.fused.run import FusedRun
from mmdma_core.matching.preprocess import Matrix
from mmdma_core.run import AdamRun, History, Run
from mmdma_core.settings import plain

_LOG = logging.getLogger("mmdma_core")


def run_starts(
    seeds: Sequence[int],
    begin: Callable[[int], Run],
    train: Callable[[Run, int, int], History],
    keep: Callable[[Run, History], None],
) -> tuple[pd.DataFrame, bool]:
    """Train a start from each seed, keep the best; a row for each, and whether Ctrl-C ended it.

    begin(seed) makes a run, train(run, seed, k) trains start k, keep(run, history) takes what is the best so far.
    Ctrl-C passes through where there is nothing to keep. Raises FloatingPointError if every start diverged.
    """
    run: Run | None = None
    rows, best, interrupted = [], math.inf, False
    diverged: FloatingPointError | None = None
    try:
        for k, seed in enumerate(seeds):
            since = time.perf_counter()
            if isinstance(run, AdamRun):
                run.restart(seed)
            else:
                run = None  # let go of what it holds first
                run = begin(seed)
            if isinstance(run, FusedRun):
                run.takes_up_loss = run.parameters[0].device.type == "cpu"
            try:
                history = train(run, seed, k)
            except FloatingPointError as error:
                diverged = error
                rows.append((seed, math.inf, run.epoch, time.perf_counter() - since, "diverged"))
                continue
            loss = _loss_of_kept_parameters(run, history)
            if loss < best:
                best = loss
                keep(run, history)
            rows.append((seed, loss, history.epochs[-1], time.perf_counter() - since, history.stopped))
            if history.stopped == "interrupted":
                raise KeyboardInterrupt
            if len(rows) < len(seeds):
                _LOG.info("start %d of %d: loss %.4g; %s", len(rows), len(seeds), loss, _time_left(rows, len(seeds)))
    except KeyboardInterrupt:
        if best == math.inf:
            raise
        interrupted = True
        _LOG.warning("interrupted: the best parameters so far are kept (start %d of %d)", len(rows), len(seeds))
    if best == math.inf:
        raise diverged
    return pd.DataFrame(rows, columns=["seed", "loss", "n_epochs", "seconds", "stopped"]), interrupted


def _time_left(rows: list[tuple], n_starts: int) -> str:
    """How long the starts that remain take, in words, if they take as long as those so far did on average."""
    seconds = fmean(seconds for _, _, _, seconds, _ in rows) * (n_starts - len(rows))
    return f"about {tqdm.format_interval(seconds)} left for the other {n_starts - len(rows)}"


def _loss_of_kept_parameters(run: Run, history: History) -> float:
    """The loss of the parameters that are kept: the last, or the best where training was interrupted."""
    if history.stopped != "interrupted" or not isinstance(run, AdamRun):
        return history.losses[-1].total
    with torch.no_grad():
        for parameter, best in zip(run.parameters, history.best, strict=True):
            parameter.copy_(best)
    return min(loss.total for loss in history.losses)


def choose_variant(model: BaseEstimator, x: Matrix, y: Matrix) -> str:
    """The variant that an estimator with a device names, or the one that "auto" takes, which the log tells."""
    if model.variant != "auto":
        chosen = registry.variant(model.variant)
        registry.check_ranks(chosen, world())
        return chosen.name
    held = [in_world(view.shape[0]) for view in (x, y)]
    n, p = max(rows.n for rows in held), max(x.shape[1], y.shape[1])
    sparse = scipy.sparse.issparse(x) or scipy.sparse.issparse(y)
    form = "kernel" if model.kernel == "precomputed" else "sparse" if sparse else "dense"
    epochs = plain(model.n_epochs) * plain(model.n_starts)
    choice = advice.choose_for_fit(
        n, p, plain(model.n_components), epochs, model.device_, form=form, ranks=held[0].size
    )
    _LOG.info("variant: %s", choice)
    return held[0].of_first(choice.variant)


def draw_seeds(first: int | np.random.RandomState | None, n_starts: int) -> list[int]:
    """A seed for each start, one after the other."""
    if not isinstance(first, int):
        first = check_random_state(first).randint(2**31 - n_starts)
    first = in_world(0).of_first(int(first))
    return [first + k for k in range(n_starts)]


def median_sigma(e_x: np.ndarray, e_y: np.ndarray) -> float:
    """(8 x the median distance to the nearest neighbour)^2 of the points of both views together (Singh et al. 2020).

    e_x (n_x, d), e_y (n_y, d), or those rows of them that are here. Raises ValueError if that is 0.
    """
    clouds = (in_world(len(e)).gather(torch.from_numpy(e)).numpy() for e in (e_x, e_y))
    points = np.concatenate([*clouds])
    distances = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)[0][:, 1]
    sigma = in_world(0).of_first(float((8 * np.median(distances)) ** 2))
    if sigma <= 0:
        raise ValueError("sigma='median' is 0: at least half of the embedded points coincide; give a number")
    return sigma
