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

from collections.abc import Callable, Sequence

import numpy as np
import torch

from mmdma_core.formulations import Formulation
from mmdma_core.fused.parts import MMD, Batches, FusedView, Term
from mmdma_core.fused.threads import alone
from mmdma_core.inputs import Rows
from mmdma_core.objective import LossTerms, total_loss
from mmdma_core.run import AdamRun, Pair
from mmdma_core.settings import Settings


class FormulationView:
    """A FusedView of any formulation, its own terms differentiated by PyTorch: for sparse views and for kernels."""

    def __init__(self, formulation: Formulation, settings: Settings, like: torch.Tensor, held: Rows) -> None:
        self._formulation, self._settings, self.held = formulation, settings, held
        self.rows = formulation.rows
        self.d_e = torch.empty(held.own, settings.n_components, dtype=like.dtype, device=like.device)

    def forward(self, theta: torch.Tensor) -> None:
        self._theta = theta.detach().requires_grad_()
        self._e = self._formulation.embed(self._theta)
        self.e = self._e.detach()

    def backward(self) -> tuple[torch.Tensor, torch.Tensor]:
        penalty = self._formulation.penalty(self._theta, self._e)
        distortion = self._formulation.distortion(self._theta, self._e)
        weighted = self.held.share * self._settings.lambda1 * penalty + self._settings.lambda2 * distortion
        gradient = torch.autograd.grad(weighted + (self._e * self.d_e).sum(), self._theta)[0]
        self.gradient = self.held.sum(gradient.double()).to(gradient.dtype)
        return penalty.detach(), distortion.detach()


class FusedRun(AdamRun):
    """A run of full-batch Adam on written-out gradients, see mmdma_core.run.Run. Float32 views.

    takes_up_loss  whether a step that follows `loss` takes the gradient that this has formed, where MMD2 is exact. What
                   is measured does not: each of its epochs is a whole one. On CUDA a sort may come in between.
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
        self.held = views[0].held
        self.sizes = [view.held.n for view in views]  # n_x, n_y, over all ranks
        self._seed = torch.tensor(seed)
        self.batches: Batches | None = None  # of the cells that an update takes; None: all
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
        terms = self.held.of_first([float(term) for term in self._evaluate(self.mmd.of_loss)])
        if self.mmd.is_exact():
            self._gradient_of = self._moment()
        return LossTerms(total_loss(self.settings, *terms), *terms)

    def gradients(self) -> Pair:
        """Those of this epoch."""
        self._take_all()
        self._begin(self.mmd)
        self._evaluate(self.mmd)
        return tuple(view.gradient.clone() for view in self.views)

    def embeddings(self) -> Pair:
        """Those of the cells that are here."""
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
        """Differs whenever the parameters may differ: PyTorch counts what writes to a tensor."""
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
