"""The steps of gpu-check: what each does within its time, and what it came to in words. See gpu_check.py.

The process that takes them forks every check and every cell, and never opens CUDA itself.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import mmdma_core
from benchmarks import sweep
from benchmarks.experiments import checks, citeseq
from benchmarks.experiments.correctness import CASES
from benchmarks.measuring import guard, machine, records
from benchmarks.measuring.device import alone
from benchmarks.measuring.records import Record
from benchmarks.study import Study, known_at
from mmdma_core import compilers

FOLDER = "gpu-check"
_MODULES = ("pykeops", "triton", "numba", "lsmmdma", "tensorflow")
_COMPILED_WITH = ("g++", "gcc", "Python.h", *compilers.PARTS)  # by KeOps and Triton


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    rows       README's: variants and n, each at every p of `p`; the longest cells last
    citeseq    keys of config.yaml's `citeseq` that differ
    overview   the study of the last steps
    timed_n    cells of each view for the pass over pairs alone
    """

    p: tuple[int, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]
    citeseq: dict[str, Any]
    overview: str
    cases: int
    check_s: float
    timed_n: int


_EXACT, _FAST, _KEOPS = ("primal-fused",), ("primal-fused", "primal-fourier"), ("primal-keops",)
FULL = Sizes(
    p=(100, 1000),
    rows=((_FAST, (1000, 10_000, 100_000, 1_000_000)), (_KEOPS, (1000, 10_000, 100_000)), (_KEOPS, (1_000_000,))),
    citeseq={"variants": list(_FAST), "epochs": 1000, "cell_budget_s": 30},
    overview="survey",
    cases=len(CASES),
    check_s=90,
    timed_n=16_384,
)
SMALL = Sizes(
    p=(10, 50),
    rows=((_FAST, (500, 2000)), (_KEOPS, (500, 1000))),
    citeseq={
        **{"variants": list(_FAST), "epochs": 5, "cell_budget_s": 1, "cpu_fraction": 1},
        **{"cells": 300, "genes": 200, "proteins": 12, "path": None},
    },
    overview="smoke",
    cases=2,
    check_s=90,
    timed_n=256,
)


class Outcome(NamedTuple):
    """What a step came to: whether all of it is known, in words, and a line for each thing that is to be looked at."""

    done: bool
    words: str
    lines: Sequence[str] = ()


@dataclass
class Visit:
    """One call: what is asked, and until when.

    table, overview  the studies of README's rows and of the last steps
    write_report     of a study; it gives the page's path
    end              of the running step, as time.monotonic() has it
    """

    config: dict[str, Any]
    sizes: Sizes
    retry: bool
    table: Study
    overview: Study
    write_report: Callable[[Study], Path]
    end: float = math.inf
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """What the steps say lies here."""
        return self.table.root / FOLDER

    def left(self) -> float:
        """Seconds of the running step."""
        return self.end - time.monotonic()


def machine_and_what_is_missing(visit: Visit) -> Outcome:
    """Step 1: device, driver, versions; what the variants lack."""
    held = machine.describe(visit.table.device, visit.table.threads)
    here = {name: machine.is_here(name) for name in (*_MODULES, *_COMPILED_WITH)}
    records.write_atomically(visit.folder / "machine.json", json.dumps(held | {"here": here}, indent=1) + "\n")
    gpu = held["gpu"]
    device = f"{gpu['name']}, driver {gpu['driver']}" if gpu else held["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in held["versions"].items() if version)
    lines = [f"{device}; Python {platform.python_version()}, {versions}"]
    lines += [f"not here: {', '.join(name for name, found in here.items() if not found)}"]
    asked = [name for name in mmdma_core.variants() if mmdma_core.variant(name).requires]
    return _checked(visit, "lacks", asked, "of the variants that need something have it", lines)


def correctness(visit: Visit) -> Outcome:
    """Step 2: every variant against float64."""
    known = {name: mmdma_core.variant(name) for name in mmdma_core.variants()}
    exact_first = sorted((name for name in known if not known[name].objective), key=lambda name: not known[name].exact)
    others = [f"not compared: {name}, {variant.remark}" for name, variant in known.items() if variant.objective]
    return _checked(visit, "correctness", exact_first, "variants are right", others)


def keops(visit: Visit) -> Outcome:
    """Step 3: that KeOps runs on the device."""
    return _checked(visit, "keops", _KEOPS, "variants run on KeOps")


def kernels(visit: Visit) -> Outcome:
    """Step 5: the tiles of the pass over pairs, compact blocks and wide ones apart, and whether products truncate."""
    outcome = _checked(visit, "kernels", _EXACT, "passes over pairs are timed", n=visit.sizes.timed_n)
    path = visit.folder / "kernels" / f"{_EXACT[0]}.json"
    record = records.read(path) if path.exists() else None
    if record is None or record.status != "ok":
        return outcome
    shown = dict(record.metrics)
    rounding = "truncate" if shown.pop("products truncate") else "round to the nearest"
    lines = [f"products of float16 matrices {rounding}", f"n = {record.n} of each view:"]
    lines += [f"  {name}: {milliseconds:.3g} ms" for name, milliseconds in shown.items()]
    return outcome._replace(lines=lines)


def _checked(
    visit: Visit, kind: str, variants: Sequence[str], good: str, lines: Sequence[str] = (), n: int = 0
) -> Outcome:
    """A check of each variant; those that lack something are told of by the step that asks for it."""
    study, found = visit.table, []
    with alone(study.device, study.root, study.devices):
        guard.preload(variants, study.device)
        who = machine.describe(study.device, study.threads)
        for variant in variants:
            asked = checks.check(study, kind, variant, visit.sizes.check_s, visit.sizes.cases, n)
            path = visit.folder / kind / f"{variant}.json"
            record, _ = known_at(path, asked, ["error", "timeout"] if visit.retry else [])
            if record is None and visit.left() > 0:
                record = checks.measure(asked, path, who, visit.left())
            if record is not None and record.status != "skipped":
                found.append(record)
    counts = Counter(record.status for record in found)
    words = f"{counts['ok']} of {len(variants)} {good}{_others(counts)}"
    told = ("ok", "missing_dependency") if kind == "correctness" else ("ok",)
    bad = [checks.sentence(record) for record in found if record.status not in told]
    return Outcome(len(found) == len(variants), words, [*lines, *bad])


def _others(counts: Counter[str]) -> str:
    return "".join(f", {n} {status.replace('_', ' ')}" for status, n in sorted(counts.items()) if status != "ok" and n)


def rows_of_readme(visit: Visit) -> Outcome:
    """Step 4: the GPU rows of README's table."""
    study, sizes = visit.table, visit.sizes
    for variants, ns in sizes.rows:
        if visit.left() > 0:
            sweep.run_sweeps(study, variants, sizes.p, ns, visit.left(), visit.retry)
    points = [(v, n, p) for variants, ns in sizes.rows for v in variants for n in ns for p in sizes.p]
    return _measured(study, points)


def _measured(study: Study, points: Sequence[tuple[str, int, int]]) -> Outcome:
    """Which of the cells are known, and how they ended."""
    known = [record for point in points if (record := study.known(*point)) is not None]
    counts = Counter(record.status for record in known)
    words = f"{len(known)} of {len(points)} cells are known: {counts['ok']} ok{_others(counts)}"
    return Outcome(len(known) == len(points), words, [_cell_error(r) for r in known if r.status == "error"])


def _cell_error(record: Record) -> str:
    return f"n = {record.n}, p = {record.p}, {checks.sentence(record)}"


def shape_of_citeseq(visit: Visit) -> Outcome:
    """Step 4, on: CITE-seq's shape; a further variant only where there is as much time as the one before took."""
    changed = visit.config | {"citeseq": visit.config["citeseq"] | visit.sizes.citeseq}
    study = citeseq.load(visit.table, changed)
    n, p = study.n[0], study.p[0]
    taken, needed = [], 0.0
    for variant in study.variants:
        record = study.known(variant, n, p)
        if record is None and visit.left() > needed:
            taken.append(variant)
            citeseq.run(replace(study, variants=tuple(taken)), visit.retry, visit.left())
            record = study.known(variant, n, p)
        elif record is not None:
            taken.append(variant)
        needed = record.cell_s or 0.0 if record else math.inf
    return _measured(study, [(variant, n, p) for variant in study.variants])


def overview(visit: Visit) -> Outcome:
    """Step 6: the survey; all variants at small n before any at larger ones, so that a cut leaves an overview."""
    study, most = visit.overview, len(visit.overview.n)
    for count in [most] if visit.retry else range(1, most + 1):  # an error is tried again once
        if visit.left() > 0:
            sweep.run_sweeps(study, ns=study.n[:count], budget_s=visit.left(), retry=visit.retry)
    return _measured(study, [(variant, n, p) for variant, p, n in study.points()])


def table_figures_report(visit: Visit) -> Outcome:
    """Step 6, on: what the survey shows; drawn again only after something was measured."""
    from benchmarks import figures
    from benchmarks.analysis import agreement, table

    study = visit.overview
    page, newest = study.root / "report.html", _newest(study.root)
    before = visit.steps.get("report", {})
    if before.get("done") and before.get("study") == study.name and page.exists() and page.stat().st_mtime >= newest:
        return Outcome(True, f"{page} shows all that is known")
    if visit.left() <= 0 or not newest:
        return Outcome(False, "not drawn")
    agreement.write_losses(table.write_summary(study.root), study.root)
    figures.draw_all(study)
    return Outcome(True, f"{visit.write_report(study)} and {study.root / 'figures'}")


def _newest(root: Path) -> float:
    """When the newest record was written."""
    paths = (records.record_path(root, r.variant, r.p, r.n) for r in records.read_folder(root).records)
    return max((path.stat().st_mtime for path in paths), default=0.0)
