"""The views of mmdma_core.fused.run on CUDA, and a run whose epoch is one CUDA graph where launches would cost more.

Nothing here waits for the device: what depends on a value is chosen there. All that is left of the distortion after
its terms have cancelled is formed in float64, block by block, so nothing of X's size is held beside X.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mmdma_core.fused.parts import MMD, FusedView
from mmdma_core.fused.run import FusedRun
from mmdma_core.objective import terms
from mmdma_core.objective.settings import Settings
from mmdma_core.ranks import Rows

_BLOCK_ELEMENTS = 2**24  # of X that are converted to float64 at a time
CAPTURED_POINTS = 40_000  # up to so many cells of both views, an epoch is captured in a graph


class CudaView:
    """One view in the primal, see mmdma_core.fused.parts.FusedView."""

    def __init__(self, x: torch.Tensor, settings: Settings, held: Rows | None = None) -> None:
        self.x, self.settings, self._all = x, settings, x
        self.held = held or Rows(len(x))
        self.n, self.p = self.held.n, x.shape[1]
        self.rows = self.p
        self.d_e = x.new_empty(len(x), settings.n_components)
        self._through_gram = self.p < self.n
        if self._through_gram:
            self._gram = x.new_zeros(self.p, self.p, dtype=torch.float64)
            for _, block in self._blocks():
                self._gram.addmm_(block.T, block)
            self.held.sum(self._gram)
            self._constant = self._gram.square().sum()
        else:
            self._constant = self._squared_kernel_norm()

    def take(self, rows: np.ndarray | None) -> None:
        """See mmdma_core.fused.parts.BatchView."""
        here = None if rows is None else torch.from_numpy(self.held.taken(rows)).to(self._all.device)
        self.x = self._all if here is None else self._all[here]
        self.d_e = self.x.new_empty(len(self.x), self.settings.n_components)

    def forward(self, w: torch.Tensor) -> None:
        """E = X W, and T = X^T E in float64."""
        self._w = w.double()
        if self._through_gram:
            self.e = self.x @ w
            self._t = self._gram @ self._w
        else:
            self.e = self.x.new_empty(len(self.x), w.shape[1])
            self._t = self._w.new_zeros(self.p, w.shape[1])
            for rows, block in self._blocks():
                e = block @ self._w
                self.e[rows] = e
                self._t.addmm_(block.T, e)
            self.held.sum(self._t)

    def backward(self) -> tuple[torch.Tensor, torch.Tensor]:
        w, t, b = self._w, self._t, self._w.T @ self._t
        inner = w.T @ w
        penalty = terms.penalty(inner, self.p)
        inner.diagonal().sub_(1)
        norm = (self._constant - 2 * t.square().sum() + b.square().sum()).clamp(min=0).sqrt()
        distortion = terms.distortion(norm, self.n, self.p)
        # The derivatives of the weighted terms with respect to |W^T W - I|^2 / 2 and to |X X^T - E E^T|^2.
        of_penalty = _quotient_or_zero(self.settings.lambda1 / self.p, penalty)
        of_norm = _quotient_or_zero(self.settings.lambda2 / (2 * self.n * math.sqrt(self.p)), norm)
        gradient = of_penalty * 2 * w @ inner
        if self._through_gram:
            gradient += of_norm * 4 * (t @ b - self._gram @ t)
        else:
            self.d_e += (of_norm * 4 * (self.e.double() @ b)).float()
            self.d_e -= self.x @ (of_norm * 4 * t).float()
        gradient = self._transposed_product(self.d_e).add_(gradient, alpha=self.held.share)
        self.gradient = self.held.sum(gradient).float()
        return penalty, distortion

    def _transposed_product(self, rows: torch.Tensor) -> torch.Tensor:
        """X^T rows (p, d), in float64 beyond blocks."""
        total = rows.new_zeros(self.p, rows.shape[1], dtype=torch.float64)
        for x, block in zip(self.x.split(self._block_rows), rows.split(self._block_rows), strict=True):
            total += x.T @ block
        return total

    @property
    def _block_rows(self) -> int:
        return max(1, _BLOCK_ELEMENTS // self.p)

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of rows of X in float64, with where they stand."""
        for low in range(0, len(self.x), self._block_rows):
            rows = slice(low, low + self._block_rows)
            yield rows, self.x[rows].double()

    def _squared_kernel_norm(self) -> torch.Tensor:
        """|X X^T|^2 without X X^T."""
        own = sum((block @ other.T).square().sum() for _, block in self._blocks() for _, other in self._blocks())
        for rows in self.held.others(self.x):
            for columns in rows.split(self._block_rows):
                own += 2 * sum((block @ columns.double().T).square().sum() for _, block in self._blocks())
        return self.held.sum(own)


class CudaDualView(CudaView):
    """The same view with parameters alpha (n, d): W = X^T alpha."""

    def __init__(self, x: torch.Tensor, settings: Settings, held: Rows | None = None) -> None:
        super().__init__(x, settings, held)
        self.rows = self.n

    def forward(self, alpha: torch.Tensor) -> None:
        super().forward(self._transposed_product(alpha).float())

    def backward(self) -> tuple[torch.Tensor, torch.Tensor]:
        penalty_and_distortion = super().backward()
        self.gradient = self.x @ self.gradient
        return penalty_and_distortion


class CudaRun(FusedRun):
    """The run on CUDA. Up to CAPTURED_POINTS cells the first epoch leaves a graph of a whole epoch, Adam included."""

    def __init__(
        self,
        views: tuple[FusedView, FusedView],
        mmd: MMD,
        settings: Settings,
        like: torch.Tensor,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> None:
        super().__init__(views, mmd, settings, like, seed, parameters)
        small = sum(self.sizes) <= CAPTURED_POINTS and self.held.size == 1  # a graph waits for no other process
        # PyTorch may wait for the device in what it differentiates, which a graph does not allow.
        self._captures = small and like.device.type == "cuda" and all(isinstance(view, CudaView) for view in views)
        self._graph: torch.cuda.CUDAGraph | None = None

    def _update(self, mmd: MMD) -> None:
        if self.batches:  # a graph knows one set of cells
            super()._update(mmd)
            return
        if self._graph is not None:
            self._graph.replay()
            return
        super()._update(mmd)
        if self._captures:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                super()._update(mmd)  # recorded, not run
            self._graph = graph


def _quotient_or_zero(scale: float, value: torch.Tensor) -> torch.Tensor:
    """scale / value, 0 where value is 0."""
    return torch.where(value > 0, scale / value, 0.0)


VIEWS, RUN = {"primal": CudaView, "dual": CudaDualView}, CudaRun
