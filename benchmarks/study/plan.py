"""What a study has still to measure, about how long that takes, and what of it is predicted not to fit."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import TypeVar

import mmdma_core
from benchmarks.measuring import machine, memory
from benchmarks.measuring.cell import EARLY_EPOCHS
from benchmarks.measuring.records import Record
from benchmarks.study import running
from benchmarks.study.study import ENDS_A_SWEEP, Study
from mmdma_core.families import advice
from mmdma_core.families.advice import Measured
from mmdma_core.models.costs import NOMINAL, Rates

_OVERHEAD_S = 0.7  # most that the harness adds to a cell
_SWEEP_OVERHEAD_S = 4.0  # what Snakemake's job and the imports take, on two cores
Point = tuple[str, int, int]  # variant, p, n
Value = TypeVar("Value")


class Plan:
    """The cells of a study: those that are known, those that remain, and the time these will take.

    A remaining cell is estimated from the cells that are measured (mmdma_core.families.advice), a variant that states
    no cost from its budget. Where memory is predicted not to suffice, the sweep is taken to end.

    rates  that the machine is taken to have; what is measured of it corrects them
    """

    def __init__(self, study: Study, rates: Rates = NOMINAL) -> None:
        self.study = study
        self.rates = rates
        self.total = sum(1 for _ in study.cells())
        self.known: dict[Point, Record] = {}
        self._measured: dict[str, list[Measured]] = {}  # of each variant
        self._speed: float | None = None
        self._free = machine_memory(study.device)
        for variant, p, n in study.cells():
            record = study.known(variant, n, p)
            if record is not None:
                self.add(record)

    def add(self, record: Record) -> None:
        """Take note of a cell that has just ended."""
        self.known[record.variant, record.p, record.n] = record
        if record.status == "ok":
            self._measured.setdefault(record.variant, []).append(record.measured)

    def remaining(self) -> list[Point]:
        """The cells that are not known, in the order in which they run."""
        return [point for point in self.study.cells() if point not in self.known]

    def basis(self) -> str:
        """What the estimate rests on, in words."""
        measured = sum(map(len, self._measured.values()))
        models = (
            "models of cost" if self.rates == NOMINAL else "models of cost at the rates of a card that was measured"
        )
        return f"{measured} measured cells and {models}" if measured else f"{models}, nothing is measured here"

    def too_large(self, variant: str) -> dict[int, int]:
        """The first remaining n at each p that is predicted not to fit. It is measured all the same."""
        first = {}
        for name, p, n in self.remaining():
            if name == variant and not self._fits(variant, p, n):
                first.setdefault(p, n)
        return first

    def seconds_left(self, devices: int = 1) -> float:
        """Estimated time of the remaining cells; no sweep takes more than its budget.

        devices  that measure at once, a sweep each: the longest sweep goes first, to the first one that is free
        """
        self._speed = advice.machine_speed(list(chain.from_iterable(self._measured.values())), self.rates)
        sweeps: dict[tuple[str, int], float] = {}
        for variant, p, n in self.remaining():
            sweeps[variant, p] = sweeps.get((variant, p), 0.0) + self._cell_seconds(variant, p, n)
        ends = [0.0] * devices
        for seconds in sorted(sweeps.values(), reverse=True):
            heapq.heapreplace(ends, ends[0] + min(seconds, self.study.sweep_budget_s) + _SWEEP_OVERHEAD_S)
        return max(ends)

    def _cell_seconds(self, variant: str, p: int, n: int) -> float:
        if any(self._ends_sweep(variant, p, smaller) for smaller in self.study.ns(variant, p) if smaller < n):
            return 0.0
        if not self._fits(variant, p, n):
            return _OVERHEAD_S
        epoch = self._epoch_seconds(variant, p, n)
        if epoch is None:
            return self.study.cell_budget_s + _OVERHEAD_S
        timed = min(self.study.epochs * epoch, self.study.cell_budget_s)
        return min(max(EARLY_EPOCHS * epoch, timed) + _OVERHEAD_S, self.study.cell_timeout_s)

    def _ends_sweep(self, variant: str, p: int, n: int) -> bool:
        record = self.known.get((variant, p, n))
        ended = not self._fits(variant, p, n) if record is None else record.status in ENDS_A_SWEEP
        return self.study.stop_after_failure and ended

    def _fits(self, variant: str, p: int, n: int) -> bool:
        limit, devices = memory_limit(self.study, variant, n, p), self.study.devices
        limit = self._free if limit is None else limit
        if not mmdma_core.variant(variant).several_ranks:
            devices = 1
        needs = mmdma_core.variant(variant).needs_bytes(n, p, self.study.settings.n_components, devices)
        at_once = devices if self.study.device == "cpu" else 1  # that share the host's memory
        return needs is None or needs * at_once <= limit

    def _epoch_seconds(self, variant: str, p: int, n: int) -> float | None:
        if mmdma_core.variant(variant).cost_model is None:
            return None
        own, d = self._measured.get(variant, []), self.study.settings.n_components
        seconds = advice.epoch_seconds(variant, n, p, d, own, self._speed, self.rates)
        return seconds if own or self.study.device == "cpu" else seconds / self.study.devices


def duration(seconds: float) -> str:
    """Seconds in words: '45 s', '12 min', '3.4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def memory_limit(study: Study, variant: str, n: int, p: int) -> float | None:
    """Bytes that a cell may take by the study; None: all that the machine has."""
    limit = study.gpu_gib if study.device == "cuda" else study.host_limit_gib(variant, n, p)
    return None if limit is None else limit * memory.GIB


def machine_memory(device: str) -> float:
    """Bytes that the GPU has in all, or that the host can give now."""
    if device == "cuda":
        return (machine.gpu() or {}).get("memory_bytes") or math.inf
    return memory.default_host_limit()


def ranges(values: Mapping[int, Value], ps: Sequence[int]) -> list[tuple[str, Value]]:
    """p -> value, neighbours in the grid ps that share their value in one: [('p = 10 to 100', value), ...]."""
    present = [p for p in ps if p in values]
    groups = groupby(present, key=lambda p: (values[p], ps.index(p) - present.index(p)))
    spans = ((list(group), value) for (value, _), group in groups)
    return [(f"p = {span[0]}" + (f" to {span[-1]}" if len(span) > 1 else ""), value) for span, value in spans]


def _beyond(study: Study) -> str:
    """Which variants are asked more than the grid."""
    return "".join(
        f", and {', '.join(more.variants)} at n = {_listed(more.n)}, p = {_listed(more.p)}" for more in study.further
    )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)


def describe(study: Study, devices: int = 1, rates: Rates = NOMINAL) -> str:
    """The plan in words, for `python -m benchmarks plan`; its time for so many devices at once, of such rates."""
    plan = Plan(study, rates)
    remaining = plan.remaining()
    shared = f", each cell shared by {study.devices} processes" if study.devices > 1 else ""
    lines = [
        f"study {study.name} on {study.device} ({study.threads} CPU threads){shared}, results in {study.root}",
        f"{len(study.n)} n in [{study.n[0]}, {study.n[-1]}] x {len(study.p)} p in [{study.p[0]}, {study.p[-1]}]"
        f" x {len(study.variants)} variants{_beyond(study)}: {plan.total} cells, {len(plan.known)} known, "
        f"{len(remaining)} to run",
    ]
    for variant in study.variants:
        count = sum(name == variant for name, _, _ in remaining)
        absent = mmdma_core.variant(variant).absent()
        needs = f"; needs {', '.join(absent)}, not installed" if absent else ""
        too_large = ranges(plan.too_large(variant), study.p)
        fits = "; predicted not to fit: " + ", ".join(f"{where} from n = {n}" for where, n in too_large)
        lines.append(f"  {variant:<24} {count:>5} to run{needs}{fits if too_large else ''}")
    if "predicted" in "".join(lines):
        lines.append("what is predicted not to fit in the memory that a cell may take is tried all the same")
    if remaining:
        at_once = f" on {devices} devices at once" if devices > 1 else ""
        lines.append(
            f"about {duration(plan.seconds_left(devices))}{at_once}, from {plan.basis()}; a variant that states no "
            f"cost is taken to use its budget of {study.cell_budget_s:g} s a cell"
        )
    lines += [
        f"running now: {cell['variant']}, n = {cell['n']}, p = {cell['p']}, on {cell['node']}"
        f"{' in job ' + cell['job'] if cell['job'] else ''} since {duration(cell['seconds'])}"
        for cell in running.cells(study)[0]
    ]
    return "\n".join(lines)
