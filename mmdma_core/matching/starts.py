"""A fit as several starts of one problem, of which the lowest loss wins; their variant, seeds and sigma."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from tqdm.auto import tqdm

from mmdma_core import advice, compilers, registry
from mmdma_core.fused.ranks import world
from mmdma_core.fused.run import FusedRun
from mmdma_core.fused.threads import brief_waits
from mmdma_core.inputs import Kernel, as_device
from mmdma_core.matching.preprocess import Matrix, digest
from mmdma_core.matching.training import Checkpoint, History, Stopping, train
from mmdma_core.run import AdamRun, Run
from mmdma_core.settings import Settings, plain

_SETTINGS = ("n_components", "lambda1", "lambda2", "learning_rate", "unbiased", "init", "amsgrad")
_LOG = logging.getLogger("mmdma_core")

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Result:
    """What a start has found.

    embeddings  (n_x, d) and (n_y, d)
    weights     (p_x, d) and (p_y, d), the embedding is X W; of kernels (n_x, d) and (n_y, d), it is K alpha
    history     of its loss
    """

    embeddings: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]
    history: History


class Problem:
    """Two views that are ready to be fitted, and the parameters of an `MMDMA` that say how.

    device, variant, sigma  what is taken where the parameters leave it open; sigma once it is solved
    """

    def __init__(self, model: BaseEstimator, views: Sequence[Matrix]) -> None:
        self._model, self._views = model, views
        name = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = as_device(name if model.device == "auto" else model.device)
        self.variant = choose_variant(model, self.device, *views)
        self.sigma = 1.0 if model.sigma == "median" else float(model.sigma)
        self._n_epochs = plain(model.n_epochs)

    def solve(self) -> tuple[Result, pd.DataFrame, bool]:
        """Run all starts, see `run_starts`: the best one, a row for each, and whether Ctrl-C ended them."""
        seeds = draw_seeds(plain(self._model.random_state), plain(self._model.n_starts))
        with compilers.explained(), brief_waits():
            if self._model.sigma == "median":
                self.sigma = median_sigma(*(e.cpu().numpy() for e in self.begin(seeds[0]).embeddings()))
            return run_starts(seeds, self.begin, self.train, self.result)

    def begin(self, seed: int) -> Run:
        """Make the run of a start."""
        views = [Kernel(view) for view in self._views] if self._model.kernel == "precomputed" else self._views
        return registry.start(
            self.variant,
            *views,
            self._settings(),
            self.device,
            seed,
            group=world().group,
            batch_size=plain(self._model.batch_size),
            n_updates=self._n_epochs,
        )

    def train(self, run: Run, seed: int, k: int) -> History:
        """Train start k."""
        model = self._model
        return train(
            run,
            self._n_epochs,
            loss_every=plain(model.loss_every),
            stopping=Stopping(plain(model.window), plain(model.tolerance)),
            callbacks=model.callbacks,
            progress=model.verbose,
            checkpoint=None if model.checkpoint is None else self._checkpoint(run, seed, k),
            description=f"{self.variant}, start {k + 1} of {model.n_starts}",
        )

    def result(self, run: Run, history: History) -> Result:
        """Copy what the run has come to."""
        embeddings = tuple(e.cpu().numpy().copy() for e in run.embeddings())
        weights = tuple(theta.detach().cpu().numpy().copy() for theta in run.parameters)
        if registry.variant(self.variant).formulation == "dual" and self._model.kernel == "linear":
            weights = tuple(np.asarray(view.T @ alpha) for view, alpha in zip(self._views, weights, strict=True))
        return Result(embeddings, weights, history)

    def _settings(self) -> Settings:
        return settings_of(self._model, self.sigma)

    def _checkpoint(self, run: Run, seed: int, k: int) -> Checkpoint:
        if not isinstance(run, AdamRun):
            raise ValueError(f"variant {self.variant!r} cannot be resumed: no checkpoint for it")
        settings, batches = asdict(self._settings()), run.batch_size and [run.batch_size, self._n_epochs]
        question = digest([self.variant, self._model.kernel, seed, settings, batches], self._views)
        return Checkpoint(checkpoint_path(self._model, k), question)


def settings_of(model: BaseEstimator, sigma: float) -> Settings:
    """Return the hyper-parameters of the objective. Raises ValueError for one that cannot be."""
    return Settings(sigma=sigma, **{name: getattr(model, name) for name in _SETTINGS})


def checkpoint_path(model: BaseEstimator, k: int) -> Path:
    """Return the file of start k."""
    path = Path(model.checkpoint)
    return path if model.n_starts == 1 else path.with_name(f"{path.stem}-start{k}{path.suffix}")


def run_starts(
    seeds: Sequence[int],
    begin: Callable[[int], Run],
    train: Callable[[Run, int, int], History],
    result: Callable[[Run, History], Kept],
) -> tuple[Kept, pd.DataFrame, bool]:
    """Train a start from each seed; return the result of the best, a row for each, and whether Ctrl-C ended them.

    begin(seed) makes a run, train(run, seed, k) trains start k, result(run, history) is what is kept of the best so
    far. Ctrl-C passes through where there is nothing to keep. Raises FloatingPointError if every start diverged.
    """
    run: Run | None = None
    rows, lowest, best, interrupted = [], math.inf, None, False
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
            if loss < lowest:
                lowest, best = loss, result(run, history)
            rows.append((seed, loss, history.epochs[-1], time.perf_counter() - since, history.stopped))
            if history.stopped == "interrupted":
                raise KeyboardInterrupt
            if len(rows) < len(seeds):
                _LOG.info("start %d of %d: loss %.4g; %s", len(rows), len(seeds), loss, _time_left(rows, len(seeds)))
    except KeyboardInterrupt:
        if best is None:
            raise
        interrupted = True
        _LOG.warning("interrupted: the best parameters so far are kept (start %d of %d)", len(rows), len(seeds))
    if best is None:
        raise diverged
    return best, pd.DataFrame(rows, columns=["seed", "loss", "n_epochs", "seconds", "stopped"]), interrupted


def _time_left(rows: list[tuple], n_starts: int) -> str:
    """Say how long the starts that remain take, if they take as long as those so far did on average."""
    seconds = fmean(seconds for _, _, _, seconds, _ in rows) * (n_starts - len(rows))
    return f"about {tqdm.format_interval(seconds)} left for the other {n_starts - len(rows)}"


def _loss_of_kept_parameters(run: Run, history: History) -> float:
    """Return the loss of the parameters that are kept: the last, or the best where training was interrupted."""
    if history.stopped != "interrupted" or not isinstance(run, AdamRun):
        return history.losses[-1].total
    with torch.no_grad():
        for parameter, best in zip(run.parameters, history.best, strict=True):
            parameter.copy_(best)
    return min(loss.total for loss in history.losses)


def choose_variant(model: BaseEstimator, device: torch.device, x: Matrix, y: Matrix) -> str:
    """Return the variant that the model names, or the one that "auto" takes, which the log tells."""
    if model.variant != "auto":
        chosen = registry.variant(model.variant)
        registry.check_ranks(chosen, world().group)
        return chosen.name
    ranks = [world(view.shape[0]) for view in (x, y)]
    n, p = max(of_view.n for of_view in ranks), max(x.shape[1], y.shape[1])
    sparse = scipy.sparse.issparse(x) or scipy.sparse.issparse(y)
    form = "kernel" if model.kernel == "precomputed" else "sparse" if sparse else "dense"
    epochs = plain(model.n_epochs) * plain(model.n_starts)
    problem = advice.Problem(n, p, plain(model.n_components), device, form=form, ranks=ranks[0].size)
    choice = advice.choose_for_fit(problem, epochs)
    _LOG.info("variant: %s", choice)
    return ranks[0].broadcast(choice.variant)


def draw_seeds(first: int | np.random.RandomState | None, n_starts: int) -> list[int]:
    """Return a seed for each start, one after the other."""
    if not isinstance(first, int):
        first = check_random_state(first).randint(2**31 - n_starts)
    first = world().broadcast(int(first))
    return [first + k for k in range(n_starts)]


def median_sigma(e_x: np.ndarray, e_y: np.ndarray) -> float:
    """Return (8 x the median distance to the nearest neighbour)^2 among the points of both views (Singh et al. 2020).

    e_x (n_x, d), e_y (n_y, d), or those rows of them that are here. Raises ValueError if that is 0.
    """
    points = np.concatenate([world(len(e)).all_gather(torch.from_numpy(e)).numpy() for e in (e_x, e_y)])
    distances = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)[0][:, 1]
    sigma = world().broadcast(float((8 * np.median(distances)) ** 2))
    if sigma <= 0:
        raise ValueError("sigma='median' is 0: at least half of the embedded points coincide; give a number")
    return sigma
