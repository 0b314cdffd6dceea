"""The paper's four variants: two formulations x two ways to sum the Gaussian kernel, at the published costs."""

from mmdma_core.formulations import Dual, Primal
from mmdma_core.gaussian import dense, keops
from mmdma_core.registry import register
from mmdma_core.run import compose

PAPER = "Meng-Papaxanthos et al., LSMMD-MA, Table A1"
KEOPS = ("pykeops", keops.works_on)

register("primal", label="primal", reference=PAPER)(compose(Primal, dense.sums))
register("primal-keops", label="primal, KeOps (LSMMD-MA)", reference=PAPER, requires=KEOPS)(compose(Primal, keops.sums))
register("dual", label="dual", reference=PAPER)(compose(Dual, dense.sums))
register("dual-keops", label="dual, KeOps", reference=PAPER, requires=KEOPS)(compose(Dual, keops.sums))
