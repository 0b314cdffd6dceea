"""The fastest exact variants: one pass over the pairs of points, everything constant formed once."""

from __future__ import annotations

from mmdma_core.registry import register
from mmdma_core.fused.compose import compose, exact_mmd, missing_for_exact
from mmdma_core import costs, models

for _formulation, _other, _memory, _cuda_memory, _cost in (
    ("primal", "sparse", models.primal_fused, models.cuda_primal, costs.fused_primal),
    ("dual", "kernel", models.dual_fused, models.cuda_dual, costs.fused_dual),
):
    register(
        f"{_formulation}-fused",
        label=f"{_formulation}, fused",
        reference="this project, mmdma_core.fused",
        requires=("numba", missing_for_exact),
        memory_model=_memory(models.fused_pairs),
        cuda_memory_model=_cuda_memory(models.cuda_pairs),
        cost_model=costs.composed(_cost, costs.fused_pairs),
        accepts=("dense", _other),
        formulation=_formulation,
        several_ranks=_formulation == "primal",
    )(compose(_formulation, exact_mmd))
