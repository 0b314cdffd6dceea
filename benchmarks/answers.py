"""Whether a record answers what is asked of a cell now, and in words why one is asked again that once did."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from benchmarks.measuring import records
from benchmarks.measuring.measurement import Cell, Limits
from benchmarks.measuring.lacking import is_here
from benchmarks.measuring.memory import GIB, within_reach
from benchmarks.measuring.records import Record
from mmdma_core.models import in_words

_MARGIN = 1.1  # so much more memory than ran out is worth another try; less is the coming and going of others


def answers(record: Record, cell: Cell) -> bool:
    """Whether a record is one of this cell, and would come out the same under the limits that are set now."""
    now, then = cell.limits, Limits(**{f.name: record.limits.get(f.name) for f in dataclasses.fields(Limits)})
    if record.key != cell.key or asked_again(record, cell):
        return False
    if record.status == "ok":
        return _fits(record, now) and (not record.extrapolated or now.budget_s <= then.budget_s)
    if record.status == "oom":
        return (now.host_gib, now.gpu_gib) == (then.host_gib, then.gpu_gib)
    if record.status == "timeout":
        return now.timeout_s <= then.timeout_s
    if record.status == "missing_dependency":
        return bool(cell.absent or record.missing)
    return True


def known_at(path: Path, cell: Cell, retry: Collection[str] = ()) -> tuple[Record | None, str | None]:
    """The record at a path, if it answers what is asked of the cell; else None, and why that is asked again, if it is.

    retry  statuses that are no answer. A record that cannot be read is set aside, one that was skipped is no answer.
    """
    records.set_aside_if_unreadable(path)
    record = records.read(path) if path.exists() else None
    if record is None:
        return None, None
    if record.status in ("skipped", *retry) or not answers(record, cell):
        return None, asked_again(record, cell)
    return record, None


def asked_again(record: Record, cell: Cell) -> str | None:
    """Why the same question is worth asking again on this machine, None if it is not: memory, modules, compilers.

    A record that does not say what ran out or was missing is not asked again for it. That of a job on a cluster is
    asked again in a job alone.
    """
    if record.key != cell.key:
        return None
    if bool(record.machine.get("job")) != ("SLURM_JOB_ID" in os.environ):  # what a login node has, its jobs may lack
        return None
    where = f"{record.variant} n = {record.n} p = {record.p}: asked again"
    limits = {"host": cell.limits.host_gib, "device": cell.limits.gpu_gib}
    for kind, then in record.ran_out_of.items() if record.status == "oom" else ():
        now = within_reach(kind, limits[kind], cell.devices)
        if now is not None and now > _MARGIN * then:
            return f"{where}, {in_words(then)} of {kind} memory ran out, {in_words(now)} are within reach now"
    there = [name for name in record.missing if is_here(name)]
    return f"{where}, {', '.join(there)} was missing and is here now" if there else None


def _fits(record: Record, limits: Limits) -> bool:
    """Whether what an ok cell held stays within the limits."""
    held = ((record.peak_device_bytes, limits.gpu_gib), (record.peak_host_bytes, limits.host_gib))
    used, limit = held[0] if record.device == "cuda" else held[1]
    return limit is None or used is None or used <= limit * GIB
