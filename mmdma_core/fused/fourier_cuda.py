"""MMD2 from Fourier features on CUDA, with PyTorch alone: blocked products, cosines and sines.

A block of points holds its phases, and nothing of size n x D is held beyond it. Phases, in turns, are formed in
float64; what is left of them within half a turn is float32. Nothing waits for the device: the frequencies of an epoch
go from pinned memory into a place that a CUDA graph knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from mmdma_core.fused.fourier import FourierMMD, Frequencies
from mmdma_core.fused.parts import MMD
from mmdma_core.inputs import Rows
from mmdma_core.settings import Settings

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
