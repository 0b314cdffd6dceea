"""A fit as several starts of one problem, and the choice among them; their variant, seeds and sigma."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
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
from mmdma_core.matching.anchors import Anchors
from mmdma_core.matching.choice import Candidate, candidate, choose
from mmdma_core.matching.partial import Partial, partial
from mmdma_core.matching.preprocess import Matrix, digest
from mmdma_core.matching.refinement import Clouds, Flat
from mmdma_core.matching.symmetries import Axes, starting_values
from mmdma_core.matching.training import Checkpoint, History, Stopping, train
from mmdma_core.run import AdamRun, Run
from mmdma_core.settings import Settings, own_state, plain

_SETTINGS = ("n_components", "lambda1", "lambda2", "learning_rate", "unbiased", "init", "amsgrad")
_COLUMNS = ("from", "seed", "loss", "n_epochs", "seconds", "stopped")
KEPT = 3  # starts from symmetries
_LOG = logging.getLogger("mmdma_core")

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Start:
    """Where training begins.

    seed        of the starting values, or of what else a variant draws
    parameters  starting values (theta_x, theta_y); None: random ones
    """

    seed: int
    parameters: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def source(self) -> str:
        """What the starting values are."""
        return "random" if self.parameters is None else "symmetries"


@dataclass(frozen=True)
class Result:
    """What a start has found.

    weights  (p_x, d) and (p_y, d), the embedding is X W; of kernels (n_x, d) and (n_y, d), it is K alpha
    history  of its loss
    """

    weights: tuple[np.ndarray, np.ndarray]
    history: History


@dataclass(frozen=True)
class Match:
    """Two embeddings that lie upon each other, and what makes them of cells.

    start        the number of the start that it comes from
    weights      (p_x, d) and (p_y, d), of kernels (n_x, d) and (n_y, d)
    intercept    (d,), added to the second embedding: 0 where it is as it was trained
    embeddings   (n_x, d) and (n_y, d), of the rows that are here
    discrepancy  MMD2 after the refinement; None without
    lacking      (n_x,) and (n_y,), whether the other view lacks a cell; None of a model that was read
    """

    start: int
    weights: tuple[np.ndarray, np.ndarray]
    intercept: np.ndarray
    embeddings: tuple[np.ndarray, np.ndarray]
    discrepancy: float | None = None
    lacking: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Solution:
    """What a fit has found.

    chosen, others  the match that is chosen, and those that come near it
    errors          how many standard errors the next match is behind; None where no other one comes near
    ambiguous       whether these are too few to tell
    results         of each start; None of one that diverged
    starts          a row for each start
    interrupted     whether Ctrl-C ended them
    """

    chosen: Match
    others: list[Match]
    errors: float | None
    ambiguous: bool
    results: list[Result | None]
    starts: pd.DataFrame
    interrupted: bool


class Problem:
    """Two views that are ready to be fitted, and the parameters of an `MMDMA` that say how.

    device, variant, sigma  what is taken where the parameters leave it open; sigma once it is solved
    """

    def __init__(self, model: BaseEstimator, views: Sequence[Matrix], anchors: Anchors | None = None) -> None:
        self._model, self._views, self._anchors = model, views, anchors
        self.device = device_of(model)
        self.variant = choose_variant(model, self.device, *views)
        self.sigma = 1.0 if model.sigma == "median" else float(model.sigma)
        self._n_epochs = plain(model.n_epochs)

    def solve(self) -> Solution:
        """Run all starts, see `run_starts`, and choose among them: by their loss, or once they are refined."""
        with compilers.explained(), brief_waits():
            with own_state(self.device):
                planned = self._planned()
            if self._model.sigma == "median":
                self.sigma = median_sigma(*(e.cpu().numpy() for e in self.begin(planned[0]).embeddings()))
            if self._n_epochs:
                results, rows, interrupted = run_starts(planned, self.begin, self.train, self.result)
            else:
                results, rows, interrupted = self._untrained(planned)
            if self._model.refine and not interrupted:
                try:
                    with own_state(self.device):
                        return self._refined(results, rows)
                except Flat as flat:
                    _LOG.warning("nothing is refined: %s", flat)
        best = int(rows["loss"].idxmin()) if self._n_epochs else 0
        rows["chosen"] = rows.index == best
        return Solution(self._match(best, results[best]), [], None, False, results, rows, interrupted)

    def embeddings(self, weights: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return both embeddings that weights give, of the rows that are here."""
        return tuple(np.asarray(view @ of_view) for view, of_view in zip(self._views, weights, strict=True))

    def _planned(self) -> list[Start]:
        """The starts: random ones, then those from the symmetries of the principal axes."""
        model, wanted = self._model, plain(self._model.n_starts)
        seeds = draw_seeds(plain(model.random_state), wanted + KEPT)
        random = [Start(seed) for seed in seeds[: wanted * (model.starts != "symmetries")]]
        if model.starts == "random":
            return random
        kernel = model.kernel == "precomputed"
        axes = [Axes.of(view, plain(model.n_components), kernel) for view in self._views]
        if registry.variant(self.variant).formulation == "dual" and not kernel:
            axes = [of.of_dual() for of in axes]
        try:
            found = starting_values(*axes, self.device, KEPT, seeds[0])
        except Flat as flat:
            if model.starts == "symmetries":
                raise ValueError(f"{flat}: there are no axes to start from") from None
            _LOG.warning("no start from symmetries: %s", flat)
            return random or [Start(seeds[0])]
        from_axes = zip(seeds[wanted:], found, strict=False)  # fewer than KEPT may differ
        return [*random, *(Start(seed, parameters) for seed, parameters in from_axes)]

    def _untrained(self, planned: list[Start]) -> tuple[list[Result | None], pd.DataFrame, bool]:
        """What `run_starts` returns, of starts that remain as they begin: their loss is not known."""
        results = [Result(self._weights(start.parameters), History()) for start in planned]
        rows = [(start.source, start.seed, math.nan, 0, 0.0, None) for start in planned]
        return results, pd.DataFrame(rows, columns=_COLUMNS), False

    def _refined(self, results: list[Result | None], rows: pd.DataFrame) -> Solution:
        """Refine the starts, and choose among their matches, see mmdma_core.matching.choice."""
        losses = rows["loss"] if self._n_epochs else 0 * rows.index
        candidates = [
            candidate(k, losses[k], Clouds.of(*self.embeddings(result.weights), self.device))
            for k, result in enumerate(results)
            if result
        ]
        choice = choose(candidates)
        if self._anchors:
            choice = self._anchors.chosen(choice)
        told = [(one.start, one.before, one.found.discrepancy, one.match) for one in choice.candidates]
        table = pd.DataFrame(told, columns=["start", "discrepancy_before", "discrepancy", "match"])
        rows = rows.join(table.set_index("start"))
        found = [(one, partial(one.clouds, one.found)) for one in (choice.chosen, *choice.others)]
        if choice.ambiguous and all(without for _, without in found[:2]):  # then cells that are lacking may decide
            found[:2] = sorted(found[:2], key=lambda pair: pair[1].left)
        chosen, *others = (self._match(one.start, results[one.start], one, without) for one, without in found)
        rows["chosen"] = rows.index == chosen.start
        return Solution(chosen, others, choice.errors, choice.ambiguous, results, rows, False)

    def _match(self, k: int, result: Result, found: Candidate | None = None, without: Partial | None = None) -> Match:
        """The match of a start, as it was trained or refined, or without the cells that a view lacks."""
        w_x, w_y = result.weights
        intercept, refined = np.zeros(w_y.shape[1], np.float32), without.found if without else found and found.found
        if refined:
            A, intercept = found.clouds.of_embeddings(refined.theta)
            w_y, intercept = (w_y @ A).astype(np.float32), intercept.astype(np.float32)
        e_x, e_y = self.embeddings((w_x, w_y))
        lacking = without.lacking if without else tuple(np.zeros(len(e), bool) for e in (e_x, e_y))
        return Match(k, (w_x, w_y), intercept, (e_x, e_y + intercept), refined and refined.discrepancy, lacking)

    def begin(self, start: Start) -> Run:
        """Make the run of a start."""
        views = [Kernel(view) for view in self._views] if self._model.kernel == "precomputed" else self._views
        return registry.start(
            self.variant,
            *views,
            self._settings(),
            self.device,
            start.seed,
            start.parameters,
            group=world().group,
            batch_size=plain(self._model.batch_size),
            n_updates=max(1, self._n_epochs),
        )

    def train(self, run: Run, start: Start, k: int) -> History:
        """Train start k."""
        model = self._model
        return train(
            run,
            self._n_epochs,
            loss_every=plain(model.loss_every),
            stopping=Stopping(plain(model.window), plain(model.tolerance)),
            callbacks=model.callbacks,
            progress=model.verbose,
            checkpoint=None if model.checkpoint is None else self._checkpoint(run, start, k),
            description=f"{self.variant}, start {k + 1}",
        )

    def result(self, run: Run, history: History) -> Result:
        """Copy what the run has come to."""
        return Result(self._weights(theta.detach().cpu().numpy().copy() for theta in run.parameters), history)

    def _weights(self, parameters: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The weights of features that parameters are, or in the dual stand for."""
        if registry.variant(self.variant).formulation == "dual" and self._model.kernel == "linear":
            return tuple(np.asarray(view.T @ alpha) for view, alpha in zip(self._views, parameters, strict=True))
        return tuple(parameters)

    def _settings(self) -> Settings:
        return settings_of(self._model, self.sigma)

    def _checkpoint(self, run: Run, start: Start, k: int) -> Checkpoint:
        if not isinstance(run, AdamRun):
            raise ValueError(f"variant {self.variant!r} cannot be resumed: no checkpoint for it")
        settings, batches = asdict(self._settings()), run.batch_size and [run.batch_size, self._n_epochs]
        asked = [self.variant, self._model.kernel, start.seed, settings, batches]
        question = digest([*asked, start.source] if start.parameters else asked, self._views)
        return Checkpoint(checkpoint_path(self._model, k), question)


def device_of(model: BaseEstimator) -> torch.device:
    """Return the device of a fit. Raises ValueError for one that is not there."""
    name = "cuda" if torch.cuda.is_available() else "cpu"
    return as_device(name if model.device == "auto" else model.device)


def settings_of(model: BaseEstimator, sigma: float) -> Settings:
    """Return the hyper-parameters of the objective. Raises ValueError for one that cannot be."""
    return Settings(sigma=sigma, **{name: getattr(model, name) for name in _SETTINGS})


def checkpoint_path(model: BaseEstimator, k: int) -> Path:
    """Return the file of start k."""
    path = Path(model.checkpoint)
    return path if most_starts(model) == 1 else path.with_name(f"{path.stem}-start{k}{path.suffix}")


def most_starts(model: BaseEstimator) -> int:
    """Return the most starts that a fit may have."""
    random = plain(model.n_starts) * (model.starts != "symmetries")
    return random + KEPT * (model.starts != "random")


def run_starts(
    starts: Sequence[Start],
    begin: Callable[[Start], Run],
    train: Callable[[Run, Start, int], History],
    result: Callable[[Run, History], Kept],
) -> tuple[list[Kept | None], pd.DataFrame, bool]:
    """Train all starts; return the result of each, a row for each, and whether Ctrl-C ended them.

    begin(start) makes a run, train(run, start, k) trains start k, result(run, history) is what is kept of it; None of a
    start that diverged. Ctrl-C passes through where there is nothing to keep. Raises FloatingPointError if every start
    diverged.
    """
    run: Run | None = None
    rows, results, interrupted = [], [], False
    diverged: FloatingPointError | None = None
    try:
        for k, start in enumerate(starts):
            since = time.perf_counter()
            if isinstance(run, AdamRun):
                _begin_again(run, start)
            else:
                run = None  # let go of what it holds first
                run = begin(start)
            if isinstance(run, FusedRun):
                run.takes_up_loss = run.parameters[0].device.type == "cpu"
            try:
                history = train(run, start, k)
            except FloatingPointError as error:
                diverged = error
                rows.append((start.source, start.seed, math.inf, run.epoch, time.perf_counter() - since, "diverged"))
                results.append(None)
                continue
            loss = _loss_of_kept_parameters(run, history)
            results.append(result(run, history))
            seconds = time.perf_counter() - since
            rows.append((start.source, start.seed, loss, history.epochs[-1], seconds, history.stopped))
            if history.stopped == "interrupted":
                raise KeyboardInterrupt
            if len(rows) < len(starts):
                _LOG.info("start %d of %d: loss %.4g; %s", len(rows), len(starts), loss, _time_left(rows, len(starts)))
    except KeyboardInterrupt:
        if not any(results):
            raise
        interrupted = True
        _LOG.warning("interrupted: the best parameters so far are kept (start %d of %d)", len(rows), len(starts))
    if not any(results):
        raise diverged
    return results, pd.DataFrame(rows, columns=_COLUMNS), interrupted


@torch.no_grad()
def _begin_again(run: AdamRun, start: Start) -> None:
    """Begin a run again from other starting values; what was formed from the data stays."""
    run.restart(start.seed)
    if start.parameters:
        for own, given in zip(run.parameters, start.parameters, strict=True):
            own.copy_(torch.from_numpy(given))


def _time_left(rows: list[tuple], n_starts: int) -> str:
    """Say how long the starts that remain take, if they take as long as those so far did on average."""
    seconds = fmean(seconds for *_, seconds, _ in rows) * (n_starts - len(rows))
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
    epochs = max(1, plain(model.n_epochs) * most_starts(model))
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
