"""Sweeps in a terminal: one line for each finished cell, a bar over those that remain, the time left."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tqdm import tqdm

import mmdma_core
from benchmarks.memory import GIB
from benchmarks.plan import Plan, duration
from benchmarks.records import Record
from benchmarks.study import Study
from benchmarks.sweep import alone, run_sweep

tqdm.monitor_interval = 0  # no monitor thread: this process forks


def run_sweeps(
    study: Study,
    variants: Sequence[str] | None = None,
    ps: Sequence[int] | None = None,
    ns: Sequence[int] | None = None,
    deadline: float | None = None,
) -> None:
    """Run the sweeps of the study, or those of some variants, p and n (which need not be in its grid).

    Raises ValueError for an unknown variant or an n or p that is too small.
    """
    variants = [mmdma_core.variant(name).name for name in variants or study.variants]
    ps, ns = list(ps or study.p), list(ns or study.n)
    if min(ps) < 1 or min(ns) < 4:
        raise ValueError("--p must be at least 1 and --n at least 4")
    with alone(study.root):
        _preload(variants, study.device)
        plan = Plan(study)
        bar = tqdm(
            total=plan.total,
            initial=len(plan.known),
            disable=None,  # no bar in a file
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} cells |{bar}|{postfix}",
        )
        with bar:
            for variant in variants:
                for p in ps:
                    for record, fresh in run_sweep(study, variant, p, ns, deadline):
                        plan.add(record)
                        if fresh:
                            bar.n = min(len(plan.known), plan.total)
                            bar.set_postfix_str(f"about {duration(plan.seconds_left())} left", refresh=True)
                            tqdm.write(line(record), file=sys.stdout)
                            sys.stdout.flush()


def line(record: Record) -> str:
    """A finished cell in one line: status, seconds per epoch, memory."""
    point = f"{record.variant:<24} n = {record.n:<8} p = {record.p:<6} {record.status:<8}"
    if record.status != "ok":
        return f"{point} {record.detail.splitlines()[-1] if record.detail else ''}"
    held = record.peak_host_bytes if record.peak_device_bytes is None else record.peak_device_bytes
    how = "extrapolated" if record.extrapolated else "measured"
    return (
        f"{point} {record.median_epoch_s:10.3e} s/epoch  {held / GIB:8.3f} GiB"
        f"  {record.epochs} epochs: {record.runtime_s:9.3g} s ({how})"
    )


def _preload(variants: Sequence[str], device: str) -> None:
    """Import here, once, what each child would import for itself.

    Not on a GPU: KeOps opens CUDA when it is imported, and CUDA does not survive a fork.
    """
    if device == "cpu":
        for name in variants:
            for requirement in mmdma_core.variant(name).requires:
                if isinstance(requirement, str) and importlib.util.find_spec(requirement):
                    importlib.import_module(requirement)
