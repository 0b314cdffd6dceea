"""Sweeps in a terminal: one line for each finished cell, a bar over those that remain, the time left.

Sweeps: one variant at one p, along n. Takes known records, stops at the first n that does not fit.

A cell beside which others took more than half of the cores or of the GPU is measured once more when the sweep ends: at
its last n, or at the first that does not fit. If that one fits then, the sweep goes on.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Generator, Iterator, Sequence

from tqdm import tqdm

import mmdma_core
from benchmarks import plan
from benchmarks.measuring import guard, machine, others, records
from benchmarks.measuring.device import alone
from benchmarks.measuring.records import Record
from benchmarks.plan import Plan, duration
from benchmarks.study import ENDS_A_SWEEP, Study
from mmdma_core.models import in_words

tqdm.monitor_interval = 0  # no monitor thread: this process forks


class Progress:
    """The lines go to stdout, the bar to stderr, where it is shown in a terminal only."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bar = tqdm(
            total=plan.total,
            initial=len(plan.known),
            disable=None,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} cells |{bar}|{postfix}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def finished(self, record: Record) -> None:
        """A cell has ended."""
        self._plan.add(record)
        self._bar.n = min(len(self._plan.known), self._plan.total)
        self._bar.set_postfix_str(f"about {duration(self._plan.seconds_left())} left", refresh=True)
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
        f"{point} {record.median_epoch_s:10.3e} s/epoch  {in_words(held):>10}"
        f"  {record.epochs} epochs: {record.runtime_s:9.3g} s ({how})"
    )


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
    """The record of each n that was not known or is measured once more; each is written as its cell ends."""
    who = machine.describe(study.device, study.threads)
    end = time.monotonic() + budget_s
    limit = None  # the record that implies that no larger n fits
    at_the_end: list[Record] = []
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
            record = yield from _once_more(study, record, budget_s, end, who)
            limit = record if record.status in ENDS_A_SWEEP else limit
        else:
            at_the_end.append(record)
    for record in at_the_end:
        yield from _once_more(study, record, budget_s, end, who)


def _once_more(study: Study, first: Record, budget_s: float, end: float, who: dict) -> Generator[Record, None, Record]:
    """Measure a cell again beside which others took too much, if that has not been done; returns the record that stays.

    An ok one stays before one that is not, of two alike the one beside which others took less.
    """
    if first.status not in ("ok", *ENDS_A_SWEEP) or first.repeated or (first.others or 0.0) <= others.AGAIN:
        return first
    where = f"{first.variant} n = {first.n} p = {first.p}: others took {first.others_in_words}"
    second = _measure(study, first.variant, first.n, first.p, None, end, who)
    if second.status == "skipped":
        tqdm.write(f"{where}, the sweep has no time left to measure it once more", file=sys.stdout)
        return first
    second.limits["sweep_budget_s"] = budget_s
    stays = min(first, second, key=_how_bad)
    stays.repeated = True
    records.write(stays, study.path(first.variant, first.n, first.p))
    then, which = second.others_in_words, "first" if stays is first else "second"
    tqdm.write(f"{where}, and {then} when it was measured once more: the {which} stays", file=sys.stdout)
    yield stays
    return stays


def _how_bad(record: Record) -> tuple[bool, float]:
    return record.status != "ok", 1.0 if record.others is None else record.others


def _measure(study: Study, variant: str, n: int, p: int, limit: Record | None, end: float, who: dict) -> Record:
    cell = study.cell(variant, n, p)
    if limit:
        skipped = guard.new_record(cell, "skipped", f"{limit.status} at n = {limit.n}", who)
        return dataclasses.replace(skipped, implied_by=limit.n)
    left = end - time.monotonic()
    if left <= 0:
        return guard.new_record(cell, "skipped", "no time left in the sweep's budget", who)
    with plan.told(study, variant, p, n):
        return guard.measure_within(cell, who, left)
