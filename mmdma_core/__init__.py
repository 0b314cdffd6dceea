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

The paper is in settings, objective, formulations, kernels, run and simulation; compositions puts the variants together
and registry has them by name; models and advice say what they cost and choose; inputs, errors, host and compilers are
about what is given, and the machine. external, fused, files and matching go beyond the paper.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from mmdma_core import host

# Imported when they are asked for: PyTorch takes a second, scikit-learn and pandas would slow every measuring process,
# and who measures says first how threads are to wait, which is read when they are loaded.
_WHERE = {
    "compositions": ("Variant", "register", "start", "variant", "variants"),
    "errors": ("MissingDependency", "Unsupported"),
    "formulations": ("Dual", "Primal"),
    "inputs": ("Kernel",),
    "matching.estimator": ("MMDMA",),
    "matching.scverse": ("match",),
    "matching.simulated_counts": ("SimulatedCounts", "simulate_counts"),
    "objective": ("LossTerms", "reference_gradients", "reference_loss"),
    "run": ("Run", "TorchRun", "compose"),
    "settings": ("Settings",),
    "simulation": ("Simulated", "simulate"),
}
_LATE = {name: f"mmdma_core.{module}:{name}" for module, names in _WHERE.items() for name in names}

__all__ = sorted(_LATE)

_LATE |= {"io": "mmdma_core.files.io", "metrics": "mmdma_core.matching.metrics"}

host.prepare_caches()  # before a variant that runs imports Numba, KeOps or Triton, which look where they may write


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return globals().setdefault(name, pkgutil.resolve_name(_LATE[name]))
    raise AttributeError(f"module 'mmdma_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
