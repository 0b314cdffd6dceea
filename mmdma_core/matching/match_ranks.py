"""The ranks of the true matches, which every metric of a match is made of, over all cells or a sample of them.

e_x (n_x, d) and e_y (n_y, d) are the embedded views, rows are cells; distances are Euclidean. match (n_x,) says that
row i of e_x is the same cell as row match[i] of e_y, -1 that its match is not there; it is one-to-one, and n_x and n_y
may differ. The rank of a true match is 1 + the number of cells of the other view that are closer to the cell. Of t
others that are as far as the match it is any of t + 1 ranks, each as likely: the metrics are expected values under that
choice, so embeddings that put all cells in one place are worth what random ones are.

Distances are differences of coordinates in float64, so that large norms cost no rank and coinciding cells are equally
far; they are equal if they differ by no more than rounding. They are formed in blocks of rows: memory is O(n), time
O(n^2 d); of a sample of m cells, each against all cells of the other view, O(m n d).

Of a sample, a direction (from x to y, or from y to x) has N cells, of which m are drawn at random without replacement.
Its mean has a 95 % interval: of fractions Wilson's, which is sensible at 0 and 1, of other values the normal one. Both
have the correction (N - m) / (N - 1) or (N - m) / N of a finite population: all cells drawn, the interval is a point.
The metric is the mean of both directions, drawn apart, and its interval takes the distances d of its parts' ends as
those of standard errors, sqrt(d_1^2 + d_2^2) / 2: for normal intervals that is the stratified formula.

Sources: Wilson 1927, Probable inference; Newcombe 1998, Interval estimation for the difference between independent
proportions, method 10; Cochran 1977, Sampling techniques.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Literal, TypeVar

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.stats import norm

from mmdma_core.inputs import unmasked
from mmdma_core.settings import is_whole, plain

EXACT_UP_TO = 50_000  # cells of the larger view
SAMPLED_CELLS = 2_000  # of each view, beyond
SEED = 0  # the same numbers each time

_BLOCK_ELEMENTS = 2**18  # distances that a thread holds at a time, 2 MiB, which a cache holds too
_EPSILONS = 8  # of float64, what a few operations on coordinates round off
_LARGEST = 1e150  # the square of a larger coordinate leaves float64
_Z = float(norm.ppf(0.975))

Matrix = np.ndarray | torch.Tensor
Vector = np.ndarray | torch.Tensor | Sequence
Interval = tuple[float, float]
Sample = int | Literal["auto"] | None  # cells of each view; None: all
Found = TypeVar("Found")


class Undefined(ValueError):
    """The metric has no value for these data; the message says why."""


@dataclass(frozen=True)
class Estimate:
    """The value of a metric, and how well a sample of cells tells it.

    value     the mean over the cells drawn
    sampled   how many of them are of x, and of y
    interval  with 95 % confidence the value over all cells lies in it; None where all cells were drawn
    notes     what a reader of the value must know
    """

    value: float
    sampled: tuple[int, int]
    interval: Interval | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MatchRanks:
    """The ranks of the true matches of m cells, in both directions.

    x             (m,) lowest rank of the match among all cells of y, for the matched cells of x in the order of e_x
    y             (m,) lowest rank of the match among all cells of x, for the matched cells of y in the order of e_y
    n_x, n_y      number of cells of each view
    tied_x        (m,) how many other cells of y are as far from the cell of x as its match is; 0: none of any
    tied_y        (m,) likewise of x
    matched       how many cells of each view have a match, of which x and y are a sample; None: they are all
    """

    x: np.ndarray
    y: np.ndarray
    n_x: int
    n_y: int
    tied_x: np.ndarray | int = 0
    tied_y: np.ndarray | int = 0
    matched: int | None = None

    @property
    def tied(self) -> int:
        """How many of the 2 m matches are as far from their cell as another cell is."""
        return np.count_nonzero(self.tied_x) + np.count_nonzero(self.tied_y)

    def of_sample(self) -> bool:
        """Tell whether some matched cells have no rank here."""
        return self.matched is not None and len(self.x) < self.matched

    def foscttm(self, ties: float = 0.5) -> Estimate:
        """Estimate `mmdma_core.metrics.foscttm`."""
        closer = (self.x - 1 + ties * self.tied_x) / (self.n_y - 1), (self.y - 1 + ties * self.tied_y) / (self.n_x - 1)
        return self._of_both([fractions.mean() for fractions in closer], closer, of_mean)

    def top_k(self, k: float, percent: bool = False) -> Estimate:
        """Estimate `mmdma_core.metrics.top_k`."""
        among_y, among_x = (_neighbours(k, n, percent) for n in (self.n_y, self.n_x))
        ways = (self.x, self.tied_x, among_y), (self.y, self.tied_y, among_x)
        hits = [np.clip((among - ranks + 1) / (tied + 1), 0, 1).mean() for ranks, tied, among in ways]
        return self._of_both(hits, hits, lambda hit, n: of_fraction(hit, len(self.x), n))

    def _of_both(
        self, means: Sequence[float], parts: Sequence[Found], interval: Callable[[Found, int], Interval]
    ) -> Estimate:
        """Estimate the mean of two directions; of a sample, interval(part, n) gives that of each of them."""
        ends = of_both(means, [interval(part, self.matched) for part in parts]) if self.of_sample() else None
        return Estimate(float(np.mean(means)), (len(self.x), len(self.y)), ends)

    def overlap(self) -> np.ndarray:
        """Return `mmdma_core.metrics.neighbourhood_overlap`."""
        first, last = self.x - 1, self.x + self.tied_x  # each of the ranks between is as likely
        weight = 1 / (1 + np.broadcast_to(self.tied_x, first.shape))
        begun, ended = (np.bincount(at, of, self.n_y + 1) for at, of in ((first, weight), (last, weight)))
        open_ = (np.bincount(first, minlength=self.n_y + 1) - np.bincount(last, minlength=self.n_y + 1)).cumsum()
        curve = np.where(open_ > 0, (begun - ended).cumsum(), 0)[:-1].cumsum() / len(self.x)
        curve[-1] = 1
        return np.minimum(curve, 1)

    def overlap_interval(self) -> np.ndarray | None:
        """Return (2, n_y), the ends of the interval of each entry of `overlap` for itself; None without a sample."""
        return np.stack(of_fraction(self.overlap(), len(self.x), self.matched)) if self.of_sample() else None

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the metrics must know beside them."""
        m, notes = len(self.x) if self.matched is None else self.matched, []
        if m < max(self.n_x, self.n_y):
            absent = f"{self.n_x - m} of {self.n_x} cells of x and {self.n_y - m} of {self.n_y} cells of y"
            notes.append(f"{absent} have no match: no mean includes them")
        if self.tied:
            which = "sampled true matches" if self.of_sample() else "true matches"
            notes.append(f"{self.tied} of {2 * len(self.x)} {which} are as far as another cell: ties count half")
        return tuple(notes)


def match_ranks(e_x: Matrix, e_y: Matrix, match: Vector, sample: int | None = None, seed: int = SEED) -> MatchRanks:
    """Return the rank of each true match, in both directions; what `foscttm`, `top_k` and `neighbourhood_overlap` read.

    sample  matched cells to draw of x, and apart from them of y, each ranked among all of the other view; None: all
    seed    of the draw

    Raises ValueError for embeddings that are not two finite matrices of one width and at least 2 rows, and for a match
    of the wrong length, type or range, that is not one-to-one, or without a known entry.
    """
    e_x, e_y = as_embeddings(e_x, e_y)
    match = _checked_match(match, len(e_x), len(e_y))
    known = np.flatnonzero(match >= 0)
    pairs = np.stack([known, match[known]])
    backwards = pairs[::-1, pairs[1].argsort()]
    rng = np.random.default_rng(seed)
    drawn = [of[:, draw(len(known), sample, rng)] for of in (pairs, backwards)]
    there, back = (torch.from_numpy(of).to(e_x.device) for of in drawn)
    x, tied_x = _ranks(e_x, e_y, *there)
    y, tied_y = _ranks(e_y, e_x, *back)
    return MatchRanks(x, y, len(e_x), len(e_y), tied_x, tied_y, len(known))


def _ranks(
    e: torch.Tensor, others: torch.Tensor, cells: torch.Tensor, matches: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each cell, a row of e, the lowest rank of its match, a row of others, and how many are tied with it.

    The match's distance is read from the block, so that no rounding makes it closer than itself.
    """
    slack = rounding(e, others)

    def counted(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        block = distances(e[cells[rows]], others)
        own = block.gather(1, matches[rows, None])
        if block.device.type == "cpu":  # NumPy row by row: PyTorch starts threads of its own in each thread
            block, own = block.numpy(), own.numpy()
            within = block < own - slack, block <= own + slack
            return tuple(torch.tensor([np.count_nonzero(row) for row in rows]) for rows in within)
        return torch.count_nonzero(block < own - slack, dim=1), torch.count_nonzero(block <= own + slack, dim=1)

    counts = zip(*in_blocks(len(cells), len(others), counted), strict=True)
    closer, up_to = (torch.cat(of).cpu().numpy() for of in counts)
    return 1 + closer, up_to - closer - 1


def _neighbours(k: float, n: int, percent: bool) -> int:
    """Return the number of cells meant by k, a count or a percentage of n."""
    if not percent:
        if not is_whole(plain(k)) or k < 1:
            raise ValueError(f"k must be an integer of at least 1, got {k!r}")
        return int(k)
    if not isinstance(plain(k), Real) or not 0 < k <= 100:
        raise ValueError(f"k must be a percentage above 0 and up to 100, got {k!r}")
    typed = Fraction(str(np.asarray(k)[()]))  # in decimals: 0.57 per cent of 10,000 are 57 cells
    count = int(typed * n // 100)
    if count < 1:
        raise Undefined(f"{k} per cent of {n} cells is less than one cell")
    return count


def as_embeddings(e_x: Matrix, e_y: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in float64 on their device. Raises ValueError as `match_ranks` does for embeddings."""
    e_x, e_y = _as_embedding("e_x", e_x), _as_embedding("e_y", e_y)
    if e_x.shape[1] != e_y.shape[1]:
        raise ValueError(f"e_x and e_y must have one number of components, got {e_x.shape[1]} and {e_y.shape[1]}")
    if e_x.device != e_y.device:
        raise ValueError(f"e_x is on {e_x.device} and e_y on {e_y.device}: give both on one device")
    for name, e in (("e_x", e_x), ("e_y", e_y)):
        if not e.abs().max() < _LARGEST:
            raise ValueError(f"{name} must be finite and below {_LARGEST:g}, it holds NaN, infinity or a larger number")
    return e_x, e_y


def _as_embedding(name: str, value: Matrix) -> torch.Tensor:
    value = unmasked(name, value)
    tensor = value.detach() if isinstance(value, torch.Tensor) else np.asarray(value)
    if isinstance(tensor, np.ndarray) and tensor.dtype.kind in "biuf":
        tensor = torch.from_numpy(np.array(tensor, dtype=np.float64))
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_complex():
        what = f" of {value.dtype}" if hasattr(value, "dtype") else ""
        raise ValueError(f"{name} must be a dense matrix of real numbers, got {type(value).__name__}{what}")
    if tensor.ndim != 2 or tensor.shape[0] < 2 or tensor.shape[1] < 1:
        shape = tuple(tensor.shape)
        raise ValueError(f"{name} must be a matrix of at least 2 cells and 1 component, got shape {shape}")
    return tensor.double()


def as_array(value: Vector) -> np.ndarray:
    """Return the vector on the host."""
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)


def _checked_match(match: Vector, n_x: int, n_y: int) -> np.ndarray:
    """Return the match as int64 (n_x,), -1 or a row of y, one-to-one. Raises ValueError with what is wrong."""
    match = as_array(unmasked("match", match))
    if match.dtype.kind not in "iu":
        raise ValueError(f"match must hold integers, got {match.dtype}")
    if match.shape != (n_x,):
        raise ValueError(f"match must have one entry for each of the {n_x} rows of x, got shape {match.shape}")
    outside = np.flatnonzero((match < -1) | (match >= n_y))
    if outside.size:
        wrong = f"match[{outside[0]}] = {match[outside[0]]}"
        raise ValueError(f"match must hold rows of y, 0 to {n_y - 1}, or -1 for none, got {wrong}")
    match = match.astype(np.int64)
    times = np.bincount(match[match >= 0], minlength=n_y)
    if not times.any():
        raise Undefined(f"no match is known, all {n_x} entries are -1")
    twice = int(times.argmax())
    if times[twice] > 1:
        kind = "a permutation" if n_x == n_y and (match >= 0).all() else "one-to-one"
        raise ValueError(f"match must be {kind}: row {twice} of y is the match of {times[twice]} rows of x")
    return match


def sample_size(sample: Sample, n_x: int, n_y: int) -> int | None:
    """Return the cells to draw of each view, None for all. Raises ValueError for what is no number of cells."""
    sample = plain(sample)
    if sample == "auto":
        return SAMPLED_CELLS if max(n_x, n_y) > EXACT_UP_TO else None
    if sample is not None and (not is_whole(sample) or sample < 2):
        raise ValueError(f"sample must be an integer of at least 2, None or 'auto', got {sample!r}")
    return sample


def draw(n: int, sample: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return which of n to take, in order: all, or a simple random sample without replacement."""
    if sample is None or sample >= n:
        return np.arange(n)
    return np.sort(rng.choice(n, sample, replace=False, shuffle=False))


def of_fraction(hits: np.ndarray | float, m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's interval (low, high) of a fraction `hits` of m cells drawn from n; of several, those of each."""
    hits = np.asarray(hits, dtype=float)
    spread = _Z**2 * (n - m) / max(n - 1, 1) / m
    middle = hits + spread / 2
    half = np.sqrt(spread * (hits * (1 - hits) + spread / 4))
    return np.clip((middle - half) / (1 + spread), 0, hits), np.clip((middle + half) / (1 + spread), hits, 1)


def of_mean(values: np.ndarray, n: int, bounds: Interval = (0, 1)) -> Interval:
    """Return the normal interval of the mean of values, m drawn from n; between the bounds that no value leaves.

    Values that are all the same have no spread to go by: then Wilson's, since none has more than 0 and 1 have.
    """
    m, mean = len(values), float(values.mean())
    low, high = bounds
    if m < 2 or np.ptp(values) == 0:
        return tuple(float(low + (high - low) * end) for end in of_fraction((mean - low) / (high - low), m, n))
    half = float(_Z * values.std(ddof=1) * np.sqrt((n - m) / n / m))
    return max(low, mean - half), min(high, mean + half)


def of_both(means: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Return the interval of the mean of two directions, from theirs."""
    mean = float(np.mean(means))
    ends = np.array(intervals, dtype=float) - np.array(means)[:, None]
    low, high = np.sqrt((ends**2).sum(0)) / len(means)
    return float(mean - low), float(mean + high)


def in_blocks(n_rows: int, n_columns: int, work: Callable[[slice], Found]) -> list[Found]:
    """Return what `work` finds for each block of rows, in order; SciPy and NumPy let other threads run meanwhile."""
    rows = max(1, _BLOCK_ELEMENTS // n_columns)
    slices = [slice(low, min(low + rows, n_rows)) for low in range(0, n_rows, rows)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(work, slices))


def distances(e: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return Euclidean distances, (m, n), from differences of coordinates; equal pairs of points get equal distances.

    SciPy's on the CPU, which lets two threads run beside each other and is the faster one for few components.
    """
    if e.device.type == "cpu":
        return torch.from_numpy(cdist(e.numpy(), others.numpy()))
    return torch.cdist(e, others, compute_mode="donot_use_mm_for_euclid_dist")


def rounding(*views: torch.Tensor) -> float:
    """Return what float64 rounds off of distances between points of these views: they are equal up to that."""
    largest = max(float(view.abs().max()) for view in views)
    return _EPSILONS * torch.finfo(torch.float64).eps * largest
