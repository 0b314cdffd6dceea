"""MMD-MA: matching the cells of two single-cell modalities, in several variants of one objective.

Notation, paper -> code:

    X, Y            x, y                (n_x, p_x), (n_y, p_y): the two views, rows are cells
    n, p            n, p                number of cells, number of features
    d               n_components        dimension of the embeddings
    W, alpha        theta, parameters   (p, d) in the primal, (n, d) in the dual
    X W, K alpha    e, embeddings()     (n, d)
    K = X X^T       kernel              (n, n), linear
    sigma           sigma               k(a, b) = exp(-|a - b|^2 / (2 sigma))
    MMD^2           squared_mmd, mmd
    pen, dis        penalty, distortion
    lambda_1, _2    lambda1, lambda2
"""

import mmdma_core.families  # noqa: F401  (registers the variants)
from mmdma_core.formulations import Dual, Primal
from mmdma_core.inputs import Kernel
from mmdma_core.objective import LossTerms
from mmdma_core.reference import reference_gradients, reference_loss
from mmdma_core.registry import MissingDependency, Unsupported, Variant, register, start, variant, variants
from mmdma_core.run import Run, TorchRun, compose
from mmdma_core.settings import Settings
from mmdma_core.simulate import Simulated, simulate

__all__ = [
    "MMDMA",
    "Dual",
    "Kernel",
    "LossTerms",
    "MissingDependency",
    "Primal",
    "Run",
    "Settings",
    "Simulated",
    "TorchRun",
    "Unsupported",
    "Variant",
    "compose",
    "reference_gradients",
    "reference_loss",
    "register",
    "simulate",
    "start",
    "variant",
    "variants",
]


def __getattr__(name: str) -> object:
    """MMDMA is imported when it is asked for: scikit-learn and pandas would slow every measuring process."""
    if name == "MMDMA":
        from mmdma_core.estimator import MMDMA

        return MMDMA
    raise AttributeError(f"module 'mmdma_core' has no attribute {name!r}")
