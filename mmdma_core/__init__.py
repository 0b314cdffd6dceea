"""MMD-MA: matching the cells of two single-cell modalities, in several variants of one objective.

Notation, paper -> code::

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

Rooms from the ground up: errors, caches and ranks, compiler, gaussian, models, objective, files and simulation,
training, fused, families, matching. A room imports only rooms below it; this file and __main__ are the public face.
"""

import pkgutil

import mmdma_core.families  # noqa: F401  (registers the variants)
from mmdma_core import caches
from mmdma_core.errors import MissingDependency, Unsupported
from mmdma_core.families.registry import Variant, register, start, variant, variants
from mmdma_core.objective.formulations import Dual, Primal
from mmdma_core.objective.inputs import Kernel
from mmdma_core.objective.reference import reference_gradients, reference_loss
from mmdma_core.objective.settings import Settings
from mmdma_core.objective.terms import LossTerms
from mmdma_core.simulation.simulate import Simulated, simulate
from mmdma_core.training.run import Run, TorchRun, compose

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
    "match",
    "reference_gradients",
    "reference_loss",
    "register",
    "simulate",
    "start",
    "variant",
    "variants",
]

caches.prepare()  # before a variant that runs imports Numba, KeOps or Triton, which look where they may write

# Imported when they are asked for: scikit-learn and pandas would slow every measuring process.
_LATE = {
    "MMDMA": "mmdma_core.matching.estimator.MMDMA",
    "io": "mmdma_core.files.io",
    "match": "mmdma_core.matching.scverse.match",
    "metrics": "mmdma_core.matching.metrics",
}


def __getattr__(name: str) -> object:
    if name in _LATE:
        return pkgutil.resolve_name(_LATE[name])
    raise AttributeError(f"module 'mmdma_core' has no attribute {name!r}")
