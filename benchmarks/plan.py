"""What a study has still to measure, about how long that takes, what will not fit, and what a budget will cut.

A node tells in the folder of results what it measures now, so that any other can read it.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import platform
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mmdma_core
from benchmarks.measuring import machine, memory, records
from benchmarks.measuring.measurement import EARLY_EPOCHS, few
from benchmarks.measuring.records import Record, read_all
from benchmarks.study import ENDS_A_SWEEP, Study
from mmdma_core import advice
from mmdma_core.advice import Measured
from mmdma_core.compositions import PAPER
from mmdma_core.files.atomic import is_partial
from mmdma_core.models import NOMINAL, Rates

_LATE_S = 60.0  # beyond its time limit a measurement that is still told has died with its node
# What the harness adds to a measurement, on two cores a third of a second on average; on CUDA its context and what
# opens it on import are assumed.
_OVERHEAD_S = {"cpu": 0.33, "cuda": 3.0}
# Numbers of the views that are made in a second: on two cores of an AMD EPYC, by NumPy and by counter; on CUDA assumed.
_DRAWN = {"exact": 3.5e7, "cpu": 8e7, "cuda": 1e10}
_JOB_OVERHEAD_S = 4.0  # what Snakemake's job and the imports take, on two cores
_BUDGETS = ("sweep_budget_s", "cell_timeout_s")
Point = tuple[str, int, int]  # variant, p, n
Points = dict[int, list[int]]  # p -> n
Value = TypeVar("Value")


class Forecast(NamedTuple):
    """What a sweep is predicted to do from here on.

    seconds    that its remaining points take
    too_large  the first remaining n that is predicted not to fit; None: all fit
    cut        the n that fit and that a budget leaves out, in this run or in one before
    by         the budget, a key of config.yaml
    """

    seconds: float
    too_large: int | None
    cut: tuple[int, ...]
    by: str | None


class Plan:
    """The points of a study: those that are known, those that remain, and the time these will take.

    A remaining one is estimated from those that are measured (mmdma_core.advice), a variant that states no cost from
    its budget. Where memory is predicted not to suffice, the sweep is taken to end.

    rates  that the machine is taken to have; what is measured of it corrects them
    """

    def __init__(self, study: Study, rates: Rates = NOMINAL) -> None:
        self.study = study
        self.rates = rates
        self.total = sum(1 for _ in study.points())
        self.known: dict[Point, Record] = {}
        self._measured: dict[str, dict[tuple[int, int], Measured]] = {}  # variant -> p, n -> what it took
        self._speed: float | None = None
        self._free = machine_memory(study.device)
        for variant, p, n in study.points():
            record = study.known(variant, n, p)
            if record is not None:
                self.add(record)

    def add(self, record: Record) -> None:
        """Take note of a measurement that has just ended."""
        self.known[record.variant, record.p, record.n] = record
        if record.status == "ok":
            self._measured.setdefault(record.variant, {})[record.p, record.n] = record.measured

    def remaining(self) -> list[Point]:
        """Return the points that are not known, in the order in which they are measured."""
        return [point for point in self.study.points() if point not in self.known]

    def basis(self) -> str:
        """Say what the estimate rests on."""
        measured = sum(map(len, self._measured.values()))
        models = (
            "models of cost" if self.rates == NOMINAL else "models of cost at the rates of a card that was measured"
        )
        return f"{measured} measurements and {models}" if measured else f"{models}, nothing is measured here"

    def forecasts(self) -> dict[tuple[str, int], Forecast]:
        """Return what each sweep will do, (variant, p) -> its forecast."""
        measured = [one for of_variant in self._measured.values() for one in of_variant.values()]
        self._speed = advice.machine_speed(measured, self.rates)
        return {sweep: self._forecast(*sweep) for sweep in self.study.sweeps()}

    def _forecast(self, variant: str, p: int) -> Forecast:
        """Walk up n as benchmarks.sweep does: each point takes its time, until memory or a budget ends it all."""
        study, seconds, too_large, by = self.study, 0.0, None, None
        cut: list[int] = []
        ended = False  # larger n are skipped
        for n in study.ns(variant, p):
            record, fits = self.known.get((variant, p, n)), self.fits(variant, p, n)
            if record is None and not fits:
                too_large = too_large or n
            if ended:
                cut += [n] if by and fits else []
            elif record is not None:
                late = record.status == "skipped" and record.implied_by is None
                if (late and fits) or record.status == "timeout":
                    by, cut = _BUDGETS[not late], [*cut, n]
                ended = study.stop_after_failure and record.status in ENDS_A_SWEEP
            else:
                takes = self._measurement_seconds(variant, p, n) if fits else _OVERHEAD_S[study.device]
                limits = study.sweep_budget_s - seconds, study.cell_timeout_s
                seconds += min(takes, *limits)
                late = takes > min(limits)
                if late and fits:
                    by, cut = _BUDGETS[limits.index(min(limits))], [*cut, n]
                ended = study.stop_after_failure and (late or not fits)
        return Forecast(seconds, too_large, tuple(cut), by)

    def seconds_left(self, devices: int = 1) -> float:
        """Estimate the time of the remaining points, as their sweeps are forecast.

        devices  that measure at once, a sweep each: the longest sweep goes first, to the first one that is free. On
                 one device a job takes all sweeps of a variant.
        """
        forecasts, unfinished = self.forecasts(), {(variant, p) for variant, p, _ in self.remaining()}
        sweeps = [forecasts[sweep].seconds for sweep in unfinished]
        if devices == 1:
            return sum(sweeps) + _JOB_OVERHEAD_S * len({variant for variant, _ in unfinished})
        ends = [0.0] * devices
        for seconds in sorted(sweeps, reverse=True):
            heapq.heapreplace(ends, ends[0] + seconds + _JOB_OVERHEAD_S)
        return max(ends)

    def _measurement_seconds(self, variant: str, p: int, n: int) -> float:
        """Estimate one that fits, before any limit of time: the harness, the data, the first start, epochs."""
        study = self.study
        drawn = _DRAWN["exact" if n * p <= study.exact_data_below else study.device]
        around = _OVERHEAD_S[study.device] + 2 * n * p / drawn
        n_few, p_few = few(n, p, study.device)
        epoch, first = self._epoch_seconds(variant, p, n), self._epoch_seconds(variant, p_few, n_few)
        if epoch is None:
            return study.cell_budget_s + around
        timed = min(study.epochs * epoch, study.cell_budget_s)
        return around + first + max(EARLY_EPOCHS * epoch, timed + epoch)

    def fits(self, variant: str, p: int, n: int) -> bool:
        """Return whether a variant is predicted to fit in the memory that it may take; True where it has no model."""
        limit, study, registered = memory_limit(self.study, variant, n, p), self.study, mmdma_core.variant(variant)
        devices = study.devices if registered.several_ranks else 1
        needs = registered.needs_bytes(n, p, study.settings.n_components, devices, study.device)
        at_once = devices if study.device == "cpu" else 1  # that share the host's memory
        return needs is None or needs * at_once <= (self._free if limit is None else limit)

    def hidden(self, forecasts: Mapping[tuple[str, int], Forecast]) -> tuple[Points, Points]:
        """Return what budgets hide of Figure 1A: points without a winner, and those whose winner is among fewer.

        At a point without a winner a budget leaves out every one of the paper's variants that fits.
        """
        own = [variant for variant in self.study.variants if mmdma_core.variant(variant).reference == PAPER]
        without: Points = {}
        among_fewer: Points = {}
        for p in self.study.p:
            for n in self.study.n:
                fitting = [variant for variant in own if self.fits(variant, p, n)]
                left_out = [variant for variant in own if n in forecasts[variant, p].cut]
                if left_out:
                    where = among_fewer if set(fitting) - set(left_out) else without
                    where.setdefault(p, []).append(n)
        return without, among_fewer

    def _epoch_seconds(self, variant: str, p: int, n: int) -> float | None:
        if mmdma_core.variant(variant).cost_model is None:
            return None
        own, d = [*self._measured.get(variant, {}).values()], self.study.settings.n_components
        seconds = advice.epoch_seconds(variant, n, p, d, own, self._speed, self.rates)
        return seconds if own or self.study.device == "cpu" else seconds / self.study.devices


def describe(study: Study, devices: int = 1, rates: Rates = NOMINAL) -> str:
    """Describe the plan, for `python -m benchmarks plan`; its time for so many devices at once, of such rates."""
    plan = Plan(study, rates)
    remaining = plan.remaining()
    shared = f", each measurement shared by {study.devices} processes" if study.devices > 1 else ""
    lines = [
        f"study {study.name} on {study.device} ({study.threads} CPU threads){shared}, results in {study.root}",
        f"{len(study.n)} n in [{study.n[0]}, {study.n[-1]}] x {len(study.p)} p in [{study.p[0]}, {study.p[-1]}]"
        f" x {len(study.variants)} variants{_beyond(study)}: {plan.total} measurements, {len(plan.known)} known, "
        f"{len(remaining)} to run",
    ]
    forecasts = plan.forecasts()
    for variant in study.variants:
        count = sum(name == variant for name, _, _ in remaining)
        said = _said_of_variant(study, variant, {p: forecasts[variant, p] for p in study.p})
        lines.append(f"  {variant:<24} {count:>5} to run{said}")
    if any(forecast.too_large for forecast in forecasts.values()):
        lines.append("what is predicted not to fit in the memory that a measurement may take is tried all the same")
    lines += _said_of_cuts(plan, forecasts)
    if remaining:
        at_once = f" on {devices} devices at once" if devices > 1 else ""
        lines.append(
            f"about {duration(plan.seconds_left(devices))}{at_once}, from {plan.basis()}; a variant that states no "
            f"cost is taken to use its budget of {study.cell_budget_s:g} s a measurement"
        )
    other = "" if plan.known else elsewhere(study)
    lines += [other] * bool(other)
    lines += [
        f"running now: {now['variant']}, n = {now['n']}, p = {now['p']}, on {now['node']}"
        f"{' in job ' + now['job'] if now['job'] else ''} since {duration(now['seconds'])}"
        for now in running(study)[0]
    ]
    return "\n".join(lines)


@contextmanager
def told(study: Study, variant: str, p: int, n: int) -> Iterator[None]:
    """Tell that this process measures a point, for as long as it does."""
    path = _folder(study) / f"{platform.node()}-{os.getpid()}.json"
    point = {"variant": variant, "p": p, "n": n, "node": platform.node(), "job": os.environ.get("SLURM_JOB_ID")}
    records.write_atomically(path, json.dumps(point))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running(study: Study) -> tuple[list[dict[str, Any]], list[Path]]:
    """List what is measured now: variant, p, n, node, job, `seconds` since it began; and files that do not tell that.

    These are of nodes that have died, or the harness has not written them.
    """
    found, others = [], []
    for path in sorted(_folder(study).glob("*")):
        if is_partial(path):
            continue
        try:
            seconds = time.time() - path.stat().st_mtime
            content = json.loads(path.read_text(encoding="utf-8"))
            told = re.fullmatch(re.escape(content["node"]) + r"-\d+\.json", path.name) and path.is_file()
            what = {name: content[name] for name in ("variant", "p", "n", "node", "job")} | {"seconds": seconds}
        except FileNotFoundError:  # it has just ended
            continue
        except (OSError, ValueError, TypeError, KeyError):
            told = False
        if told and seconds < study.cell_timeout_s + _LATE_S:
            found.append(what)
        else:
            others.append(path)
    return found, others


def _folder(study: Study) -> Path:
    return study.root / "running"


def memory_limit(study: Study, variant: str, n: int, p: int) -> float | None:
    """Return the bytes that a measurement may take by the study; None: all that the machine has."""
    limit = study.gpu_gib if study.device == "cuda" else study.host_limit_gib(variant, n, p)
    return None if limit is None else limit * memory.GIB


def machine_memory(device: str) -> float:
    """Return the bytes that the GPU has in all, or that a measurement may take of the host's now."""
    if device == "cuda":
        return (machine.gpu() or {}).get("memory_bytes") or math.inf
    return memory.within_reach("host", None)


def elsewhere(study: Study) -> str:
    """Name the other folders of results that hold records of the processor that measures here; '' if none does."""
    gpu = machine.gpu() if study.device == "cuda" else None
    base, here = study.root.parents[study.devices > 1], machine.recorded_model({"gpu": gpu, "cpu": machine.cpu_model()})
    counts = {
        folder.name: sum(
            r.device == study.device and machine.recorded_model(r.machine) == here for r in read_all(folder)
        )
        for folder in (sorted(base.iterdir()) if base.is_dir() else ())
        if (folder / "records").is_dir() and not study.root.is_relative_to(folder)
    }
    held = ", ".join(f"{base / name} ({count} records)" for name, count in counts.items() if count)
    return f"of the same processor, {here}: {held}; --set machine=NAME takes them" if held else ""


def duration(seconds: float) -> str:
    """Put seconds in words: '45 s', '12 min', '3.4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def ranges(values: Mapping[int, Value], ps: Sequence[int]) -> list[tuple[str, Value]]:
    """Join neighbours in the grid ps that share their value: [('p = 10 to 100', value), ...] of p -> value."""
    present = [p for p in ps if p in values]
    groups = groupby(present, key=lambda p: (values[p], ps.index(p) - present.index(p)))
    spans = ((list(group), value) for (value, _), group in groups)
    return [(f"p = {span[0]}" + (f" to {span[-1]}" if len(span) > 1 else ""), value) for span, value in spans]


def runs(values: Collection[int], grid: Sequence[int]) -> list[tuple[int, int]]:
    """Return values of a grid as runs of neighbours there, the first and the last of each."""
    present = [i for i, value in enumerate(grid) if value in values]
    groups = (list(group) for _, group in groupby(present, key=lambda i: i - present.index(i)))
    return [(grid[group[0]], grid[group[-1]]) for group in groups]


def _beyond(study: Study) -> str:
    """Name the variants that are asked more than the grid."""
    return "".join(
        f", and {', '.join(more.variants)} at n = {_listed(more.n)}, p = {_listed(more.p)}" for more in study.further
    )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)


def _said_of_variant(study: Study, variant: str, forecasts: Mapping[int, Forecast]) -> str:
    """Say what it lacks, where it will not fit, and what a budget cuts; forecasts: of each p."""
    absent, grid = mmdma_core.variant(variant).absent(), {p: study.ns(variant, p) for p in study.p}
    too_large = {p: forecast.too_large for p, forecast in forecasts.items() if forecast.too_large}
    first = ", ".join(f"{where} from n = {n}" for where, n in ranges(too_large, study.p))
    said = f"; needs {', '.join(absent)}, not installed" if absent else ""
    said += f"; predicted not to fit: {first}" if too_large else ""
    said += "" if mmdma_core.variant(variant).cost_model else "; no model of cost"
    for by in _BUDGETS:
        cut = {p: forecast.cut for p, forecast in forecasts.items() if forecast.by == by}
        said += f"; cut by {by}: {_at(cut, grid)}" if cut else ""
    return said


def _said_of_cuts(plan: Plan, forecasts: Mapping[tuple[str, int], Forecast]) -> Iterator[str]:
    """Say what the cuts mean, and what they hide of Figure 1A; or that there are none."""
    study = plan.study
    if not any(forecast.cut for forecast in forecasts.values()):
        yield "no budget is predicted to cut a measurement: what is not measured does not fit"
        return
    keys = ", ".join(f"{key} is {getattr(study, key):g} s" for key in _BUDGETS)
    yield f"what is cut fits in memory, and has no time: {keys}"
    grid = dict.fromkeys(study.p, study.n)
    for points, what in zip(plan.hidden(forecasts), ("no winner", "a winner among fewer"), strict=True):
        if points:
            yield f"that leaves {sum(map(len, points.values()))} points of Figure 1A {what}: {_at(points, grid)}"


def _at(points: Mapping[int, Sequence[int]], grid: Mapping[int, Sequence[int]]) -> str:
    """p -> n of a grid in words: 'p = 10 to 1000 from n = 20000, p = 2000 at n = 10000 and 30000 to 50000'."""
    words = {}
    for p, ns in points.items():
        found = runs(ns, grid[p])
        parts = " and ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in found)
        to_the_end = len(found) == 1 and found[0][1] == grid[p][-1]
        words[p] = f"from n = {found[0][0]}" if to_the_end else f"at n = {parts}"
    return ", ".join(f"{where} {said}" for where, said in ranges(words, list(grid)))
