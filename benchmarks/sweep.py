"""Sweeps: one variant at one p, along n. What is known is taken, and the first n that does not fit ends it.

Where others took more than half of the cores or of the GPU, the sweep measures once more before it ends: its last n,
or the first that does not fit. If that one fits then, the sweep goes on.
"""

from __future__ import annotations

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


def run_sweeps(
    study: Study,
    variants: Sequence[str] | None = None,
    ps: Sequence[int] | None = None,
    ns: Sequence[int] | None = None,
    budget_s: float = float("inf"),
    retry: bool = False,
) -> None:
    """Run the sweeps of the study, or those of some variants, p and n (which need not be in its grid).

    Each measurement is a line on stdout as it ends; a terminal has a bar over those that remain, and the time left.

    budget_s  nothing is measured after so many seconds; the budget of each sweep counts besides it
    retry     measure again what ended in an error

    Raises ValueError for an unknown variant or an n or p that is too small.
    """
    variants = [mmdma_core.variant(name).name for name in variants or study.variants]
    ps = sorted(ps or study.p)
    if ps[0] < 1 or (ns and min(ns) < 4):
        raise ValueError("--p must be at least 1 and --n at least 4")
    end = time.monotonic() + budget_s
    with alone(study.device, study.root, study.devices):
        guard.preload(variants, study.device)
        planned = Plan(study)
        with tqdm(
            total=planned.total,
            initial=len(planned.known),
            disable=None,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} measurements |{bar}|{postfix}",
        ) as bar:
            for variant in variants:
                for p in ps:
                    budget = min(study.sweep_budget_s, end - time.monotonic())
                    for record in _sweep(study, variant, p, sorted(ns or study.ns(variant, p)), budget, retry):
                        planned.add(record)
                        bar.n = min(len(planned.known), planned.total)
                        bar.set_postfix_str(f"about {duration(planned.seconds_left())} left", refresh=True)
                        _say(line(record))


def line(record: Record) -> str:
    """Describe a measurement that has ended in one line: status, seconds per epoch, memory."""
    point = f"{record.variant:<24} n = {record.n:<8} p = {record.p:<6} {record.status:<8}"
    if record.status != "ok":
        return f"{point} {record.last_words}"
    how = "extrapolated" if record.extrapolated else "measured"
    return (
        f"{point} {record.median_epoch_s:10.3e} s/epoch  {in_words(record.peak_bytes):>10}"
        f"  {record.epochs} epochs: {record.runtime_s:9.3g} s ({how})"
    )


def _say(words: str) -> None:
    tqdm.write(words, file=sys.stdout)
    sys.stdout.flush()


def _sweep(study: Study, variant: str, p: int, ns: Sequence[int], budget_s: float, retry: bool) -> Iterator[Record]:
    """Measure each n that is not known, or once more; each record is written as its measurement ends."""
    who = machine.describe(study.device, study.threads)
    end = time.monotonic() + budget_s
    limit = None  # the record that implies that no larger n fits
    at_the_end: list[Record] = []
    for n in ns:
        record = study.known(variant, n, p)
        if record is None or (retry and record.status == "error"):
            path = study.path(variant, n, p)
            records.set_aside_if_unreadable(path)
            why = study.asked_again(variant, n, p)
            if why:
                _say(why)
            record = _measure(study, variant, n, p, limit, end, who)
            record.limits["sweep_budget_s"] = budget_s
            records.write(record, path)
            yield record
        if study.stop_after_failure and record.status in ENDS_A_SWEEP:
            record = yield from _once_more(study, record, budget_s, end, who)
            limit = record if record.status in ENDS_A_SWEEP else limit
        else:
            at_the_end.append(record)
    for record in at_the_end:
        yield from _once_more(study, record, budget_s, end, who)


def _once_more(study: Study, first: Record, budget_s: float, end: float, who: dict) -> Generator[Record, None, Record]:
    """Measure again beside what others took too much, if that has not been done; returns the record that stays.

    An ok one stays before one that is not, of two alike the one beside which others took less.
    """
    if first.status not in ("ok", *ENDS_A_SWEEP) or first.repeated or (first.others or 0.0) <= others.AGAIN:
        return first
    where = f"{first.variant} n = {first.n} p = {first.p}: others took {first.others_in_words}"
    second = _measure(study, first.variant, first.n, first.p, None, end, who)
    if second.status == "skipped":
        _say(f"{where}, the sweep has no time left to measure it once more")
        return first
    second.limits["sweep_budget_s"] = budget_s
    stays = min(first, second, key=_how_bad)
    stays.repeated = True
    records.write(stays, study.path(first.variant, first.n, first.p))
    then, which = second.others_in_words, "first" if stays is first else "second"
    _say(f"{where}, and {then} when it was measured once more: the {which} stays")
    yield stays
    return stays


def _how_bad(record: Record) -> tuple[bool, float]:
    return record.status != "ok", 1.0 if record.others is None else record.others


def _measure(study: Study, variant: str, n: int, p: int, limit: Record | None, end: float, who: dict) -> Record:
    asked = study.measurement(variant, n, p)
    if limit:
        why = f"{limit.status} at n = {limit.n}"
        return guard.new_record(asked, "skipped", why, who, implied_by=limit.n, implied_end=limit.status)
    left = end - time.monotonic()
    if left <= 0:
        return guard.new_record(asked, "skipped", "no time left in the sweep's budget", who)
    with plan.told(study, variant, p, n):
        return guard.measure_within(asked, who, left)
