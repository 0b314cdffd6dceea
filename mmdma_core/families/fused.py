"""The fastest exact variants: one pass over the pairs of points, everything constant formed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch

from mmdma_core.errors import Unsupported
from mmdma_core.families.registry import register
from mmdma_core.fused.run import FormulationView, FusedView
from mmdma_core.models import costs, memory
from mmdma_core.objective.formulations import Dual
from mmdma_core.objective.inputs import Kernel, View, is_sparse
from mmdma_core.objective.settings import Settings
from mmdma_core.objective.sparse import SparsePrimal
from mmdma_core.training.run import Run

_REFERENCE = "this project, mmdma_core.fused"
_LARGEST_D = 64
_LEAST_CAPABILITY = (8, 0)


def _works_on(device: torch.device) -> str | None:
    """None if the fused variants run on the device, else what is missing."""
    if device.type == "cpu":
        return None
    found = torch.cuda.get_device_capability(device)
    if found < _LEAST_CAPABILITY:
        raise Unsupported(f"the fused variants need compute capability 8.0 or more, this GPU has {found[0]}.{found[1]}")
    try:
        import triton  # noqa: F401  (here, so that no measurement pays for it)
    except ImportError as error:
        return f"the fused variants need Triton on a GPU ({error}): pip install triton"
    return None


def _implementation(device: torch.device) -> ModuleType:
    if device.type == "cuda":
        from mmdma_core.fused import views_cuda  # imports Triton

        return views_cuda
    from mmdma_core.fused import views_cpu  # imports Numba

    return views_cpu


def _compose(formulation: str) -> Callable[..., Run]:
    def start(
        x: View,
        y: View,
        settings: Settings,
        device: torch.device,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> Run:
        if x.dtype != torch.float32:
            raise Unsupported("the fused variants compute in float32: give float32 views, or take 'primal' or 'dual'")
        if settings.n_components > _LARGEST_D:
            raise Unsupported(f"the fused variants take n_components <= {_LARGEST_D}, got {settings.n_components}")
        implementation = _implementation(device)

        def view(data: View, settings: Settings) -> FusedView:
            if isinstance(data, Kernel):
                return FormulationView(Dual(data), len(data), settings, data)
            if is_sparse(data):
                return FormulationView(SparsePrimal(data), data.shape[0], settings, data)
            return implementation.VIEWS[formulation](data, settings)

        return implementation.start(view, x, y, settings, seed, parameters)

    return start


for _formulation, _other, _memory, _cost in (
    ("primal", "sparse", memory.primal_fused, costs.fused),
    ("dual", "kernel", memory.dual_fused, costs.dual_fused),
):
    register(
        f"{_formulation}-fused",
        label=f"{_formulation}, fused",
        reference=_REFERENCE,
        requires=("numba", _works_on),
        memory_model=_memory,
        cost_model=_cost,
        accepts=("dense", _other),
        formulation=_formulation,
    )(_compose(_formulation))
