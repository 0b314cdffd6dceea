"""A run put together: views of one formulation on their device, and a way to MMD2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from mmdma_core import compilers
from mmdma_core.errors import Unsupported
from mmdma_core.formulations import Dual, SparsePrimal
from mmdma_core.fused.parts import AUTO_SIZE, MMD, WHOLE_UP_TO, Batches, FusedView
from mmdma_core.fused.ranks import shared
from mmdma_core.fused.run import FormulationView, FusedRun
from mmdma_core.inputs import Kernel, Rows, View, is_sparse
from mmdma_core.registry import BatchSize, no_batches
from mmdma_core.settings import Settings

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Held = tuple[Rows, Rows]  # the rows of x and of y that are here

LARGEST_D = 64
_LEAST_CAPABILITY = (8, 0)
EXACT_UP_TO = 20_000  # cells of the larger view up to which the loss of an estimate is exact


def compose(
    formulation: str, mmd: Callable[..., MMD], batches: Callable[..., None] | None = None
) -> Callable[..., FusedRun]:
    """Return the `start` function of a variant.

    mmd(n_x, n_y, settings, device, held) makes its way to MMD2, batches(run, batch_size, n_updates) lets an update take
    a part of the cells.
    """

    def start(
        x: View,
        y: View,
        settings: Settings,
        device: torch.device,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
        group: ProcessGroup | None = None,
        batch_size: BatchSize = None,
        n_updates: int = 0,
    ) -> FusedRun:
        if x.dtype != torch.float32:
            raise Unsupported("the fused variants compute in float32: give float32 views, or take 'primal' or 'dual'")
        if settings.n_components > LARGEST_D:
            raise Unsupported(f"the fused variants take n_components <= {LARGEST_D}, got {settings.n_components}")
        module = views_on(device)

        def view(data: View, held: Rows) -> FusedView:
            if isinstance(data, Kernel):
                return FormulationView(Dual(data), settings, data, held)
            if is_sparse(data):
                return FormulationView(SparsePrimal(data, held), settings, data, held)
            return module.VIEWS[formulation](data, settings, held)

        held = tuple(shared(data.shape[0], group, device) for data in (x, y))
        made = mmd(held[0].n, held[1].n, settings, device, held)
        run = module.RUN((view(x, held[0]), view(y, held[1])), made, settings, x, seed, parameters)
        if batches and batch_size is not None:
            batches(run, batch_size, n_updates)
        return run

    return start


def on_gpu(device: torch.device) -> bool:
    """Whether the modules for CUDA are taken; Triton's interpreter runs them on a CPU, too."""
    return device.type == "cuda"


def views_on(device: torch.device) -> ModuleType:
    """The module of the views on a device."""
    if on_gpu(device):
        from mmdma_core.fused import views_cuda

        return views_cuda
    from mmdma_core.fused import views_cpu  # imports Numba

    return views_cpu


def exact_mmd(n_x: int, n_y: int, settings: Settings, device: torch.device, held: Held | None = None) -> MMD:
    """The exact MMD2, one pass over the pairs of points."""
    sizes = n_x, n_y, settings.n_components, settings.sigma, settings.unbiased
    if on_gpu(device):
        from mmdma_core.fused.pairs_cuda import fastest  # imports Triton

        return fastest(*sizes, device, held)
    from mmdma_core.fused.pairs_cpu import FusedMMD  # imports Numba

    return FusedMMD(*sizes, held)


def missing_for_exact(device: torch.device) -> str | None:
    """None if `exact_mmd` runs on the device, else what is missing. Raises Unsupported for a GPU that is too old."""
    if device.type == "cpu":
        return None
    found = torch.cuda.get_device_capability(device)
    if found < _LEAST_CAPABILITY:
        raise Unsupported(f"the fused variants need compute capability 8.0 or more, this GPU has {found[0]}.{found[1]}")
    return compilers.why_no_triton()  # here, so that no measurement pays for its import and what it compiles


def fourier_mmd(n_x: int, n_y: int, settings: Settings, device: torch.device, held: Held | None = None) -> MMD:
    """MMD2 from Fourier features; with the exact one for the loss, if it runs here and the problem is small enough."""
    exact = None
    if max(n_x, n_y) <= EXACT_UP_TO:
        with suppress(Unsupported):
            if missing_for_exact(device) is None:
                exact = exact_mmd(n_x, n_y, settings, device, held)
    return _fourier(n_x, n_y, settings, device, exact, held and held[0])


def _fourier(n_x: int, n_y: int, settings: Settings, device: torch.device, exact: MMD | None, held: Rows | None) -> MMD:
    if on_gpu(device):
        from mmdma_core.fused.fourier import CudaFourierMMD

        return CudaFourierMMD(n_x, n_y, settings, exact, device, held)
    from mmdma_core.fused.fourier_cpu import CpuFourierMMD  # imports Numba

    return CpuFourierMMD(n_x, n_y, settings, exact, held)


def take_batches(run: FusedRun, size: int | Literal["auto"], n_updates: int) -> None:
    """Let each update take `size` cells of each view, see mmdma_core.fused.parts; 'auto': if there are very many."""
    views = zip(run.views, run.sizes, strict=True)
    able = run.mmd.linear_in_n and all(hasattr(view, "take") and view.rows < n for view, n in views)
    if size == "auto":
        if not able or max(run.sizes) <= WHOLE_UP_TO:
            return
        size = AUTO_SIZE
    if not able:
        raise no_batches()
    sizes = [min(size, n) for n in run.sizes]
    unbiased = replace(run.settings, unbiased=True)  # a biased MMD2 would depend on the size of the sample
    sampled = _fourier(*sizes, unbiased, run.parameters[0].device, None, run.held)
    run.batch_size, run.batches = size, Batches(run.views, sizes, sampled, run.mmd, n_updates)
