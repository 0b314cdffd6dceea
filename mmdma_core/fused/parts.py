"""What a run is put together from: two views, and a way to MMD2."""

from __future__ import annotations

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
