"""All that a GPU alone can show, in one command and within a budget: python -m benchmarks gpu-check.

Step by step, the most telling first, it does what the tests, the sweeps and the experiments do: checks of every variant
(benchmarks.experiments.correctness), README's rows, CITE-seq's shape, the survey. Every result is written as it comes,
and what is known is not done again, so that a second call goes on where the first has ended or was cut.

What the steps say and the records of checks lie in results/MACHINE/gpu-check/; the records of measurements lie where
every sweep leaves them. `--device cpu --small` runs the same steps on small sizes, into results/MACHINE-small/. The
process that takes the steps forks every check and every measurement, and never opens CUDA itself.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mmdma_core
from benchmarks import study as studies
from benchmarks import sweep
from benchmarks.config import experiment
from benchmarks.experiments import citeseq, correctness
from benchmarks.experiments.correctness import CASES
from benchmarks.measuring import guard, machine, records
from benchmarks.measuring.device import alone
from benchmarks.measuring.fingerprint import fingerprint_of
from benchmarks.measuring.measurement import Measurement, Report, Work
from benchmarks.measuring.records import Record
from benchmarks.plan import duration
from benchmarks.study import Study, known_at
from mmdma_core import MissingDependency, compilers
from mmdma_core.files.atomic import atomically

_MODULES = ("pykeops", "triton", "numba", "lsmmdma", "tensorflow")
_COMPILED_WITH = ("g++", "gcc", "Python.h", *compilers.PARTS)  # by KeOps and Triton
_CHECK_S = 90  # after which a check is ended
_SHOWN = 3  # deviations of a variant in words; the record has all of them
_EXACT, _FAST, _KEOPS = ("primal-fused",), ("primal-fused", "primal-fourier"), ("primal-keops",)


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    rows       README's: variants and n, each at every p of `p`; the longest measurements last
    citeseq    keys of config.yaml's `citeseq` that differ
    overview   the study of the last steps
    cases      of the problems of correctness
    timed_n    cells of each view for the pass over pairs alone
    """

    p: tuple[int, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]
    citeseq: dict[str, Any]
    overview: str
    cases: int
    timed_n: int


FULL = Sizes(
    p=(100, 1000),
    rows=((_FAST, (1000, 10_000, 100_000, 1_000_000)), (_KEOPS, (1000, 10_000, 100_000)), (_KEOPS, (1_000_000,))),
    citeseq={"variants": list(_FAST), "epochs": 1000, "cell_budget_s": 30.0},
    overview="survey",
    cases=len(CASES),
    timed_n=16_384,
)
SMALL = Sizes(
    p=(10, 50),
    rows=((_FAST, (500, 2000)), (_KEOPS, (500, 1000))),
    citeseq={
        **{"variants": list(_FAST), "epochs": 5, "cell_budget_s": 1.0, "cpu_fraction": 1.0},
        **{"cells": 300, "genes": 200, "proteins": 12, "path": None},
    },
    overview="smoke",
    cases=2,
    timed_n=128,
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
        """Where what the steps say lies."""
        return self.table.root / "gpu-check"

    def left(self) -> float:
        """Return the seconds that the running step has left."""
        return self.end - time.monotonic()


def load(config: dict[str, Any], small: bool, retry: bool, write_report: Callable[[Study], Path]) -> Visit:
    """Return what a configuration asks for. Raises ConfigError where it lacks a study or the experiment."""
    sizes = SMALL if small else FULL
    experiment(config, "citeseq")
    table, overview = (studies.load(config | {"study": name}) for name in ("table", sizes.overview))
    if small:  # no small measurement takes the place of one of a study
        root = table.root.with_name(f"{table.root.name}-small")
        table, overview = replace(table, root=root, cell_budget_s=0.2, cell_timeout_s=60), replace(overview, root=root)
    return Visit(config, sizes, retry, table, overview, write_report)


def run(visit: Visit, budget_s: float, out: Path | None = None) -> None:
    """Take every step that the budget reaches, say what each came to, and what to do next; pack it all into `out`.

    Raises ValueError for a budget or a name of the archive that cannot be, WrongDevice where the device is not there.
    """
    if not budget_s > 0:
        raise ValueError(f"--budget-s {budget_s:g}: more than 0 seconds are needed")
    if out and not out.name.endswith((".tar.gz", ".tgz")):
        raise ValueError(f"--out {out}: the archive's name must end in .tar.gz or .tgz")
    with alone(visit.table.device, visit.table.root, visit.table.devices):
        begin = time.monotonic()  # now that nobody else measures
    visit.steps = _steps_before(visit)
    for k, (name, (part, step, title)) in enumerate(STEPS.items(), 1):
        start = time.monotonic()
        visit.end = begin + part * budget_s
        outcome, how = _taken(step, visit)
        seconds = time.monotonic() - start
        print(f"== {k} of {len(STEPS)}, {title}: {how} in {duration(seconds)}: {outcome.words}")
        print(*(f"   {line}\n" for line in outcome.lines), sep="", end="", flush=True)
        told = {"title": title, "done": outcome.done, "how": how, "seconds": round(seconds, 3)}
        told |= {"study": visit.overview.name, "words": outcome.words, "lines": list(outcome.lines)}
        visit.steps[name] = told
        records.write_atomically(visit.folder / "steps.json", json.dumps(visit.steps, indent=1) + "\n")
    print(*_end(visit, out), sep="\n")
    if out:
        _pack(visit.table.root, out)


def _taken(step: Callable[[Visit], Outcome], visit: Visit) -> tuple[Outcome, str]:
    """What the step came to. Whatever it raises is told, and the steps after it are taken all the same."""
    try:
        outcome = step(visit)
    except Exception as error:
        return Outcome(False, f"{type(error).__name__}: {' '.join(str(error).split())}"), "failed"
    return outcome, "done" if outcome.done else "ran out of time"


def _steps_before(visit: Visit) -> dict[str, dict[str, Any]]:
    """What an earlier call has said."""
    try:
        said = json.loads((visit.folder / "steps.json").read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _end(visit: Visit, out: Path | None) -> Iterator[str]:
    for how in ("done", "ran out of time", "failed"):
        names = [told["title"] for name in STEPS if (told := visit.steps[name])["how"] == how]
        if names:
            yield f"{how}: {'; '.join(names)}"
    if not all(visit.steps[name]["done"] for name in STEPS):
        yield "the same command again goes on from here: what is known is not done again"
    root = visit.table.root
    packed = f", or {out}, which holds the same" if out else ", or pack it with --out FILE.tar.gz"
    yield f"it is all in {root}: carry that folder away{packed}; in the results/ of any checkout every command reads it"


def _pack(root: Path, out: Path) -> None:
    with atomically(out) as part, tarfile.open(part, "w:gz") as archive:
        own = (out.name, part.name)  # which may lie in the folder
        archive.add(root, root.name, filter=lambda member: None if Path(member.name).name in own else member)


# Checks of a variant, each a measurement in a child of the guard. What a check finds is a record, so that a crash or a
# wrong gradient ends that check alone.


@dataclass(frozen=True)
class Check(Measurement):
    """What is asked of a check: `kind` is its work, `cases` how many of the problems it takes."""

    kind: str = ""
    cases: int = 0

    @classmethod
    def of(cls, study: Study, kind: str, variant: str, sizes: Sizes) -> Check:
        """Ask for a check of a variant on the study's device; but for 'kernels' at the size of the first problem."""
        n, p = sizes.timed_n if kind == "kernels" else CASES[0].n_x, CASES[0].p_x
        asked = replace(study, epochs=1, cell_timeout_s=_CHECK_S).measurement(variant, n, p)
        known = mmdma_core.variant(variant)
        own = fingerprint_of(_WORK[kind], known.tolerance, known.bias, module=__name__)  # with it that of the problems
        return cls(**vars(asked) | {"source": asked.source + own, "kind": kind, "cases": sizes.cases})


def lacks(asked: Check, report: Report) -> None:
    """Ask what the variant lacks on the device, which may import KeOps, Triton or TensorFlow, and tries KeOps there."""
    _require(asked)
    _done(report, {})


def is_right(asked: Check, report: Report) -> None:
    """Compare the variant with float64, problem by problem; what is wrong goes into `deviations`.

    The metrics are the largest deviations of each problem over what is allowed, at most 1 where all is right.
    """
    _require(asked)
    wrong, ratios = [], {}
    begin = time.perf_counter()
    problems = {case.name: correctness.deviations(asked.variant, case, asked.device) for case in CASES[: asked.cases]}
    for name, found in (problems | {"training": _of_training(asked)}).items():
        report({"stage": f"the problem '{name}'"})
        for deviation in found:
            ratio = deviation.off / deviation.allowed
            if math.isfinite(ratio):
                ratios[name] = max(ratio, ratios.get(name, 0.0))
            if not deviation.within:
                wrong.append(f"{deviation} ({name})")
        report({"metrics": ratios})
    _done(report, ratios, time.perf_counter() - begin)
    if wrong:
        report({"status": "error", "detail": "\n".join(["wrong", *_first(wrong)]), "deviations": wrong})


def _of_training(asked: Check) -> Iterator[correctness.Deviation]:
    yield correctness.trained(asked.variant, asked.device)[-1]


def times_kernels(asked: Check, report: Report) -> None:
    """Time the pass over the pairs of n and n points: each tile, compact blocks and wide ones apart.

    The metrics are milliseconds, and whether products of float16 matrices truncate (1) or round (0).
    """
    if asked.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # which times nothing of a GPU, but runs
    _require(asked)
    try:
        from benchmarks import roofline
        from mmdma_core.fused import pairs_cuda
    except ImportError as error:
        raise MissingDependency(f"the kernels need Triton ({error}): pip install triton") from error

    d, device = asked.settings.n_components, torch.device(asked.device)
    found = {"products truncate": float(roofline.products_truncate(asked.device))}
    for tile in pairs_cuda.candidates(d):
        name = f"tile of {tile.M} rows, {tile.N} columns, {tile.num_warps} warps"
        report({"stage": name})
        with suppress(pairs_cuda.OutOfResources):  # a tile that this GPU cannot hold
            found[name] = pairs_cuda.milliseconds(asked.n, d, tile, device)
        report({"metrics": found})
    report({"stage": "compact and wide blocks apart"})
    of_blocks = roofline.apart(asked.n, d, asked.device)
    _done(report, found | {f"{kind} blocks": 1000 * seconds for kind, seconds in of_blocks.items()})


def _require(asked: Check) -> None:
    missing = mmdma_core.variant(asked.variant).missing(torch.device(asked.device))
    if missing:
        raise MissingDependency(missing)


def _done(report: Report, metrics: dict[str, float], seconds: float = 0.0) -> None:
    report({"metrics": metrics, "prepare_s": 0.0, "epoch_s": [seconds], "status": "ok"})


_WORK: dict[str, Work] = {"lacks": lacks, "correctness": is_right, "kernels": times_kernels}


def _checked(visit: Visit, kind: str, variants: Sequence[str], good: str, lines: Sequence[str] = ()) -> Outcome:
    """Check each variant; those that lack something are told of by the step that asks for it."""
    study, found = visit.table, []
    with alone(study.device, study.root, study.devices):
        guard.preload(variants, study.device)
        who = machine.describe(study.device, study.threads)
        for variant in variants:
            asked = Check.of(study, kind, variant, visit.sizes)
            path = visit.folder / kind / f"{variant}.json"
            record, _ = known_at(path, asked, ["error", "timeout"] if visit.retry else [])
            if record is None and visit.left() > 0:
                record = guard.measure_within(asked, who, visit.left(), _WORK[kind])
                records.write(record, path)
            if record is not None and record.status != "skipped":
                found.append(record)
    counts = Counter(record.status for record in found)
    told = ("ok", "missing_dependency") if kind == "correctness" else ("ok",)
    bad = [_sentence(record) for record in found if record.status not in told]
    words = f"{counts['ok']} of {len(variants)} {good}{_others(counts)}"
    return Outcome(len(found) == len(variants), words, [*lines, *bad])


def _measured(study: Study, points: Sequence[tuple[str, int, int]]) -> Outcome:
    """Which of the points (variant, n, p) are known, and how their measurements ended."""
    known = [record for point in points if (record := study.known(*point)) is not None]
    counts = Counter(record.status for record in known)
    words = f"{len(known)} of {len(points)} measurements are known: {counts['ok']} ok{_others(counts)}"
    bad = [f"n = {record.n}, p = {record.p}, {_sentence(record)}" for record in known if record.status == "error"]
    return Outcome(len(known) == len(points), words, bad)


def _others(counts: Counter[str]) -> str:
    return "".join(f", {n} {status.replace('_', ' ')}" for status, n in sorted(counts.items()) if status != "ok" and n)


def _sentence(record: Record) -> str:
    """A record that is not ok in one line: what is wrong, or the end of what was said."""
    if record.deviations:
        return f"{record.variant} is wrong: {'; '.join(_first(record.deviations))}"
    lines = [line.strip() for line in record.detail.splitlines() if line.strip()]
    said = list(dict.fromkeys(lines[:1] + lines[-1:]))
    return f"{record.variant}: {record.status.replace('_', ' ')}: {': '.join(said)}"


def _first(wrong: list[str]) -> list[str]:
    return [*wrong[:_SHOWN], *([f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else [])]


# The steps, in their order


def machine_and_what_is_missing(visit: Visit) -> Outcome:
    """Tell device, driver, versions; what the variants lack."""
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


def every_variant(visit: Visit) -> Outcome:
    """Compare every variant with float64, the exact ones first."""
    known = {name: mmdma_core.variant(name) for name in mmdma_core.variants()}
    exact_first = sorted((name for name in known if not known[name].objective), key=lambda name: not known[name].exact)
    others = [f"not compared: {name}, {variant.remark}" for name, variant in known.items() if variant.objective]
    return _checked(visit, "correctness", exact_first, "variants are right", others)


def keops(visit: Visit) -> Outcome:
    """Tell whether KeOps computes on the device: what its variants require; the first step may have found it."""
    return _checked(visit, "lacks", _KEOPS, "variants run on KeOps")


def rows_of_readme(visit: Visit) -> Outcome:
    """Measure the GPU rows of README's table."""
    study, sizes = visit.table, visit.sizes
    for variants, ns in sizes.rows:
        if visit.left() > 0:
            sweep.run_sweeps(study, variants, sizes.p, ns, visit.left(), visit.retry)
    return _measured(study, [(v, n, p) for variants, ns in sizes.rows for v in variants for n in ns for p in sizes.p])


def shape_of_citeseq(visit: Visit) -> Outcome:
    """Measure at CITE-seq's shape; a further variant only where there is as much time as the one before took."""
    changed = visit.config | {"citeseq": visit.config["citeseq"] | visit.sizes.citeseq}
    study = citeseq.load(visit.table, changed)
    points = [(variant, study.n[0], study.p[0]) for variant in study.variants]
    needed = 0.0
    for k, point in enumerate(points, 1):
        if study.known(*point) is None and visit.left() > needed:
            citeseq.run(replace(study, variants=study.variants[:k]), visit.retry, visit.left())
        record = study.known(*point)
        needed = record.cell_s or 0.0 if record else math.inf
    return _measured(study, points)


def kernels(visit: Visit) -> Outcome:
    """Time the tiles of the pass over pairs, compact blocks and wide ones apart; say whether products truncate."""
    outcome = _checked(visit, "kernels", _EXACT, "passes over pairs are timed")
    record = records.find(visit.folder / "kernels" / f"{_EXACT[0]}.json")
    if record is None or record.status != "ok":
        return outcome
    shown = dict(record.metrics)
    rounding = "truncate" if shown.pop("products truncate") else "round to the nearest"
    lines = [f"products of float16 matrices {rounding}", f"n = {record.n} of each view:"]
    lines += [f"  {name}: {milliseconds:.3g} ms" for name, milliseconds in shown.items()]
    return outcome._replace(lines=lines)


def overview(visit: Visit) -> Outcome:
    """Measure the survey, all variants at small n before any at larger ones, so that a cut leaves an overview."""
    study, most = visit.overview, len(visit.overview.n)
    for count in [most] if visit.retry else range(1, most + 1):  # an error is tried again once
        if visit.left() > 0:
            sweep.run_sweeps(study, ns=study.n[:count], budget_s=visit.left(), retry=visit.retry)
    return _measured(study, [(variant, n, p) for variant, p, n in study.points()])


def table_figures_report(visit: Visit) -> Outcome:
    """Show the survey; drawn again only after something was measured."""
    from benchmarks import figures
    from benchmarks.analysis import agreement, table

    study = visit.overview
    paths = (records.record_path(study.root, r.variant, r.p, r.n) for r in records.read_folder(study.root).records)
    newest = max((path.stat().st_mtime for path in paths), default=0.0)
    page, before = study.root / "report.html", visit.steps.get("report", {})
    if before.get("done") and before.get("study") == study.name and page.exists() and page.stat().st_mtime >= newest:
        return Outcome(True, f"{page} shows all that is known")
    if visit.left() <= 0 or not newest:
        return Outcome(False, "not drawn")
    agreement.write_losses(table.write_summary(study.root), study.root)
    figures.draw_all(study)
    return Outcome(True, f"{visit.write_report(study)} and {study.root / 'figures'}")


# name -> (the part of the budget by whose end it has to be done, what it does, what it is in words). What a step does
# not take is left to those after it. Most of CITE-seq's time makes the data.
STEPS: dict[str, tuple[float, Callable[[Visit], Outcome], str]] = {
    "machine": (0.08, machine_and_what_is_missing, "the machine, and what is missing"),
    "correctness": (0.27, every_variant, "every variant against float64"),
    "keops": (0.29, keops, "KeOps"),
    "table": (0.47, rows_of_readme, "the rows of README's table"),
    "citeseq": (0.81, shape_of_citeseq, "the shape of CITE-seq"),
    "kernels": (0.86, kernels, "the pass over pairs: tiles, and kinds of blocks"),
    "survey": (0.93, overview, "the study of all variants"),
    "report": (1.00, table_figures_report, "table, figures, report"),
}
