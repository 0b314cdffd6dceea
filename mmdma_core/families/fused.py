"""The fastest exact variants: one pass over the pairs of points, everything constant formed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from mmdma_core import memory_models
from mmdma_core.registry import Unsupported, register
from mmdma_core.run import Run
from mmdma_core.settings import Settings

_REFERENCE = "this project, mmdma_core.fused"
_LARGEST_D = 64


def _cpu_only(device: torch.device) -> None:
    if device.type != "cpu":
        raise Unsupported("the fused variants have no CUDA kernel yet")


def _compose(formulation: str) -> Callable[..., Run]:
    def start(
        x: torch.Tensor,
        y: torch.Tensor,
        settings: Settings,
        device: torch.device,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> Run:
        if x.dtype != torch.float32:
            raise Unsupported("the fused variants compute in float32: give float32 views, or take 'primal' or 'dual'")
        if settings.n_components > _LARGEST_D:
            raise Unsupported(f"the fused variants take n_components <= {_LARGEST_D}, got {settings.n_components}")
        from mmdma_core import fused  # imports Numba

        view = {"primal": fused.FusedView, "dual": fused.FusedDualView}[formulation]
        return fused.FusedRun(view, x, y, settings, seed, parameters)

    return start


_REQUIRES = ("numba", _cpu_only)

register(
    "primal-fused",
    label="primal, fused",
    reference=_REFERENCE,
    requires=_REQUIRES,
    memory_model=memory_models.primal_fused,
)(_compose("primal"))
register(
    "dual-fused",
    label="dual, fused",
    reference=_REFERENCE,
    requires=_REQUIRES,
    memory_model=memory_models.dual_fused,
)(_compose("dual"))
