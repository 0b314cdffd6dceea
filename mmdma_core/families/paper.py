"""The paper's four variants: two formulations x two ways to sum the Gaussian kernel, at the published costs."""

from mmdma_core import memory_models as memory
from mmdma_core.formulations import Dual, Primal
from mmdma_core.gaussian import dense, keops
from mmdma_core.registry import register
from mmdma_core.run import compose

PAPER = "Meng-Papaxanthos et al., LSMMD-MA, Table A1"
KEOPS = ("pykeops", keops.works_on)

for _name, _label, _requires, _formulation, _sums, _model in (
    ("primal", "primal", (), Primal, dense.sums, memory.composed(memory.primal, memory.dense)),
    (
        "primal-keops",
        "primal, KeOps (LSMMD-MA)",
        KEOPS,
        Primal,
        keops.sums,
        memory.composed(memory.primal, memory.keops),
    ),
    ("dual", "dual", (), Dual, dense.sums, memory.composed(memory.dual, memory.dense)),
    ("dual-keops", "dual, KeOps", KEOPS, Dual, keops.sums, memory.composed(memory.dual, memory.keops)),
):
    register(_name, label=_label, reference=PAPER, requires=_requires, memory_model=_model)(
        compose(_formulation, _sums)
    )
