"""A run put together: views of one formulation on their device, and a way to MMD2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from mmdma_core import compilers
from mmdma_core.errors import Unsupported
from mmdma_core.formulations import Dual, SparsePrimal
from mmdma_core.fused.ranks import ranks_of
from mmdma_core.fused.run import MMD, Batches, FormulationView, FusedRun, FusedView
from mmdma_core.inputs import Kernel, Ranks, View, is_sparse
from mmdma_core.registry import BatchSize, no_batches
from mmdma_core.settings import Settings

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PairOfRanks = tuple[Ranks, Ranks]  # with the rows of x, and of y

LARGEST_D = 64
_LEAST_CAPABILITY = (8, 0)
EXACT_UP_TO = 20_000  # cells of the larger view up to which the loss of an estimate is exact
_WHOLE_UP_TO, _AUTO_SIZE = 50_000, 20_000  # cells up to which 'auto' takes all, and those of its samples beyond


def compose(
    formulation: str, mmd: Callable[..., MMD], batches: Callable[..., None] | None = None
) -> Callable[..., FusedRun]:
    """Return the `start` function of a variant.

    mmd(n_x, n_y, settings, device, ranks) makes its way to MMD2, batches(run, batch_size, n_updates) lets an update
    take a part of the cells.
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
        module = _views_on(device)

        def view(data: View, ranks: Ranks) -> FusedView:
            if isinstance(data, Kernel):
                return FormulationView(Dual(data), settings, data, ranks)
            if is_sparse(data):
                return FormulationView(SparsePrimal(data, ranks), settings, data, ranks)
            return module.VIEWS[formulation](data, settings, ranks)

        ranks = tuple(ranks_of(group, device, len(data)) for data in (x, y))
        chosen = mmd(ranks[0].n, ranks[1].n, settings, device, ranks)
        run = module.RUN((view(x, ranks[0]), view(y, ranks[1])), chosen, settings, x, seed, parameters)
        if batches and batch_size is not None:
            batches(run, batch_size, n_updates)
        return run

    return start


def on_gpu(device: torch.device) -> bool:
    """Tell whether to take the modules for CUDA; Triton's interpreter runs them on a CPU, too."""
    return device.type == "cuda"


def _views_on(device: torch.device) -> ModuleType:
    if on_gpu(device):
        from mmdma_core.fused import views_cuda

        return views_cuda
    from mmdma_core.fused import views_cpu  # imports Numba

    return views_cpu


def exact_mmd(n_x: int, n_y: int, settings: Settings, device: torch.device, ranks: PairOfRanks | None = None) -> MMD:
    """Return the exact MMD2, one pass over the pairs of points."""
    sizes = n_x, n_y, settings.n_components, settings.sigma, settings.unbiased
    if on_gpu(device):
        from mmdma_core.fused import pairs_cuda  # imports Triton

        tile = pairs_cuda.fastest_tile(max(n_x, n_y), settings.n_components, device)
        return pairs_cuda.FusedMMD(*sizes, ranks[0].broadcast(tile) if ranks else tile, ranks)
    from mmdma_core.fused.pairs_cpu import FusedMMD  # imports Numba

    return FusedMMD(*sizes, ranks)


def missing_for_exact(device: torch.device) -> str | None:
    """Return what `exact_mmd` lacks on the device, None if it runs. Raises Unsupported for a GPU that is too old."""
    if device.type == "cpu":
        return None
    found = torch.cuda.get_device_capability(device)
    if found < _LEAST_CAPABILITY:
        raise Unsupported(f"the fused variants need compute capability 8.0 or more, this GPU has {found[0]}.{found[1]}")
    return compilers.why_no_triton()  # here, so that no measurement pays for its import and what it compiles


def fourier_mmd(n_x: int, n_y: int, settings: Settings, device: torch.device, ranks: PairOfRanks | None = None) -> MMD:
    """Return MMD2 from Fourier features; the loss has the exact one, if it runs here and the problem is small."""
    exact = None
    if max(n_x, n_y) <= EXACT_UP_TO:
        with suppress(Unsupported):
            if missing_for_exact(device) is None:
                exact = exact_mmd(n_x, n_y, settings, device, ranks)
    return _fourier(n_x, n_y, settings, device, exact, ranks and ranks[0])


def _fourier(
    n_x: int, n_y: int, settings: Settings, device: torch.device, exact: MMD | None, ranks: Ranks | None
) -> MMD:
    from mmdma_core.fused.fourier import CudaFrequencies, FourierMMD  # imports Numba

    if on_gpu(device):
        return FourierMMD(n_x, n_y, settings, partial(CudaFrequencies, device=device), exact, ranks)
    from mmdma_core.fused.fourier_cpu import CpuFrequencies

    return FourierMMD(n_x, n_y, settings, CpuFrequencies, exact, ranks)


def take_batches(run: FusedRun, size: int | Literal["auto"], n_updates: int) -> None:
    """Let each update take `size` cells of each view, see Batches; 'auto': if there are very many."""
    views = zip(run.views, run.sizes, strict=True)
    able = run.mmd.linear_in_n and all(hasattr(view, "take") and view.rows < n for view, n in views)
    if size == "auto":
        if not able or max(run.sizes) <= _WHOLE_UP_TO:
            return
        size = _AUTO_SIZE
    if not able:
        raise no_batches()
    sizes = [min(size, n) for n in run.sizes]
    unbiased = replace(run.settings, unbiased=True)  # a biased MMD2 would depend on the size of the sample
    sampled = _fourier(*sizes, unbiased, run.parameters[0].device, None, run.ranks)
    run.batch_size, run.batches = size, Batches(run.views, sizes, sampled, run.mmd, n_updates)
