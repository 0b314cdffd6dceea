"""What a run is put together from: two views, and a way to MMD2.

Updates that take a sample of the cells of each view, for fits of very many cells.

Update k of K takes b cells of each view, drawn afresh as a function of (seed, k), without replacement: the unbiased
MMD2 of the samples is on average that of all cells, and so is its gradient. The distortion stays that of all cells,
through the Gram matrix, so that p < n is asked for. The learning rate falls along a cosine, from three times the one
that is asked for to 0, and the last tenth of the updates takes all cells, so that a fit comes to rest. (A cosine of
that height ends, after as many updates, at the loss of a constant rate on all cells or below; one of the same height
far above: measured on branch data, 60,000 cells, p = 20 and 50, three seeds.)
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch

from mmdma_core.inputs import Rows

Term = float | torch.Tensor


class MMD(Protocol):
    """MMD2 of two clouds and its gradient. What is exact is the call alone; an estimate has more to say.

    Of the clouds it is given the points that are here, and it writes their gradients.

    linear_in_n   whether it takes a time that is linear in n, so that a sample of the cells saves some
    sorted_every  epochs after which `sort` puts the points in order anew; 0: it knows no order
    """

    linear_in_n = False
    sorted_every = 0

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, d_e_x: torch.Tensor, d_e_y: torch.Tensor) -> Term:
        """MMD2 of e_x (n_x, d) and e_y (n_y, d); its gradient is written to the last two."""

    def begin(self, seed: int, epoch: int) -> None:
        """Draw what this epoch takes; called before each, and outside of a CUDA graph."""

    def sort(self, e_x: torch.Tensor, e_y: torch.Tensor) -> None:
        """Find an order for the points, outside of a CUDA graph: it changes the time, not the result."""

    def of_loss(self, e_x: torch.Tensor, e_y: torch.Tensor, d_e_x: torch.Tensor, d_e_y: torch.Tensor) -> Term:
        """MMD2 as `Run.loss` reports it; the last two may be used up."""
        return self(e_x, e_y, d_e_x, d_e_y)

    def is_exact(self) -> bool:
        """Whether `of_loss` is the call itself, so that its gradient is that of every epoch at these points."""
        return type(self).of_loss is MMD.of_loss


class FusedView(Protocol):
    """One view: embedding, penalty, distortion and their gradient, for parameters theta (rows, d), all float32.

    rows      rows of the parameters: p in the primal, n in the dual
    held      the rows of the view that are here, n of them
    e, d_e    (n, d), the embedding and the gradient of the loss with respect to it
    gradient  (rows, d), that of the loss with respect to theta
    """

    rows: int
    held: Rows
    e: torch.Tensor
    d_e: torch.Tensor
    gradient: torch.Tensor

    def forward(self, theta: torch.Tensor) -> None:
        """Fill e."""

    def backward(self) -> tuple[Term, Term]:
        """Penalty and distortion at the theta of the last `forward`; `gradient` becomes that of the loss, from d_e.

        Once for each `forward`: it may use up d_e and what that has formed.
        """


class BatchView(FusedView, Protocol):
    """A FusedView that can embed a part of its cells."""

    def take(self, rows: np.ndarray | None) -> None:
        """Embed these cells alone from now on, None: all; the distortion remains that of all.

        They are counted over all ranks; those that are here are taken.
        """


_FIRST_RATE = 3.0
WHOLE_UP_TO, AUTO_SIZE = 50_000, 20_000  # cells up to which 'auto' takes all, and those of its samples beyond


class Batches:
    """Which cells an update takes, with which MMD2 and learning rate.

    sizes      cells of a sample of each view
    sampled    MMD2 of two samples
    whole      MMD2 of all cells
    n_updates  K
    """

    def __init__(
        self, views: tuple[BatchView, BatchView], sizes: list[int], sampled: MMD, whole: MMD, n_updates: int
    ) -> None:
        self._views, self._sizes, self._n_updates = views, sizes, n_updates
        self._of_all = [view.held.n for view in views]
        self._of_batch, self._whole = sampled, whole

    def take(self, seed: int, update: int) -> MMD:
        """Let the views take the cells of an update, numbered from 0."""
        if update >= self._n_updates - math.ceil(self._n_updates / 10):
            return self.take_all()
        stream = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, update], np.uint64)))
        for view, size, n in zip(self._views, self._sizes, self._of_all, strict=True):
            view.take(np.sort(stream.choice(n, size, replace=False, shuffle=False)) if size < n else None)
        return self._of_batch

    def take_all(self) -> MMD:
        for view in self._views:
            view.take(None)
        return self._whole

    def rate(self, update: int) -> float:
        """The learning rate of an update, as a multiple of the one that is asked for."""
        return _FIRST_RATE * (1 + math.cos(math.pi * min(update / self._n_updates, 1.0))) / 2
