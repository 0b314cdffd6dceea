"""The paper's four variants: two formulations x two ways to sum the Gaussian kernel, at the published costs."""

from mmdma_core.registry import register
from mmdma_core import dense, kernels
from mmdma_core import costs, models
from mmdma_core.formulations import Dual, primal
from mmdma_core.run import compose

PAPER = "Meng-Papaxanthos et al., LSMMD-MA, Table A1"

for _formulation, _memory, _cost, _other in (
    (primal, models.primal, costs.primal, "sparse"),
    (Dual, models.dual, costs.dual, "kernel"),
):
    _name = _cost.__name__
    register(
        _name,
        label=_name,
        reference=PAPER,
        memory_model=models.composed(_memory, models.dense),
        cost_model=costs.composed(_cost, costs.dense),
        accepts=("dense", _other),
        formulation=_name,
    )(compose(_formulation, dense.sums))
    register(
        f"{_name}-keops",
        label="primal, KeOps (LSMMD-MA)" if _name == "primal" else "dual, KeOps",
        reference=PAPER,
        requires=("pykeops", kernels.works_on),
        importer=kernels.load,
        memory_model=models.composed(_memory, models.keops),
        cost_model=costs.composed(_cost, costs.keops),
        accepts=("dense", _other),
        formulation=_name,
    )(compose(_formulation, kernels.sums))

from mmdma_core import c_fused, c_fourier  # isort: skip
from mmdma_core.external import published, original_2019  # isort: skip
from mmdma_core import c_2020, c_linear  # isort: skip
