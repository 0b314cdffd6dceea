"""Sweeps: one variant at one p, along n. Takes known records, stops at the first n that does not fit."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence

from tqdm import tqdm

import mmdma_core
from benchmarks.measuring import guard, machine, records
from benchmarks.measuring.alone import alone
from benchmarks.measuring.records import Record
from benchmarks.study import running
from benchmarks.study.plan import Plan
from benchmarks.study.progress import Progress
from benchmarks.study.study import ENDS_A_SWEEP, Study


def run_sweeps(
    study: Study,
    variants: Sequence[str] | None = None,
    ps: Sequence[int] | None = None,
    ns: Sequence[int] | None = None,
    budget_s: float = float("inf"),
    retry: bool = False,
) -> None:
    """Run the sweeps of the study, or those of some variants, p and n (which need not be in its grid).

    budget_s  no cell goes on after so many seconds; the budget of each sweep counts besides it
    retry     measure cells again that ended in an error

    Raises ValueError for an unknown variant or an n or p that is too small.
    """
    variants = [mmdma_core.variant(name).name for name in variants or study.variants]
    ps = sorted(ps or study.p)
    if ps[0] < 1 or (ns and min(ns) < 4):
        raise ValueError("--p must be at least 1 and --n at least 4")
    end = time.monotonic() + budget_s
    with alone(study.device, study.root, study.devices):
        guard.preload(variants, study.device)
        with Progress(Plan(study)) as progress:
            for variant in variants:
                for p in ps:
                    budget = min(study.sweep_budget_s, end - time.monotonic())
                    for record in _sweep(study, variant, p, sorted(ns or study.ns(variant, p)), budget, retry):
                        progress.finished(record)


def _sweep(study: Study, variant: str, p: int, ns: Sequence[int], budget_s: float, retry: bool) -> Iterator[Record]:
    """The record of each n that was not known; each is written as its cell ends."""
    who = machine.describe(study.device, study.threads)
    end = time.monotonic() + budget_s
    limit = None  # the record that implies that no larger n fits
    for n in ns:
        record = study.known(variant, n, p)
        if record is None or (retry and record.status == "error"):
            records.set_aside_if_unreadable(study.path(variant, n, p))
            why = study.asked_again(variant, n, p)
            if why:
                tqdm.write(why, file=sys.stdout)
            record = _measure(study, variant, n, p, limit, end, who)
            record.limits["sweep_budget_s"] = budget_s
            records.write(record, study.path(variant, n, p))
            yield record
        if study.stop_after_failure and record.status in ENDS_A_SWEEP:
            limit = record


def _measure(study: Study, variant: str, n: int, p: int, limit: Record | None, end: float, who: dict) -> Record:
    cell = study.cell(variant, n, p)
    if limit:
        skipped = guard.new_record(cell, "skipped", f"{limit.status} at n = {limit.n}", who)
        return dataclasses.replace(skipped, implied_by=limit.n)
    left = end - time.monotonic()
    if left <= 0:
        return guard.new_record(cell, "skipped", "no time left in the sweep's budget", who)
    with running.told(study, variant, p, n):
        return guard.measure_within(cell, who, left)
