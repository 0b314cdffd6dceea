"""What a study has still to measure, about how long that takes, and what of it is predicted not to fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TypeVar

import mmdma_core
from benchmarks import machine, memory
from benchmarks.cell import EARLY_EPOCHS
from benchmarks.records import Record
from benchmarks.study import ENDS_A_SWEEP, Study

_OVERHEAD_S = 0.7  # most that the harness adds to a cell
Point = tuple[str, int, int]  # variant, p, n
Value = TypeVar("Value")


class Plan:
    """The cells of a study: those that are known, those that remain, and the time these will take.

    A remaining cell is estimated from the nearest measured cell of its variant, with an epoch that grows as n^2; a
    variant that has not been measured yet is taken to use up its budget.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.total = len(study.variants) * len(study.p) * len(study.n)
        self.known: dict[Point, Record] = {}
        for variant, p in study.sweeps():
            for n in study.n:
                record = study.known(variant, n, p)
                if record is not None:
                    self.known[variant, p, n] = record

    def add(self, record: Record) -> None:
        """Take note of a cell that has just ended."""
        self.known[record.variant, record.p, record.n] = record

    def remaining(self) -> list[Point]:
        """The cells that are not known, in the order in which they run."""
        points = ((variant, p, n) for variant, p in self.study.sweeps() for n in self.study.n)
        return [point for point in points if point not in self.known]

    def too_large(self, variant: str, limit: float) -> dict[int, int]:
        """The first remaining n at each p whose model of memory exceeds `limit` bytes. It is measured all the same."""
        model, first = mmdma_core.variant(variant).memory_model, {}
        for name, p, n in self.remaining():
            if name == variant and model and model(n, p, self.study.settings.n_components) > limit:
                first.setdefault(p, n)
        return first

    def seconds_left(self) -> float:
        """Estimated time of the remaining cells; no sweep takes more than its budget."""
        sweeps: dict[tuple[str, int], float] = {}
        for variant, p, n in self.remaining():
            sweeps[variant, p] = sweeps.get((variant, p), 0.0) + self._cell_seconds(variant, p, n)
        return sum(min(seconds, self.study.sweep_budget_s) for seconds in sweeps.values())

    def _cell_seconds(self, variant: str, p: int, n: int) -> float:
        if any(self._ends(variant, p, smaller) for smaller in self.study.n if smaller < n):
            return 0.0
        epoch = self._epoch_seconds(variant, p, n)
        if epoch is None:
            return self.study.cell_budget_s + _OVERHEAD_S
        timed = min(self.study.epochs * epoch, self.study.cell_budget_s)
        return min(max(EARLY_EPOCHS * epoch, timed) + _OVERHEAD_S, self.study.cell_timeout_s)

    def _ends(self, variant: str, p: int, n: int) -> bool:
        record = self.known.get((variant, p, n))
        return self.study.stop_after_failure and record is not None and record.status in ENDS_A_SWEEP

    def _epoch_seconds(self, variant: str, p: int, n: int) -> float | None:
        def distance(record: Record) -> float:
            return abs(math.log(record.n / n)) + abs(math.log(record.p / p))

        measured = [r for (name, _, _), r in self.known.items() if name == variant and r.status == "ok"]
        nearest = min(measured, key=distance, default=None)
        return nearest and nearest.median_epoch_s * (n / nearest.n) ** 2


def duration(seconds: float) -> str:
    """Seconds in words: '45 s', '12 min', '3.4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def memory_limit(study: Study) -> float:
    """Bytes that a cell may take: the study's limit, else what the GPU has in all or the host can give now."""
    limit = study.gpu_gib if study.device == "cuda" else study.host_gib
    if limit is not None:
        return limit * memory.GIB
    gpu_bytes = study.device == "cuda" and (machine.gpu() or {}).get("memory_bytes")
    return gpu_bytes or (math.inf if study.device == "cuda" else memory.default_host_limit())


def ranges(values: Mapping[int, Value], ps: Sequence[int]) -> list[tuple[str, Value]]:
    """p -> value, neighbours in the grid ps that share their value in one: [('p = 10 to 100', value), ...]."""
    present = [p for p in ps if p in values]
    groups = groupby(present, key=lambda p: (values[p], ps.index(p) - present.index(p)))
    spans = ((list(group), value) for (value, _), group in groups)
    return [(f"p = {span[0]}" + (f" to {span[-1]}" if len(span) > 1 else ""), value) for span, value in spans]


def describe(study: Study) -> str:
    """The plan in words, for `python -m benchmarks plan`."""
    plan = Plan(study)
    remaining = plan.remaining()
    lines = [
        f"study {study.name} on {study.device} ({study.threads} CPU threads), results in {study.root}",
        f"{len(study.n)} n in [{study.n[0]}, {study.n[-1]}] x {len(study.p)} p in [{study.p[0]}, {study.p[-1]}]"
        f" x {len(study.variants)} variants = {plan.total} cells: {len(plan.known)} known, {len(remaining)} to run",
    ]
    limit = memory_limit(study)
    for variant in study.variants:
        count = sum(name == variant for name, _, _ in remaining)
        absent = mmdma_core.variant(variant).absent()
        needs = f"; needs {', '.join(absent)}, not installed" if absent else ""
        too_large = ranges(plan.too_large(variant, limit), study.p)
        fits = "; predicted not to fit: " + ", ".join(f"{where} from n = {n}" for where, n in too_large)
        lines.append(f"  {variant:<24} {count:>5} to run{needs}{fits if too_large else ''}")
    if "predicted" in "".join(lines):
        lines.append(f"what is predicted not to fit in {limit / memory.GIB:.3g} GiB is tried all the same")
    if remaining:
        lines.append(
            f"about {duration(plan.seconds_left())} (from the cells measured so far; a variant without any is taken to "
            f"use its budget of {study.cell_budget_s:g} s a cell)"
        )
    return "\n".join(lines)
