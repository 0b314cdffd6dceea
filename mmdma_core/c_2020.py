"""The second original implementation (Singh et al. 2020), written afresh: dual, Adam with amsgrad, biased MMD2.

It weighs |alpha^T K alpha - I| by l1 and |K - K alpha alpha^T K| by l2; l1 = lambda1 / sqrt(p) and
l2 = lambda2 / (n sqrt(p)) give the loss of this project, and stand in mmdma_core.formulations.Dual. Its
second estimator of MMD2, meant for more cells, is unbiased.
"""

from __future__ import annotations

import torch

from mmdma_core.registry import register
from mmdma_core import broadcast, sampled
from mmdma_core import costs, models
from mmdma_core.formulations import Dual
from mmdma_core.terms import total_loss
from mmdma_core.run import TorchRun, compose

_REFERENCE = "Singh et al. 2020, Unsupervised manifold alignment for single-cell multi-omics data"


class OriginalRun(TorchRun):
    """Every term of the loss comes to the host in every epoch, so that a device never runs ahead."""

    amsgrad = True

    def step(self) -> None:
        terms = self._terms()
        gradients = torch.autograd.grad(total_loss(self.settings, *terms), self.parameters)
        self.last_terms = [term.item() for term in terms]
        self._adam.step(gradients)
        self.epoch += 1


register(
    "original-2020",
    label="original 2020 (biased MMD)",
    reference=_REFERENCE,
    estimator="biased",
    memory_model=models.ORIGINALS["original-2020"],
    formulation="dual",
    cost_model=costs.composed(costs.dual, costs.broadcast),
)(compose(Dual, broadcast.sums, OriginalRun))
register(
    "original-2020-stream",
    label="original 2020, split sample",
    reference=_REFERENCE,
    exact=False,
    estimator="unbiased",
    memory_model=models.ORIGINALS["original-2020-stream"],
    formulation="dual",
    cost_model=costs.composed(costs.dual, costs.halves),
)(compose(Dual, sampled.split_sums, OriginalRun))
