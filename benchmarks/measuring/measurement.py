"""The measurement itself: make the data, prepare, warm up, time epochs, probe memory. Runs in a child of the guard."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import mmdma_core
from benchmarks.measuring import machine, memory
from mmdma_core import LossTerms, MissingDependency, Settings, Simulated, Unsupported, compilers
from mmdma_core.files.formats import of_share
from mmdma_core.fused.ranks import world
from mmdma_core.inputs import Given, as_views, is_sparse
from mmdma_core.settings import own_state

EARLY_EPOCHS = 3  # every measurement does that many: a warm-up and at least MIN_TIMED
MIN_TIMED = 2
_LATER = {"devices": 1, "whole": ()}  # fields that came when there were records already
MEASUREMENT = 2  # to be raised when it is measured differently, so that no older record is used again
# Cells of the first start, from which on what is compiled depends no more on how large n is: on a CPU one panel of
# points or several, on CUDA tiles, graphs and groups of columns. Triton's kernels depend on whether 16 divides it.
FEW = {"cpu": 304, "cuda": 100_000}
_FEW_FEATURES = 64
_CONTEXT_AT_MOST = memory.GIB  # a CUDA context takes less; what other processes hold is not this one's

Report = Callable[[dict[str, Any]], None]
Work = Callable[["Measurement", Report], None]


@dataclass(frozen=True)
class Limits:
    """How far a measurement may go.

    budget_s   timed epochs stop after this many seconds, though never before MIN_TIMED of them
    timeout_s  seconds after which the whole measurement is ended
    host_gib   host memory that it may add, on a CPU; None: 80 % of what is free
    gpu_gib    device memory that it may take, which emulates a smaller card; None: all of it
    """

    budget_s: float
    timeout_s: float
    host_gib: float | None
    gpu_gib: float | None


class DataSource(Protocol):
    """Where the two views come from, if not from mmdma_core.simulate: a frozen dataclass, part of the question.

    name  as it stands in records, in the place of a simulation's mode
    """

    name: ClassVar[str]

    def views(self, n: int, p: int, seed: int) -> tuple[Given, Given, np.ndarray]:
        """x (n, p), y, and match (n,): row i of x is the same cell as row match[i] of y."""


@dataclass(frozen=True)
class Measurement:
    """What is asked of one measurement.

    variant, n, p  one point of the grid
    source         fingerprint of what the variant runs, see benchmarks.measuring.fingerprint
    absent         modules that the variant requires and that cannot be imported here
    shape, seed    of mmdma_core.simulate; the same seed draws the starting values
    data_mode      its `noise`: 'exact' or 'fast'; the name of `data` where that is given
    epochs         epochs of a full run
    device         'cpu' or 'cuda'
    threads        CPU threads of the measuring process
    data           where the views come from instead; then the embeddings are evaluated, too
    devices        processes that share the cells, each with a GPU or its part of the threads
    """

    variant: str
    n: int
    p: int
    source: str
    absent: tuple[str, ...]
    settings: Settings
    shape: str
    seed: int
    data_mode: str
    epochs: int
    device: str
    threads: int
    limits: Limits
    data: DataSource | None = None
    devices: int = 1

    @property
    def key(self) -> str:
        """Digest of all of the above but the limits: the same question has the same key."""
        question = dataclasses.asdict(self) | {"limits": None, "measurement": MEASUREMENT}
        for name, before in _LATER.items():
            if question.get(name) == before:  # as before there was another value
                del question[name]
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]


def measure(asked: Measurement, report: Report, work: Work) -> None:
    """Do the work within the limits; it reports the fields of a record as they become known, `status` last.

    What it raises passes through, except that a variant lacks something or cannot treat the problem.
    """
    _set_threads(asked.threads)
    report({"threads": torch.get_num_threads()})
    _limit_memory(asked)
    try:
        with own_state(), compilers.explained():  # of which a method of a run then has little to set
            work(asked, report)
        report({"threads": torch.get_num_threads()})  # a variant may have set its own
    except MissingDependency as error:
        report({"status": "missing_dependency", "detail": str(error)})
    except Unsupported as error:
        report({"status": "unsupported", "detail": str(error)})


def time_epochs(asked: Measurement, report: Report) -> None:
    """Do the work of the scaling study: data, a first start, preparation, a warm-up, timed epochs, memory, losses."""
    device = torch.device(asked.device)
    missing = mmdma_core.variant(asked.variant).missing(device)
    if missing:
        raise MissingDependency(missing)
    report({"float32_bits": _float32_bits(device)})
    before = memory.host_bytes()
    report({"stage": "data", "host_before": before})
    views, data_s = _timed(device, _views, asked, device)
    match = views.match if asked.data else None
    report({"data_s": data_s, "density": _density(views.x), "stage": "first start"})
    report({"first_start_s": _timed(device, _start_small, asked, views, device)[1]})
    _reset_peaks(device)
    report({"stage": "prepare"})
    given = asked.variant, views.x, views.y, asked.settings, device, asked.seed
    run, prepare_s = _timed(device, mmdma_core.start, *given, group=world().group)
    del given
    del views  # what the variant needs of the data, it holds
    report({"prepare_s": prepare_s, "stage": "warm-up"})
    report({"warmup_s": _timed(device, run.step)[1], "stage": "epochs"})
    report(_timed_epochs(asked, run, device))
    report({"peak_host_bytes": max(0, memory.host_peak_bytes() - before)})
    if device.type == "cuda":
        report({"peak_torch_bytes": torch.cuda.max_memory_allocated()})
    if asked.data is not None:
        report({"stage": "metrics"})
        report({"metrics": _metrics(run, match)})
    report({"status": "ok"})


def _views(asked: Measurement, device: torch.device) -> Simulated:
    """Make the two views on the device, and their match."""
    if asked.data is None:
        rows = of_share(asked.n, _share())
        given = asked.shape, asked.n, asked.p, asked.seed
        return mmdma_core.simulate(*given, noise=asked.data_mode, device=device, rows=rows)
    x, y, match = asked.data.views(asked.n, asked.p, asked.seed)
    return Simulated(*as_views(x, y, device), match)


def few(n: int, p: int, device: str) -> tuple[int, int]:
    """Return fewer cells and features, at which a variant compiles all that it does at n and p: p <, = or > n."""
    n_few = n if n <= FEW[device] else FEW[device] + n % 16
    return n_few, min(p, _FEW_FEATURES) if p < n else n_few + min(p - n, _FEW_FEATURES)


def _start_small(asked: Measurement, views: Simulated, device: torch.device) -> None:
    """Start a small run of the same kind and do a step, so that what only a first one does is in none of the clocks.

    That is imports, compilation, the libraries that CUDA loads when they are called, the meeting of the ranks. (What
    depends on where the points lie is met in the warm-up.) What a small problem raises is of no concern: the run that
    is measured raises what it has to. Ranks go on together, so of these only what all of them raise.
    """
    with suppress(Unsupported if world().size > 1 else Exception):
        x, y = (_random_like(view, *few(asked.n, view.shape[1], device.type)) for view in (views.x, views.y))
        mmdma_core.start(asked.variant, x, y, asked.settings, device, asked.seed, group=world().group).step()
    _set_threads(asked.threads)  # a variant may have set its own, and does so again


def _random_like(view: torch.Tensor, n: int, p: int) -> torch.Tensor:
    """This process' share of a random view (n, p), of the form, the type and the device of the other one."""
    rows = of_share(n, _share())
    values = torch.rand(rows.stop - rows.start, p, generator=torch.Generator().manual_seed(0)).to(view)
    return values.to_sparse_csr() if is_sparse(view) else values


def _share() -> tuple[int, int]:
    ranks = world()
    return ranks.rank, ranks.size


def _density(view: torch.Tensor) -> float | None:
    return len(view.values()) / math.prod(view.shape) if is_sparse(view) else None


def _metrics(run: mmdma_core.Run, match: np.ndarray) -> dict[str, float]:
    """Evaluate how well the embeddings of this epoch match, see mmdma_core.metrics."""
    from mmdma_core.matching.metrics import foscttm  # imports scikit-learn, which most measurements do not need

    return {"epoch": run.epoch, "foscttm": foscttm(*run.embeddings(), match)}


@own_state()
def _float32_bits(device: torch.device) -> int:
    """Return the bits that products keep in the state in which variants compute: 24, with TF32 11, in bf16 8.

    It loads what the first product and sum on a GPU load, so that no variant pays for it in its times.
    """
    one = torch.eye(256, device=device)
    given = 1 + 0.5 ** torch.arange(1, 24, device=device)[:, None].float().expand(-1, len(one))
    return 1 + int((given @ one == given).all(1).sum())


def _timed(device: torch.device, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Return what the work returns and the wall seconds it took; the device's queue is empty before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    result = work(*arguments, **options)
    wait()
    return result, time.perf_counter() - begin


def _timed_epochs(asked: Measurement, run: mmdma_core.Run, device: torch.device) -> dict[str, Any]:
    seconds: list[float] = []
    losses = {}
    ranks = world()  # ranks time as many epochs as the first one does
    while ranks.broadcast(
        len(seconds) < asked.epochs and (len(seconds) < MIN_TIMED or math.fsum(seconds) < asked.limits.budget_s)
    ):
        seconds.append(round(_timed(device, run.step)[1], 9))
        if run.epoch == EARLY_EPOCHS:
            losses["early"] = _loss(run)
    losses["final"] = losses["early"] if run.epoch == EARLY_EPOCHS else _loss(run)
    return {"epoch_s": seconds, "losses": losses}


def _loss(run: mmdma_core.Run) -> dict[str, float]:
    """Return the terms at this epoch. A loss that is no number is an error of the variant, not a result."""
    terms: LossTerms = run.loss()
    if not math.isfinite(terms.total):
        raise FloatingPointError(f"the loss is {terms.total} after {run.epoch} epochs: {terms}")
    return {"epoch": run.epoch, **terms._asdict()}


def _set_threads(number: int) -> None:
    """Give every library the same threads, whatever the shell exports and whatever this process is a fork of."""
    os.environ.update(machine.threads_environment(number))
    torch.set_num_threads(number)
    threadpool_limits(number)


def _limit_memory(asked: Measurement) -> None:
    if asked.device == "cuda":
        if asked.limits.gpu_gib is not None:
            free, total = torch.cuda.mem_get_info()
            context = min(total - free, _CONTEXT_AT_MOST)
            fraction = (asked.limits.gpu_gib * memory.GIB - context) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, max(fraction, 0.0)))
    else:
        memory.limit_host_memory(int(asked.limits.host_gib * memory.GIB))


def _reset_peaks(device: torch.device) -> None:
    memory.reset_host_peak()
    if device.type == "cuda":
        gc.collect()  # what the first start has left in circles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
