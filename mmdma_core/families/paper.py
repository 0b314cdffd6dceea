"""The paper's four variants: two formulations x two ways to sum the Gaussian kernel, at the published costs."""

from mmdma_core.families.registry import register
from mmdma_core.gaussian import dense, keops
from mmdma_core.models import costs, memory
from mmdma_core.objective.formulations import Dual, primal
from mmdma_core.training.run import compose

PAPER = "Meng-Papaxanthos et al., LSMMD-MA, Table A1"

for _formulation, _memory, _cost, _other in (
    (primal, memory.primal, costs.primal, "sparse"),
    (Dual, memory.dual, costs.dual, "kernel"),
):
    _name = _cost.__name__
    register(
        _name,
        label=_name,
        reference=PAPER,
        memory_model=memory.composed(_memory, memory.dense),
        cost_model=costs.composed(_cost, costs.dense),
        accepts=("dense", _other),
        formulation=_name,
    )(compose(_formulation, dense.sums))
    register(
        f"{_name}-keops",
        label="primal, KeOps (LSMMD-MA)" if _name == "primal" else "dual, KeOps",
        reference=PAPER,
        requires=("pykeops", keops.works_on),
        importer=keops.load,
        memory_model=memory.composed(_memory, memory.keops),
        cost_model=costs.composed(_cost, costs.keops),
        accepts=("dense", _other),
        formulation=_name,
    )(compose(_formulation, keops.sums))
