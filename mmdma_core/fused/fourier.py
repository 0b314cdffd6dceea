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

FourierMMD has the formulas; a class of Frequencies has the passes over the points: CudaFrequencies those in PyTorch
alone, in blocked products, cosines and sines, and mmdma_core.fused.fourier_cpu those in Numba. On CUDA a block of
points has its phases, and nothing of size n x D is in memory beyond it. Phases, in turns, are formed in float64; what
is left of them within half a turn is float32. Nothing waits for the device: the frequencies of an epoch go from pinned
memory into a place that a CUDA graph knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numba
import numpy as np
import torch

from mmdma_core.fused.run import MMD, Term
from mmdma_core.inputs import Ranks
from mmdma_core.settings import Settings

Means = np.ndarray | torch.Tensor
Clouds = tuple[torch.Tensor, torch.Tensor]

N_FIXED = 4096  # frequencies of the loss that is reported, the same in every run
_FIXED = (2**64 - 1, 2**64 - 1)  # no (seed, epoch)
_LARGEST = 2.0**40  # turns that a phase may have: beyond, float64 leaves fewer than four digits
_BLOCK_ELEMENTS = 2**24  # phases in memory at a time


class FourierMMD(MMD):
    """MMD2 and its gradient from fresh frequencies in every epoch, for embeddings (n_x, d) and (n_y, d) in float32.

    What `loss` reports is exact where `exact` is given. Otherwise it comes from N_FIXED frequencies, the same in every
    run and at every time, so that starts can be compared by it.

    n_x, n_y     points of the clouds, over all ranks
    frequencies  makes those of a device: frequencies(d, D, sigma)
    exact        the exact MMD2, where there is one and the problem is small enough
    ranks        those over which the sums of cosines and sines run, with the rows of either view
    """

    linear_in_n = True

    def __init__(
        self,
        n_x: int,
        n_y: int,
        settings: Settings,
        frequencies: Callable[[int, int, float], Frequencies],
        exact: MMD | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._sizes, self._unbiased, self._exact = (n_x, n_y), settings.unbiased, exact
        self._ranks = ranks or Ranks(n_x)
        d, sigma = settings.n_components, settings.sigma
        self.fresh = frequencies(d, settings.n_frequencies, sigma)
        self.fixed = None if exact else frequencies(d, N_FIXED, sigma)
        if self.fixed:
            self.fixed.draw(*_FIXED)

    def begin(self, seed: int, epoch: int) -> None:
        self.fresh.draw(seed, epoch)

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, d_e_x: torch.Tensor, d_e_y: torch.Tensor) -> Term:
        """Return MMD2 at the frequencies of this epoch; its gradient goes to d_e_x (n_x, d) and d_e_y (n_y, d)."""
        clouds, means = self._means(self.fresh, (e_x, e_y), checked=False)
        for which, (e, out) in enumerate(zip(clouds, (d_e_x, d_e_y), strict=True)):
            n = self._sizes[which]
            f = n / (n - 1) if self._unbiased else 1.0
            c, s = f * means[which] - means[1 - which]
            self.fresh.gradient(e, c, s, 2 / (n * self.fresh.turns.shape[1]), out)
        return self._mmd(*means)

    def of_loss(self, e_x: torch.Tensor, e_y: torch.Tensor, d_e_x: torch.Tensor, d_e_y: torch.Tensor) -> Term:
        return self._exact(e_x, e_y, d_e_x, d_e_y) if self._exact else self.estimate(e_x, e_y)

    def estimate(self, e_x: torch.Tensor, e_y: torch.Tensor) -> Term:
        """Return MMD2 at the fixed frequencies. Raises FloatingPointError if sigma is too small for the points."""
        return self._mmd(*self._means(self.fixed, (e_x, e_y), checked=True)[1])

    def _means(
        self, frequencies: Frequencies, clouds: Clouds, checked: bool
    ) -> tuple[Sequence[np.ndarray | torch.Tensor], tuple[Means, Means]]:
        """The centred clouds, and the means of cosines and sines of each, (2, D)."""
        n_x, n_y = self._sizes
        totals = self._ranks.sum(frequencies.totals(clouds))
        clouds = frequencies.centred(clouds, (totals[0] / n_x + totals[1] / n_y) / 2, checked)
        of_x, of_y = self._ranks.sum(frequencies.sums(clouds))
        return clouds, (of_x / n_x, of_y / n_y)

    def _mmd(self, x: Means, y: Means) -> Term:
        """MMD2 from the means of cosines and sines, (2, D) each."""
        within = sum(self._less_the_diagonal((m**2).sum(0), n) for m, n in zip((x, y), self._sizes, strict=True))
        return (within - 2 * (x * y).sum(0)).mean()

    def _less_the_diagonal(self, squares: Means, n: int) -> Means:
        return (n * squares - 1) / (n - 1) if self._unbiased else squares


class Frequencies:
    """D frequencies in turns, w / (2 pi), as the columns of `turns` (d, D), float32.

    A class of each device has two passes over the points with them, of which the first yields sums of cosines and sines
    and the second gradients.
    """

    def __init__(self, d: int, count: int, sigma: float) -> None:
        self.turns = np.zeros((d, count), np.float32)
        self.longest = 0.0
        self._sigma = sigma
        self._scale = 1 / (2 * math.pi * math.sqrt(sigma))
        self._normals = np.empty((2, -(-count // d), d, d))

    def draw(self, seed: int, epoch: int) -> None:
        """Draw those of an epoch."""
        stream = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, epoch % 2**64], np.uint64)))
        stream.standard_normal(out=self._normals)
        self.longest = self._scale * _orthogonal(*self._normals, self._scale, self.turns)

    def check(self, radius: float) -> float:
        """Return the most turns that a point has within `radius` of the centre.

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

    def totals(self, clouds: Clouds) -> Means:
        """Return the sum of the points of each cloud, (2, d) in float64."""

    def centred(self, clouds: Clouds, centre: Means, checked: bool) -> Sequence[np.ndarray | torch.Tensor]:
        """Return the clouds for the passes, which take them less the centre (d,).

        checked  raise FloatingPointError if sigma is too small for the points, even if that waits for the device
        """

    def sums(self, clouds: Sequence[np.ndarray | torch.Tensor]) -> Means:
        """Return the sums of cosines and of sines of each cloud, (2, 2, D) in float64."""

    def gradient(self, e: np.ndarray | torch.Tensor, c: Means, s: Means, scale: float, out: torch.Tensor) -> None:
        """Fill out (n, d) with scale x the sum over frequencies w of w (s cos(w . e) - c sin(w . e))."""


class CudaFrequencies(Frequencies):
    """Frequencies on CUDA, see Frequencies."""

    def __init__(self, d: int, count: int, sigma: float, device: torch.device) -> None:
        super().__init__(d, count, sigma)
        self._turns = torch.zeros(d, count, dtype=torch.float64, device=device)

    def draw(self, seed: int, epoch: int) -> None:
        """Draw those of an epoch and send them to the device."""
        super().draw(seed, epoch)
        drawn = torch.from_numpy(self.turns)
        # PyTorch reuses pinned memory only after the copy is done.
        self._turns.copy_(drawn.pin_memory() if self._turns.is_cuda else drawn, non_blocking=True)

    def totals(self, clouds: Clouds) -> torch.Tensor:
        return torch.stack([e.sum(0, dtype=torch.float64) for e in clouds])

    def centred(self, clouds: Clouds, centre: torch.Tensor, checked: bool) -> Clouds:
        clouds = tuple(e - centre.float() for e in clouds)
        if checked:
            self.check(max(float(e.norm(dim=1).amax()) for e in clouds if len(e)))
        return clouds

    def sums(self, clouds: Clouds) -> torch.Tensor:
        sums = self._turns.new_zeros(2, 2, self._turns.shape[1])
        for of_cloud, e in zip(sums, clouds, strict=True):
            for _, angles in self._angles(e):
                of_cloud[0] += angles.cos().sum(0, dtype=torch.float64)
                of_cloud[1] += angles.sin().sum(0, dtype=torch.float64)
        return sums

    def gradient(self, e: torch.Tensor, c: torch.Tensor, s: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        frequencies = (2 * math.pi * scale) * self._turns.float().T
        for rows, angles in self._angles(e):
            out[rows] = (angles.cos() * s.float() - angles.sin() * c.float()) @ frequencies

    def _angles(self, e: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of rows, and their phases (block, D) in radians, in float32."""
        step = max(1, _BLOCK_ELEMENTS // self._turns.shape[1])
        for low in range(0, len(e), step):
            phases = e[low : low + step].double() @ self._turns
            yield slice(low, low + step), (phases - phases.round()).float() * (2 * math.pi)


@numba.njit(cache=True)
def _orthogonal(blocks: np.ndarray, others: np.ndarray, scale: float, out: np.ndarray) -> float:
    """Make each block's columns orthogonal, with the lengths of the others', in out (d, D); return the longest length.

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
