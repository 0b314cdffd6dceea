"""One variant at one p, along n: takes known records, stops at the first n that does not fit."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import guard, machine, records
from benchmarks.records import Record
from benchmarks.study import Study

_ENDS_A_SWEEP = ("oom", "timeout")
_TRIED_AGAIN = ("skipped", "error")


def run_sweep(
    study: Study, variant: str, p: int, ns: Sequence[int], deadline: float | None = None
) -> Iterator[tuple[Record, bool]]:
    """The record of each n in ascending order, and whether it was measured now; each is written as its cell ends.

    deadline is a time.monotonic() after which no cell goes on; the sweep's own budget counts besides it.
    """
    who = machine.describe(study.threads)
    end = min(time.monotonic() + study.sweep_budget_s, deadline or float("inf"))
    limit = None  # the record that implies that no larger n fits
    for n in sorted(ns):
        record = study.known(variant, n, p)
        fresh = record is None or record.status in _TRIED_AGAIN
        if fresh:
            record = _measure(study, variant, n, p, limit, end, who)
            records.write(record, study.path(variant, n, p))
        if study.stop_after_failure and record.status in _ENDS_A_SWEEP:
            limit = record
        yield record, fresh


def _measure(study: Study, variant: str, n: int, p: int, limit: Record | None, end: float, who: dict) -> Record:
    cell = study.cell(variant, n, p)
    if limit:
        return guard.new_record(cell, "skipped", f"{limit.status} at n = {limit.n}", who)
    left = end - time.monotonic()
    if left <= 0:
        return guard.new_record(cell, "skipped", "no time left in the sweep's budget", who)
    record = guard.measure_cell(cell, who, min(left, cell.timeout_s))
    if record.status == "timeout" and left < cell.timeout_s:
        return replace(record, status="skipped", detail=f"the sweep's budget ended it: {record.detail}")
    return record


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the machine's folder: a second sweep there waits, so that no two cells are timed at once."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another sweep is measuring in {root}: waiting for it to end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
