"""The variants that come with the project, in the order of their names in tables: the paper's four first.

A variant is a composition: a formulation (primal, dual) x a way to sum the Gaussian kernel, or a run of its own. What
it computes lies in the modules that are imported here; `mmdma_core.registry.Variant` says what each field means.
"""

from __future__ import annotations

import functools

import torch

from mmdma_core import kernels, models
from mmdma_core.external import original_2019, published
from mmdma_core.formulations import Dual, primal
from mmdma_core.fused import compose as fused
from mmdma_core.fused import models as fused_models
from mmdma_core.objective import total_loss
from mmdma_core.registry import Variant, register, start, variant, variants
from mmdma_core.run import TorchRun, compose

__all__ = ["Variant", "register", "start", "variant", "variants"]  # the registry, once these are in it

PAPER = "Meng-Papaxanthos et al., LSMMD-MA, Table A1"
_ORIGINAL_2020 = "Singh et al. 2020, Unsupervised manifold alignment for single-cell multi-omics data"
_ACCEPTS = {"primal": ("dense", "sparse"), "dual": ("dense", "kernel")}


class OriginalRun(TorchRun):
    """The second original implementation (Singh et al. 2020), written afresh: dual, Adam with amsgrad, biased MMD2.

    It weighs |alpha^T K alpha - I| by l1 and |K - K alpha alpha^T K| by l2; l1 = lambda1 / sqrt(p) and
    l2 = lambda2 / (n sqrt(p)) give the loss of this project, and stand in mmdma_core.formulations.Dual. Every term of
    the loss comes to the host in every epoch, so that a device never runs ahead.
    """

    amsgrad = True

    def step(self) -> None:
        terms = self._terms()
        gradients = torch.autograd.grad(total_loss(self.settings, *terms), self.parameters)
        self.last_terms = [term.item() for term in terms]
        self._adam.step(gradients)
        self.epoch += 1


# The paper's four: two formulations x two ways to sum the Gaussian kernel, at the published costs.
for _name, _formulation, _needs, _label in (
    ("primal", primal, models.primal, "primal, KeOps (LSMMD-MA)"),
    ("dual", Dual, models.dual, "dual, KeOps"),
):
    register(
        _name,
        label=_name,
        reference=PAPER,
        accepts=_ACCEPTS[_name],
        formulation=_name,
        **models.composed(_needs, models.dense),
    )(compose(_formulation, kernels.dense_sums))
    register(
        f"{_name}-keops",
        label=_label,
        reference=PAPER,
        requires=("pykeops", kernels.keops_works_on),
        importer=kernels.load_keops,
        accepts=_ACCEPTS[_name],
        formulation=_name,
        **models.composed(_needs, models.keops),
    )(compose(_formulation, kernels.keops_sums))

# The fastest exact ones: one pass over the pairs of points, everything constant formed once. Then MMD2 from random
# Fourier features, fresh in every epoch: linear in n, and the gradient right on average.
for _name in ("primal", "dual"):
    register(
        f"{_name}-fused",
        label=f"{_name}, fused",
        reference="this project, mmdma_core.fused",
        requires=("numba", fused.missing_for_exact),
        accepts=_ACCEPTS[_name],
        formulation=_name,
        several_ranks=_name == "primal",
        **fused_models.composed(_name, fused_models.PAIRS),
    )(fused.compose(_name, fused.exact_mmd))
for _name in ("primal", "dual"):
    register(
        f"{_name}-fourier",
        label=f"{_name}, Fourier features",
        reference="this project, after Rahimi and Recht 2007; Zhao and Meng 2015, FastMMD; Yu et al. 2016",
        requires=("numba",),
        exact=False,
        tolerance=0.15,  # 0.12 was found for the gradient of an epoch
        accepts=_ACCEPTS[_name],
        formulation=_name,
        several_ranks=_name == "primal",
        takes_batches=_name == "primal",
        **fused_models.composed(_name, fused_models.FOURIER),
    )(fused.compose(_name, fused.fourier_mmd, fused.take_batches if _name == "primal" else None))

for _mode, _needs in (("primal", models.published_primal), ("dual", models.published_dual)):
    for _symbolic in (False, True):
        _name = f"published-{_mode}{'-keops' if _symbolic else ''}"
        register(
            _name,
            label=f"published {_mode}{', KeOps' if _symbolic else ''}",
            reference="the package lsmmdma 0.1.11 itself",
            requires=(  # KeOps finds CUDA first
                *published.MODULES,
                *([kernels.keops_works_on] if _symbolic else []),
                published.import_package,
            ),
            importer=published.load,
            install="pip install --no-deps lsmmdma, and pip install absl-py pykeops scikit-learn tenacity",
            formulation=_mode,
            **models.composed(_needs, models.keops if _symbolic else models.published_dense),
        )(functools.partial(published.PublishedRun, _mode, _symbolic))

register(
    "original-2019",
    label="original 2019, TensorFlow (biased MMD)",
    reference="Liu et al. 2019, Jointly embedding multiple single-cell omics measurements",
    requires=("tensorflow", original_2019.works_on),
    estimator="biased",
    formulation="dual",
    importer=original_2019.load,
    install="pip install tensorflow-cpu, on a GPU 'tensorflow[and-cuda]'",
    **models.composed(models.dual, models.broadcast),  # the same tensors as those of the next
)(original_2019.GraphRun)
register(
    "original-2020",
    label="original 2020 (biased MMD)",
    reference=_ORIGINAL_2020,
    estimator="biased",
    formulation="dual",
    **models.composed(models.dual, models.broadcast),
)(compose(Dual, kernels.broadcast_sums, OriginalRun))
register(  # its second estimator of MMD2, meant for more cells, is unbiased
    "original-2020-stream",
    label="original 2020, split sample",
    reference=_ORIGINAL_2020,
    exact=False,
    estimator="unbiased",
    formulation="dual",
    **models.composed(models.dual, models.split),
)(compose(Dual, kernels.split_sums, OriginalRun))
# For p << n an epoch of it is linear in n, without KeOps. Its MMD2 is right on average over the orders of the cells,
# which decide the pairs; a run keeps its pairs, so that over the epochs of one run the error stays.
register(
    "linear-time",
    label="primal, linear-time MMD",
    reference="Gretton et al. 2012, A kernel two-sample test, Lemma 14",
    exact=False,
    tolerance=0.2,  # 0.12 for MMD2, 0.18 for the gradient were found with 22 pairs
    estimator="unbiased",
    accepts=("dense", "sparse"),
    **models.composed(models.primal, models.linear),
)(compose(primal, kernels.linear_sums))
