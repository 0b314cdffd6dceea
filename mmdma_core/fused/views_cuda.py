"""The views of mmdma_core.fused.run on CUDA, and a run whose epoch is one CUDA graph where launches would cost more.

Nothing here waits for the device: a choice that depends on a value is made there. Nothing of X's size lies beside X,
and no epoch converts X: for p < n the Gram matrix is in float64, otherwise _Split lets float32 products with X suffice.

Bytes that the four products with X of an epoch read and write for p >= n, of one view in the primal, counted from the
code and not measured: 4 n p each, and 24 n d for every 512 columns added in float64, (16 + 3 d / 64) n p together. The
dual reads X twice more, 8 n p. With blocks of X converted to float64 in each epoch it was 36 n p: 4 + 8 for the
conversion, 8 + 8 for two products, 4 + 4 for the gradient. At n = p = 5,000, d = 10: 900 MB then, 412 MB now. Of
multiplications and additions in float64, 4 n p d then, what is left is of n d, p d and k p d numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from mmdma_core import objective
from mmdma_core.fused.run import MMD, FusedRun
from mmdma_core.inputs import Ranks
from mmdma_core.settings import Settings

_BLOCK_ELEMENTS = 2**24  # of X at a time; before the first epoch, converted to float64
_COLUMNS = 512  # of X whose products are summed in float32
_MORE_DIRECTIONS = 8  # of X than W has columns, so that the first d are found well
_ITERATIONS = 4
CAPTURED_POINTS = 60_000  # cells of both views up to which an epoch is captured in a graph


class CudaView:
    """One view in the primal, see mmdma_core.fused.run.FusedView."""

    def __init__(self, x: torch.Tensor, settings: Settings, ranks: Ranks | None = None) -> None:
        self.x, self.settings, self._all = x, settings, x
        self.ranks = ranks or Ranks(len(x))
        self.n, self.p = self.ranks.n, x.shape[1]
        self.rows = self.p
        self.d_e = x.new_empty(len(x), settings.n_components)
        self._through_gram = self.p < self.n
        if self._through_gram:
            self._gram = x.new_zeros(self.p, self.p, dtype=torch.float64)
            for _, block in self._blocks():
                self._gram.addmm_(block.T, block)
            self.ranks.sum(self._gram)
            self._constant = self._gram.square().sum()
        else:
            self._split = _Split(x, settings.n_components, self._blocks(), self.ranks)
            self._constant = self._squared_kernel_norm()

    def take(self, rows: np.ndarray | None) -> None:
        """See mmdma_core.fused.run.BatchView."""
        if rows is None:
            self.x = self._all
        else:
            local = torch.from_numpy(self.ranks.local(rows))
            # From pageable memory the copy would wait for the device.
            local = local.pin_memory() if self._all.is_cuda else local
            self.x = self._all[local.to(self._all.device, non_blocking=True)]
        self.d_e = self.x.new_empty(len(self.x), self.settings.n_components)

    def forward(self, w: torch.Tensor) -> None:
        """E = X W, and T = X^T E in float64."""
        self._w = w.double()
        if self._through_gram:
            self.e = self.x @ w
            self._t = self._gram @ self._w
        else:
            along, rest = self._split.of(self._w)
            e = self._product(rest).float()
            self.e = torch.addmm(e, self._split.x_u, along.float())
            t = self.ranks.sum(self._transposed_product(e)).addmm_(self._split.g_u, along)
            self._t = self._split.corrected(t, self._w)

    def backward(self) -> tuple[torch.Tensor, torch.Tensor]:
        w, t, b = self._w, self._t, self._w.T @ self._t
        inner = w.T @ w
        penalty = objective.penalty(inner, self.p)
        inner.diagonal().sub_(1)
        norm = (self._constant - 2 * t.square().sum() + b.square().sum()).clamp(min=0).sqrt()
        distortion = objective.distortion(norm, self.n, self.p)
        # The derivatives of the weighted terms with respect to |W^T W - I|^2 / 2 and to |X X^T - E E^T|^2.
        of_penalty = _quotient_or_zero(self.settings.lambda1 / self.p, penalty)
        of_norm = _quotient_or_zero(self.settings.lambda2 / (2 * self.n * math.sqrt(self.p)), norm)
        gradient = of_penalty * 2 * w @ inner
        pull = of_norm * 4 * (w @ b - t)  # X^T X pull is the gradient of the norm; small near the optimum
        if self._through_gram:
            gradient += self._gram @ pull
        else:
            self.d_e.addmm_(self.x, pull.float())
        gradient = self._transposed_product(self.d_e).add_(gradient, alpha=1 / self.ranks.size)
        self.gradient = self.ranks.sum(gradient).float()
        return penalty, distortion

    def _product(self, w: torch.Tensor) -> torch.Tensor:
        """X W (n, d), in float64 beyond blocks."""
        total = w.new_zeros(len(self.x), w.shape[1], dtype=torch.float64)
        for x, block in zip(self.x.split(_COLUMNS, dim=1), w.split(_COLUMNS), strict=True):
            total += x @ block
        return total

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
        """Blocks of rows of X in float64, each with its place in X."""
        for low in range(0, len(self.x), self._block_rows):
            rows = slice(low, low + self._block_rows)
            yield rows, self.x[rows].double()

    def _squared_kernel_norm(self) -> torch.Tensor:
        """|X X^T|^2 without X X^T."""
        total = sum((block @ other.T).square().sum() for _, block in self._blocks() for _, other in self._blocks())
        for rows in self.ranks.others(self.x):  # whose product with these rows is there twice
            parts = (other.double() for other in rows.split(self._block_rows))
            total += 2 * sum((block @ other.T).square().sum() for other in parts for _, block in self._blocks())
        return self.ranks.sum(total)


class _Split:
    """W = U Z + W', for X (n, p) with p >= n; U (p, k) is orthonormal, about the first k right singular vectors of X.

    T = X^T X W = (X^T X U) Z + X^T (X W'), where X^T X U is formed once, in float64, and U^T T is (X^T X U)^T W. The
    distortion is small against |X X^T| only where the columns of W lie near those of U. There W' is small, and what
    float32 products with it lose, outside U's span, is small against the distortion.

    x_u  X U (n, k), float32
    g_u  X^T X U (p, k), float64
    """

    def __init__(self, x: torch.Tensor, d: int, blocks: Iterator[tuple[slice, torch.Tensor]], ranks: Ranks) -> None:
        self._u = _leading_directions(x, min(ranks.n, d + _MORE_DIRECTIONS), ranks)
        self.x_u = x.new_empty(len(x), self._u.shape[1])
        self.g_u = torch.zeros_like(self._u)
        for rows, block in blocks:
            x_u = block @ self._u
            self.x_u[rows] = x_u
            self.g_u.addmm_(block.T, x_u)
        ranks.sum(self.g_u)

    def of(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Z (k, d) in float64 and W' (p, d) in float32 of a W in float64; the error of W' is orthogonal to U."""
        rest = torch.addmm(w, self._u, self._u.T @ w, alpha=-1).float()
        return self._u.T @ (w - rest), rest

    def corrected(self, t: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """T with U^T T = (X^T X U)^T W."""
        return t.addmm_(self._u, self.g_u.T @ w - self._u.T @ t)


def _leading_directions(x: torch.Tensor, k: int, ranks: Ranks) -> torch.Tensor:
    """(p, k) in float64: orthonormal, about the first k right singular vectors of X (n, p), k <= n <= p.

    Subspace iteration with X^T X from random vectors, the same ones each time (Halko, Martinsson and Tropp 2011).
    """
    basis = torch.randn(x.shape[1], k, generator=torch.Generator().manual_seed(0)).to(x)
    for _ in range(1 + _ITERATIONS):
        basis = torch.linalg.qr(ranks.sum((x.T @ (x @ basis.float())).double())).Q
    return basis


class CudaDualView(CudaView):
    """The same view with parameters alpha (n, d): W = X^T alpha."""

    def __init__(self, x: torch.Tensor, settings: Settings, ranks: Ranks | None = None) -> None:
        super().__init__(x, settings, ranks)
        self.rows = self.n

    def forward(self, alpha: torch.Tensor) -> None:
        super().forward(self._transposed_product(alpha).float())

    def backward(self) -> tuple[torch.Tensor, torch.Tensor]:
        penalty_and_distortion = super().backward()
        self.gradient = self.x @ self.gradient
        return penalty_and_distortion


class CudaRun(FusedRun):
    """The run on CUDA. Up to CAPTURED_POINTS cells the first epoch leaves a graph of a whole epoch, Adam included."""

    _graph: torch.cuda.CUDAGraph | None = None

    def _update(self, mmd: MMD) -> None:
        if self._graph is not None and not self.batches:  # a graph knows one set of cells
            self._graph.replay()
            return
        super()._update(mmd)
        if not self.batches and self._can_capture():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=_stream_for_capture(self.parameters[0].device)):
                super()._update(mmd)  # recorded, not run
            self._graph = graph

    def _can_capture(self) -> bool:
        small = sum(self.sizes) <= CAPTURED_POINTS and self.ranks.size == 1  # a graph waits for no other process
        # PyTorch may wait for the device in what it differentiates, which a graph does not allow.
        return (
            small
            and self.parameters[0].device.type == "cuda"
            and all(isinstance(view, CudaView) for view in self.views)
        )


def _stream_for_capture(device: torch.device) -> torch.cuda.Stream | None:
    """None where PyTorch's own will do: one for the process, on the GPU on which it captured first."""
    first = getattr(torch.cuda.graph, "default_capture_stream", None)
    return None if first is None or first.device == device else torch.cuda.Stream(device)


def _quotient_or_zero(scale: float, value: torch.Tensor) -> torch.Tensor:
    """scale / value, 0 where value is 0."""
    return torch.where(value > 0, scale / value, 0.0)


VIEWS, RUN = {"primal": CudaView, "dual": CudaDualView}, CudaRun
