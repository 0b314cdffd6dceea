"""MMD2 from random Fourier features, fresh in every epoch: linear in n, and its gradient an unbiased estimate.

k(a, b) is the mean of cos(w . (a - b)) over w ~ N(0, I / sigma) (Bochner's theorem; Rahimi and Recht 2007; for the MMD
Zhao and Meng 2015, FastMMD). With phi_x(w) the mean of exp(i w . x_j) over the points of x, and means over w,

    biased    MMD2 = mean of |phi_x - phi_y|^2
    unbiased  MMD2 = mean of (n_x |phi_x|^2 - 1) / (n_x - 1) + (n_y |phi_y|^2 - 1) / (n_y - 1) - 2 Re(phi_x phi_y*)

Over D frequencies, with c + i s = f phi_x - phi_y and f = n_x / (n_x - 1) (biased: 1), the gradient at a point of x is

    dMMD2/dx_j = 2 / (n_x D) sum over w of w (s cos(w . x_j) - c sin(w . x_j))

Its variance is proportional to |phi_x - phi_y|^2 / D and so vanishes as the clouds meet. Frequencies come in orthogonal
blocks, which lessens it (Yu et al. 2016): a random orthogonal d x d matrix, each column with the length of a Gaussian
vector. They are a function of (seed, epoch) alone, drawn on the CPU for every device.

MMD2 from Fourier features on CUDA, with PyTorch alone: blocked products, cosines and sines.

A block of points holds its phases, and nothing of size n x D is held beyond it. Phases, in turns, are formed in
float64; what is left of them within half a turn is float32. Nothing waits for the device: the frequencies of an epoch
go from pinned memory into a place that a CUDA graph knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numba
import numpy as np
import torch

from mmdma_core.fused.parts import MMD, Term
from mmdma_core.inputs import Rows
from mmdma_core.settings import Settings

Means = np.ndarray | torch.Tensor

N_FIXED = 4096  # frequencies of the loss that is reported, the same in every run
_FIXED = (2**64 - 1, 2**64 - 1)  # no (seed, epoch)
_LARGEST = 2.0**40  # turns that a phase may have: beyond, float64 leaves fewer than four digits


class Frequencies:
    """D frequencies in turns, w / (2 pi), as the columns of `turns` (d, D), float32."""

    def __init__(self, d: int, count: int, sigma: float) -> None:
        self.turns = np.zeros((d, count), np.float32)
        self.longest = 0.0
        self._sigma = sigma
        self._scale = 1 / (2 * math.pi * math.sqrt(sigma))
        self._normals = np.empty((2, -(-count // d), d, d))

    def draw(self, seed: int, epoch: int) -> None:
        """Those of an epoch."""
        stream = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, epoch % 2**64], np.uint64)))
        stream.standard_normal(out=self._normals)
        self.longest = self._scale * _orthogonal(*self._normals, self._scale, self.turns)

    def check(self, radius: float) -> float:
        """The most turns that a point has within `radius` of the centre.

        Raises FloatingPointError, as a start does that diverges, if they are too many or no number.
        """
        most = radius * self.longest
        if not math.isfinite(radius):
            raise FloatingPointError("the embedding is not finite: lower learning_rate, or scale the data")
        if not most < _LARGEST:
            raise FloatingPointError(
                f"sigma = {self._sigma:g} is too small for points that lie {radius:.3g} from their centre: "
                "the Gaussian kernel is 0 between any two of them"
            )
        return most


@numba.njit(cache=True)
def _orthogonal(blocks: np.ndarray, others: np.ndarray, scale: float, out: np.ndarray) -> float:
    """Columns of out (d, D): each block's columns made orthogonal, with the lengths of the others'; the longest length.

    Gram and Schmidt, twice, in float64 and in one order: the same numbers on every machine.
    """
    d, count = out.shape
    longest = 0.0
    for j in range(count):
        block, k = blocks[j // d], j % d
        for _ in range(2):
            for before in range(k):
                along = 0.0
                for a in range(d):
                    along += block[a, before] * block[a, k]
                for a in range(d):
                    block[a, k] -= along * block[a, before]
        own, length = 0.0, 0.0
        for a in range(d):
            own += block[a, k] ** 2
            length += others[j // d, a, k] ** 2
        own, length = math.sqrt(own), math.sqrt(length)
        longest = max(longest, length)
        for a in range(d):
            block[a, k] /= own
            out[a, j] = scale * length * block[a, k]
    return longest


class FourierMMD(MMD):
    """MMD2 and its gradient from fresh frequencies in every epoch, for embeddings (n_x, d) and (n_y, d) in float32.

    What `loss` reports is exact where `exact` is given. Otherwise it comes from N_FIXED frequencies, the same in every
    run and at every time, so that starts can be compared by it.

    n_x, n_y  points of the clouds, over all ranks
    exact     the exact MMD2, where there is one and the problem is small enough
    held      the rows that are here of either view: sums of cosines and sines run over its ranks
    """

    linear_in_n = True

    def __init__(self, n_x: int, n_y: int, settings: Settings, exact: MMD | None, held: Rows | None = None) -> None:
        self._sizes, self._unbiased, self._exact = (n_x, n_y), settings.unbiased, exact
        self._sum = (held or Rows(n_x)).sum
        d, sigma = settings.n_components, settings.sigma
        self.fresh = Frequencies(d, settings.n_frequencies, sigma)
        self.fixed = None if exact else Frequencies(d, N_FIXED, sigma)
        if self.fixed:
            self.fixed.draw(*_FIXED)

    def begin(self, seed: int, epoch: int) -> None:
        self.fresh.draw(seed, epoch)

    def of_loss(self, e_x: torch.Tensor, e_y: torch.Tensor, d_e_x: torch.Tensor, d_e_y: torch.Tensor) -> Term:
        return self._exact(e_x, e_y, d_e_x, d_e_y) if self._exact else self.estimate(e_x, e_y)

    def estimate(self, e_x: torch.Tensor, e_y: torch.Tensor) -> Term:
        """MMD2 at the fixed frequencies. Raises FloatingPointError if sigma is too small for the points."""

    def _mean_of_means(self, sums: Means) -> Means:
        """The point (d,) between the means of both clouds, from the sums (2, d) of their points."""
        n_x, n_y = self._sizes
        return (sums[0] / n_x + sums[1] / n_y) / 2

    def mmd(self, x: Means, y: Means) -> Term:
        """MMD2 from the means of cosines and sines, (2, D) each."""
        within = sum(self._less_the_diagonal((m**2).sum(0), n) for m, n in zip((x, y), self._sizes, strict=True))
        return (within - 2 * (x * y).sum(0)).mean()

    def pull(self, means: tuple[Means, Means], which: int) -> tuple[Means, float]:
        """(c, s) of the gradient at the points of one view (0: x, 1: y), and the factor before its sum."""
        n = self._sizes[which]
        f = n / (n - 1) if self._unbiased else 1.0
        return f * means[which] - means[1 - which], 2 / (n * self.fresh.turns.shape[1])

    def _less_the_diagonal(self, squares: Means, n: int) -> Means:
        return (n * squares - 1) / (n - 1) if self._unbiased else squares


_BLOCK_ELEMENTS = 2**24  # phases that are held at a time


class CudaFourierMMD(FourierMMD):
    """MMD2 from D frequencies, for embeddings on CUDA; see FourierMMD."""

    def __init__(
        self,
        n_x: int,
        n_y: int,
        settings: Settings,
        exact: MMD | None,
        device: torch.device,
        held: Rows | None = None,
    ) -> None:
        super().__init__(n_x, n_y, settings, exact, held)
        self._turns = _turns_on(device, self.fresh)
        self._fixed_turns = None if self.fixed is None else _turns_on(device, self.fixed)

    def begin(self, seed: int, epoch: int) -> None:
        """Draw this epoch's frequencies and send them to the device."""
        super().begin(seed, epoch)
        drawn = torch.from_numpy(self.fresh.turns)
        # PyTorch gives pinned memory to nobody else before the copy is done.
        self._turns.copy_(drawn.pin_memory() if self._turns.is_cuda else drawn, non_blocking=True)

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, d_e_x: torch.Tensor, d_e_y: torch.Tensor) -> torch.Tensor:
        """MMD2 at the frequencies of this epoch; its gradient goes to d_e_x (n_x, d) and d_e_y (n_y, d)."""
        points = self._centred(e_x, e_y)
        means = self._means(points, self._turns)
        for which, (e, out) in enumerate(zip(points, (d_e_x, d_e_y), strict=True)):
            (c, s), scale = self.pull(means, which)
            frequencies = (2 * math.pi * scale) * self._turns.float().T
            for rows, angles in _angles(e, self._turns):
                out[rows] = (angles.cos() * s.float() - angles.sin() * c.float()) @ frequencies
        return self.mmd(*means)

    def estimate(self, e_x: torch.Tensor, e_y: torch.Tensor) -> torch.Tensor:
        """MMD2 at the fixed frequencies. Raises FloatingPointError if sigma is too small for the points."""
        points = self._centred(e_x, e_y)
        self.fixed.check(max(float(e.norm(dim=1).amax()) for e in points if len(e)))
        return self.mmd(*self._means(points, self._fixed_turns))

    def _centred(self, *clouds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sums = self._sum(torch.stack([e.sum(0, dtype=torch.float64) for e in clouds]))
        centre = self._mean_of_means(sums).float()
        return tuple(e - centre for e in clouds)

    def _means(self, clouds: tuple[torch.Tensor, torch.Tensor], turns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The means of cosines and sines of both clouds, (2, D) each in float64."""
        sums = self._sum(torch.stack([_sums(e, turns) for e in clouds]))
        return tuple(of_cloud / n for of_cloud, n in zip(sums, self._sizes, strict=True))


def _turns_on(device: torch.device, frequencies: Frequencies) -> torch.Tensor:
    return torch.from_numpy(frequencies.turns).to(device, torch.float64, copy=True)


def _angles(e: torch.Tensor, turns: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Blocks of rows, and their phases (block, D) in radians, in float32."""
    step = max(1, _BLOCK_ELEMENTS // turns.shape[1])
    for low in range(0, len(e), step):
        phases = e[low : low + step].double() @ turns
        yield slice(low, low + step), (phases - phases.round()).float() * (2 * math.pi)


def _sums(e: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """The sums of cosines and sines, (2, D) in float64."""
    sums = torch.zeros(2, turns.shape[1], dtype=torch.float64, device=e.device)
    for _, angles in _angles(e, turns):
        sums[0] += angles.cos().sum(0, dtype=torch.float64)
        sums[1] += angles.sin().sum(0, dtype=torch.float64)
    return sums
