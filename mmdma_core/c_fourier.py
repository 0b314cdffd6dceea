"""MMD2 from random Fourier features, fresh in every epoch: linear in n, and the gradient right on average."""

from __future__ import annotations

from mmdma_core.registry import register
from mmdma_core.fused.compose import compose, fourier_mmd
from mmdma_core import costs, models

for _formulation, _other, _memory, _cuda_memory, _cost in (
    ("primal", "sparse", models.primal_fused, models.cuda_primal, costs.fused_primal),
    ("dual", "kernel", models.dual_fused, models.cuda_dual, costs.fused_dual),
):
    register(
        f"{_formulation}-fourier",
        label=f"{_formulation}, Fourier features",
        reference="this project, after Rahimi and Recht 2007; Zhao and Meng 2015, FastMMD; Yu et al. 2016",
        requires=("numba",),
        exact=False,
        tolerance=0.15,  # 0.12 was found for the gradient of an epoch
        memory_model=_memory(models.fourier),
        cuda_memory_model=_cuda_memory(models.cuda_fourier),
        cost_model=costs.composed(_cost, costs.fourier),
        accepts=("dense", _other),
        formulation=_formulation,
        several_ranks=_formulation == "primal",
    )(compose(_formulation, fourier_mmd))
