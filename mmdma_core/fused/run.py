"""Runs whose gradient is written out, with everything constant formed once; the same loss as every other variant.

With E = X W, T = X^T E (p, d) and B = E^T E = W^T T (d, d), the squared norm of the distortion is

    |X X^T - E E^T|^2 = |X X^T|^2 - 2 |T|^2 + |B|^2

The first term is formed once. For p < n, T = G W comes from the Gram matrix G = X^T X, formed once, too: O(p^2 d) an
epoch. Otherwise it comes from a pass over X: O(n p d), with nothing of size p x p or n x n. The three terms cancel near
the optimum, below float32's resolution, so they are formed in float64 where it matters.

The gradient: d|.|^2/dW = -4 G T + 4 T B, or through E, d|.|^2/dE = -4 X T + 4 E B. That of MMD2 comes from one pass
over the pairs of points (mmdma_core.fused.pairs_cpu and pairs_cuda). In the dual W = X^T alpha, its gradient mapped
back by X.

One pass is enough because S = sum of k(a, b) = exp(-|a - b|^2 / (2 sigma)) over pairs has dS/da = sum of
k(a, b) (b - a) / sigma: an evaluation of k serves the sum and both gradients. With f_i = sum_j w_ij k_ij and
g_i = sum_j w_ij k_ij z_j, w_ij the signed weights of MMD2, dMMD2/dz_i = -(2 / sigma) (f_i z_i - g_i).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from mmdma_core.formulations import Formulation
from mmdma_core.fused.threads import alone
from mmdma_core.inputs import Ranks
from mmdma_core.objective import LossTerms, total_loss
from mmdma_core.run import AdamRun, Pair
from mmdma_core.settings import Settings

Term = float | torch.Tensor

_FIRST_RATE = 3.0


class MMD(Protocol):
    """A way to MMD2 of two clouds and to its gradient. An exact one is the call alone, an estimate has more methods.

    Its arguments are the points of each cloud that this rank has, and it writes their gradients.

    linear_in_n   whether its time is linear in n, so that a sample of the cells saves some
    sorted_every  epochs after which `sort` puts the points in order anew; 0: it has no order
    """

    linear_in_n = False
    sorted_every = 0

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, d_e_x: torch.Tensor, d_e_y: torch.Tensor) -> Term:
        """Return MMD2 of e_x (n_x, d) and e_y (n_y, d); its gradient goes to d_e_x (n_x, d) and d_e_y (n_y, d)."""

    def begin(self, seed: int, epoch: int) -> None:
        """Draw the random numbers of this epoch; called before each, and outside of a CUDA graph."""

    def sort(self, e_x: torch.Tensor, e_y: torch.Tensor) -> None:
        """Find an order for the points, outside of a CUDA graph: it changes the time, not the result."""

    def of_loss(self, e_x: torch.Tensor, e_y: torch.Tensor, d_e_x: torch.Tensor, d_e_y: torch.Tensor) -> Term:
        """Return MMD2 as `Run.loss` reports it; d_e_x and d_e_y may be overwritten."""
        return self(e_x, e_y, d_e_x, d_e_y)

    def is_exact(self) -> bool:
        """Tell whether `of_loss` is the call itself, so that its gradient is that of every epoch at these points."""
        return type(self).of_loss is MMD.of_loss


class PairsMMD(MMD):
    """The exact MMD2 from the sums of k over all pairs of points: its weights and means, for both devices.

    n_x, n_y  points of the clouds, over all ranks
    ranks     of each view: of several, each gathers all points, takes its share of the pairs, and the gradients of its
              own points are summed over the ranks
    """

    def __init__(self, n_x: int, n_y: int, unbiased: bool, ranks: tuple[Ranks, Ranks] | None) -> None:
        self.n_x, self.n_y, self.unbiased = n_x, n_y, unbiased
        self._ranks = ranks or (Ranks(n_x), Ranks(n_y))
        self._rank, self._n_ranks = self._ranks[0].rank, self._ranks[0].size

    def _all_points(self, *clouds: torch.Tensor) -> list[torch.Tensor]:
        return [ranks.all_gather(e.contiguous()) for ranks, e in zip(self._ranks, clouds, strict=True)]

    def _weights(self, unit: float) -> tuple[float, float, float]:
        """The weights of a pair within x, within y and across in the gradient of MMD2, which `unit` multiplies."""
        n_x, n_y, less = self.n_x, self.n_y, 1 if self.unbiased else 0
        return unit / (n_x * (n_x - less)), unit / (n_y * (n_y - less)), -unit / (n_x * n_y)

    def _means(self, sums: Sequence[Term]) -> tuple[Term, Term, Term]:
        """The means of k within x, within y and across, from its sums over pairs of different points."""
        n_x, n_y, diagonal = self.n_x, self.n_y, 0 if self.unbiased else 1
        return (sums[0] / n_x + diagonal) / n_x, (sums[1] / n_y + diagonal) / n_y, sums[2] / (n_x * n_y)


class FusedView(Protocol):
    """One view: embedding, penalty, distortion and their gradient, for parameters theta (rows, d), all float32.

    rows      rows of the parameters: p in the primal, n in the dual
    ranks     those that share the view, with its n rows that are here
    e, d_e    (n, d), the embedding and the gradient of the loss with respect to it
    gradient  (rows, d), that of the loss with respect to theta
    """

    rows: int
    ranks: Ranks
    e: torch.Tensor
    d_e: torch.Tensor
    gradient: torch.Tensor

    def forward(self, theta: torch.Tensor) -> None:
        """Fill e."""

    def backward(self) -> tuple[Term, Term]:
        """Return penalty and distortion at the theta of the last `forward`; form `gradient`, of the loss, from d_e.

        Once for each `forward`: it may overwrite d_e and what `forward` has formed.
        """


class BatchView(FusedView, Protocol):
    """A FusedView that can embed a part of its cells."""

    def take(self, rows: np.ndarray | None) -> None:
        """Embed these cells alone from now on, None: all; the distortion remains that of all.

        rows  their numbers over all ranks, in order; a rank embeds those that it has
        """


class FormulationView:
    """A FusedView of any formulation, its own terms differentiated by PyTorch: for sparse views and for kernels."""

    def __init__(self, formulation: Formulation, settings: Settings, like: torch.Tensor, ranks: Ranks) -> None:
        self._formulation, self._settings, self.ranks = formulation, settings, ranks
        self.rows = formulation.rows
        self.d_e = torch.empty(ranks.own, settings.n_components, dtype=like.dtype, device=like.device)

    def forward(self, theta: torch.Tensor) -> None:
        self._theta = theta.detach().requires_grad_()
        self._e = self._formulation.embed(self._theta)
        self.e = self._e.detach()

    def backward(self) -> tuple[torch.Tensor, torch.Tensor]:
        penalty = self._formulation.penalty(self._theta, self._e)
        distortion = self._formulation.distortion(self._theta, self._e)
        weighted = self._settings.lambda1 * penalty / self.ranks.size + self._settings.lambda2 * distortion
        gradient = torch.autograd.grad(weighted + (self._e * self.d_e).sum(), self._theta)[0]
        self.gradient = self.ranks.sum(gradient.double()).to(gradient.dtype)
        return penalty.detach(), distortion.detach()


class FusedRun(AdamRun):
    """A run of full-batch Adam on written-out gradients, see mmdma_core.run.Run. Float32 views.

    takes_up_loss  whether a step that follows `loss` takes the gradient that this has formed, where MMD2 is exact. In a
                   measurement it does not: each epoch is a whole one. On CUDA a sort may come in between.
    """

    def __init__(
        self,
        views: tuple[FusedView, FusedView],
        mmd: MMD,
        settings: Settings,
        like: torch.Tensor,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> None:
        super().__init__([view.rows for view in views], settings, like, seed, parameters)
        self.views, self.mmd = views, mmd
        self.ranks = views[0].ranks
        self.sizes = [view.ranks.n for view in views]  # n_x, n_y, over all ranks
        self._seed = torch.tensor(seed)
        self.batches: Batches | None = None  # None: an update takes all cells
        self.takes_up_loss = False
        self._gradient_of: tuple[int, ...] | None = None  # the state whose gradient `loss` has left

    def step(self) -> None:
        mmd = self.mmd
        if self.batches:
            mmd = self.batches.take(int(self._seed), self.epoch)
            self._adam.learning_rate = self.settings.learning_rate * self.batches.rate(self.epoch)
        self._begin(mmd)
        self._update(mmd)
        self.epoch += 1

    def loss(self) -> LossTerms:
        self._take_all()
        terms = self.ranks.broadcast([float(term) for term in self._evaluate(self.mmd.of_loss)])
        if self.mmd.is_exact():
            self._gradient_of = self._moment()
        return LossTerms(total_loss(self.settings, *terms), *terms)

    def gradients(self) -> Pair:
        """Return those of this epoch."""
        self._take_all()
        self._begin(self.mmd)
        self._evaluate(self.mmd)
        return tuple(view.gradient.clone() for view in self.views)

    def embeddings(self) -> Pair:
        """Return those of the cells that this rank has."""
        self._take_all()
        self._forward()
        return tuple(view.e.clone() for view in self.views)

    def restart(self, seed: int) -> None:
        self._seed.fill_(seed)
        super().restart(seed)

    def _tensors(self) -> list[torch.Tensor]:
        return [*super()._tensors(), self._seed]

    def _take_all(self) -> None:
        if self.batches:
            self.batches.take_all()

    def _begin(self, mmd: MMD) -> None:
        mmd.begin(int(self._seed), self.epoch)
        if mmd.sorted_every and self.epoch % mmd.sorted_every == 0:
            self._forward()
            mmd.sort(*(view.e for view in self.views))

    def _update(self, mmd: MMD) -> None:
        if not (self.takes_up_loss and mmd is self.mmd and self._gradient_of == self._moment()):
            self._evaluate(mmd)
        with alone():
            self._adam.step([view.gradient for view in self.views])

    def _moment(self) -> tuple[int, ...]:
        """A value that differs whenever the parameters may: PyTorch counts the operations that write to a tensor."""
        return self.epoch, *(theta._version for theta in self.parameters)

    def _forward(self) -> None:
        for view, theta in zip(self.views, self.parameters, strict=True):
            view.forward(theta)

    def _evaluate(self, mmd_of: Callable[..., Term]) -> tuple[Term, ...]:
        """MMD2, both penalties, both distortions; the gradients are filled."""
        self._gradient_of = None
        self._forward()
        x, y = self.views
        mmd = mmd_of(x.e, y.e, x.d_e, y.d_e)
        (pen_x, dis_x), (pen_y, dis_y) = x.backward(), y.backward()
        return mmd, pen_x, pen_y, dis_x, dis_y


class Batches:
    """Updates that take a sample of the cells of each view, for fits of very many cells.

    Update k of K takes b cells of each view, drawn afresh as a function of (seed, k), without replacement: the unbiased
    MMD2 of the samples is on average that of all cells, and so is its gradient. The distortion stays that of all cells,
    through the Gram matrix, so that p < n is asked for. The learning rate falls along a cosine, from three times the
    one that is asked for to 0, and the last tenth of the updates takes all cells, so that a fit comes to rest. (A
    cosine of that height ends, after as many updates, at the loss of a constant rate on all cells or below; one of the
    same height far above: measured on branch data, 60,000 cells, p = 20 and 50, three seeds.)

    sizes      cells of a sample of each view, b
    sampled    MMD2 of two samples
    whole      MMD2 of all cells
    n_updates  K
    """

    def __init__(
        self, views: tuple[BatchView, BatchView], sizes: list[int], sampled: MMD, whole: MMD, n_updates: int
    ) -> None:
        self._views, self._sizes, self._n_updates = views, sizes, n_updates
        self._sampled, self._whole = sampled, whole

    def take(self, seed: int, update: int) -> MMD:
        """Let the views take the cells of an update, numbered from 0, and return its MMD2."""
        if update >= self._n_updates - math.ceil(self._n_updates / 10):
            return self.take_all()
        stream = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, update], np.uint64)))
        for view, size in zip(self._views, self._sizes, strict=True):
            n = view.ranks.n
            view.take(np.sort(stream.choice(n, size, replace=False, shuffle=False)) if size < n else None)
        return self._sampled

    def take_all(self) -> MMD:
        """Let the views take all cells, and return their MMD2."""
        for view in self._views:
            view.take(None)
        return self._whole

    def rate(self, update: int) -> float:
        """Return the learning rate of an update, as a multiple of the one that is asked for."""
        return _FIRST_RATE * (1 + math.cos(math.pi * min(update / self._n_updates, 1.0))) / 2
