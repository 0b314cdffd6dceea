"""What differs between the machines and settings of two sets of records, in sentences.

Two results folders, cell by cell: which is faster, for `python -m benchmarks compare A B`.

The rule, on the epochs that each record holds: the ratio is the median epoch of B over that of A, and it lies between
the least and the most that the 95 % intervals of the two medians allow (benchmarks.analysis.table; order statistics, so
that no distribution is assumed). With a threshold of 1.1, B is

    slower    if all of that is above 1.1,
    faster    if all of it is below 1 / 1.1,
    same      if all of it is within 1 / 1.1 and 1.1,
    noisy     otherwise, and where a side has one epoch: too noisy to say.

Cells that answer another question in B than in A (benchmarks.analysis.compare.another_question) are left out and
named: another seed, number of epochs or components, other data, or settings that show in the losses.

A cell that came to an end in A and in B ran out of memory or time or raised an error is `lost`, and counts as slower;
`gained` is the other way round. Epochs of one cell follow each other within seconds: what drifts between two runs
(other load, another clock) is in the ratio and not in the intervals, so the threshold should not be below what a
repeated run of the same code gives.

Beside the cells, the maps of the fastest are compared, and whole fits (benchmarks.analysis.maps).

What lies in the folder of results, for `python -m benchmarks check`: records, and what is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from benchmarks import plan
from benchmarks.analysis import agreement, maps
from benchmarks.analysis.published import PUBLISHED
from benchmarks.analysis.table import ENOUGH, median_interval
from benchmarks.measuring.others import NOISY
from benchmarks.measuring.records import STATUSES, Folder, Record, counted, foreign_in_words, is_leftover, read_folder
from benchmarks.study import Study

_CLOCK = 0.03  # GPU clocks come in steps of 15 MHz; more than this fraction is another clock
_NOISE = ("gpu.sm_clock_mhz", "gpu.memory_clock_mhz")  # differ from cell to cell: their medians are compared
_MOST = 3  # values of one thing that a sentence names


def one_machine(found: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The records of the machine that measured the most, and a sentence about every other one."""
    counts = Counter(map(machine_name, found))
    (most, _), *others = counts.most_common()
    said = [f"{count} records of {name}, another machine than {most}, which has the most" for name, count in others]
    return [record for record in found if machine_name(record) == most], said


def machine_name(record: Record) -> str:
    """The GPU, or the CPU and its threads, that measured."""
    if record.device == "cuda":
        return str((record.machine.get("gpu") or {}).get("name", "an unnamed GPU"))
    return f"{record.machine.get('cpu', 'an unnamed CPU')} with {record.machine.get('cpu_threads', '?')} threads"


def warnings_about(a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    """A sentence for each part of the machine, version or setting that differs; a and b are of the same cells."""
    said = []
    facts_a, facts_b = ([_facts(record) for record in side] for side in (a, b))
    for name in sorted({name for facts in facts_a + facts_b for name in facts}):
        values = [[facts.get(name) for facts in side] for side in (facts_a, facts_b)]
        if name in _NOISE:
            said += _clocks(name, *values)
        elif set(values[0]) != set(values[1]):
            said.append(f"{name} differs: {_named(values[0])} in A, {_named(values[1])} in B")
    other = sum(first.key != second.key for first, second in zip(a, b, strict=True))
    if other:
        said.append(f"{other} of {len(a)} cells were measured with other code of the variant, or other packages for it")
    return said + _others(a, b)


def beside_in(a: Record, b: Record) -> str:
    """What others took of the machine while a cell was measured, in words; '' where that was little or is not known."""
    sides = [(record.others_in_words, side) for record, side in ((a, "A"), (b, "B")) if (record.others or 0.0) > NOISY]
    return f"others took {' and '.join(f'{share} in {side}' for share, side in sides)}" if sides else ""


def _others(a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    """Of how many cells others may be the reason; and of how many nobody knows, where of some it is known."""
    said, known = [], any(record.others is not None for record in (*a, *b))
    for letter, side in (("A", a), ("B", b)):
        noisy = sum((record.others or 0.0) > NOISY for record in side)
        unknown = sum(record.others is None and record.status != "skipped" for record in side)
        if noisy:
            took = f"others took more than {100 * NOISY:.0f} % of the cores or of the GPU"
            said.append(f"{took} beside {noisy} of {len(side)} cells in {letter}")
        if known and unknown:
            said.append(f"what others took of the machine is not known of {unknown} of {len(side)} cells in {letter}")
    return said


def another_question(a: Record, b: Record) -> str | None:
    """What makes the times of two records of one cell no answers to the same question, in words; None: they can be.

    Their keys also differ with the code of the variant. What is not in a record, such as sigma, shows in the losses
    after the same few epochs.
    """
    for name in ("d", "epochs", "seed", "data_mode", "devices"):
        values = getattr(a, name), getattr(b, name)
        if values[0] != values[1] and None not in values:
            return f"{name} is {values[0]} in A, {values[1]} in B"
    losses = [record.losses.get("early") for record in (a, b)]
    if a.key != b.key and all(losses) and not agreement.same_question(a.variant, a.n, *losses):
        return "their losses after the same epochs differ: other settings or data, or code that computes something else"
    return None


def _facts(record: Record) -> dict[str, Any]:
    """Everything of a record that may explain a difference, flat: 'gpu.name', 'versions.torch', 'epochs'."""
    facts = {name: getattr(record, name) for name in ("device", "d", "epochs", "seed", "data_mode")}
    for name, value in record.machine.items():
        facts |= (
            {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    return {name: value for name, value in facts.items() if isinstance(value, str | int | float | None)}


def _named(values: Iterable[Any]) -> str:
    each = sorted({str(value) for value in values})
    return " or ".join(each[:_MOST]) + (f" or {len(each) - _MOST} more" if len(each) > _MOST else "")


def _clocks(name: str, a: list, b: list) -> list[str]:
    known = [[value for value in side if value] for side in (a, b)]
    if not all(known):
        return []
    first, second = map(median, known)
    differ = abs(second / first - 1) > _CLOCK
    return [f"{name} differs: {first:g} MHz in A, {second:g} MHz in B (medians)"] if differ else []


VERDICTS = ("slower", "lost", "faster", "gained", "same", "noisy")
WORDS = {"noisy": "too noisy to say", "lost": "lost (ended in A, not in B)", "gained": "gained (ended in B, not in A)"}
COLUMNS = (
    *("variant", "p", "n", "a_s", "b_s", "ratio", "low", "high"),
    *("a_epochs", "b_epochs", "verdict", "b_outcome", "beside"),
)
_FAILED = ("oom", "timeout", "error")
Point = tuple[str, int, int]  # variant, p, n


@dataclass(frozen=True)
class Comparison:
    """Two folders compared.

    machines    who measured A and B
    cells       one row a cell that both have, with COLUMNS: median epochs in seconds, their ratio B / A and its range;
                beside: what others took of the machine meanwhile, in words where it may be the reason, else ''
    points      the maps of the fastest, see benchmarks.analysis.maps.compared
    fits        lines about whole fits: quality against time
    warnings    a sentence for each thing other than the code that differs between A and B
    left_out    a sentence for each kind of cell or record that is not compared
    threshold   see the module's docstring
    """

    a: str
    b: str
    machines: tuple[str, str]
    cells: pd.DataFrame
    points: pd.DataFrame
    fits: list[str]
    warnings: list[str]
    left_out: list[str]
    threshold: float

    @property
    def slower(self) -> bool:
        """Whether B is slower in some cell, or lost one."""
        return bool(self.cells["verdict"].isin(["slower", "lost"]).any())


def compare(a: Path, b: Path, threshold: float = 1.1) -> Comparison:
    """Compare results folder b with a. Raises ValueError for a bad threshold, no readable record, no common cell."""
    if not threshold > 1:
        raise ValueError(f"--threshold must be above 1, got {threshold:g}")
    left_out: list[str] = []
    sides = [_records_of(folder, letter, left_out) for folder, letter in ((a, "A"), (b, "B"))]
    machines = tuple(machine_name(next(iter(side.values()))) for side in sides)
    sides, other = _same_question(*sides)
    left_out += other
    rows = [row for point in sorted(sides[0].keys() & sides[1].keys()) if (row := _cell(point, *sides, threshold))]
    left_out += _not_compared(*sides, {tuple(row[:3]) for row in rows})
    if not rows:
        why = f"; {other[0]}" if other else ""
        raise ValueError(f"{a} and {b} have no cell that ended in one of them and was tried in the other{why}")
    cells = pd.DataFrame(rows, columns=list(COLUMNS))
    compared = [[side[point] for point in zip(*(cells[c] for c in COLUMNS[:3]), strict=True)] for side in sides]
    points, fits = maps.compared(*sides, threshold), list(maps.quality_against_time(a, b))
    return Comparison(str(a), str(b), machines, cells, points, fits, warnings_about(*compared), left_out, threshold)


def judge(a: list[float], b: list[float], threshold: float) -> tuple[str, float, float]:
    """'slower', 'faster', 'same' or 'noisy', and the range of the ratio B / A, for the epochs of both in seconds."""
    (a_low, a_high), (b_low, b_high) = median_interval(a), median_interval(b)
    low, high = b_low / a_high, b_high / a_low
    if min(len(a), len(b)) < 2:
        return "noisy", low, high
    if low > threshold:
        return "slower", low, high
    if high < 1 / threshold:
        return "faster", low, high
    return ("same" if 1 / threshold <= low and high <= threshold else "noisy"), low, high


def _same_question(a: dict[Point, Record], b: dict[Point, Record]) -> tuple[list[dict[Point, Record]], list[str]]:
    """Both sides without the cells that answer another question in B than in A, and a sentence for each reason."""
    why = {point: another_question(a[point], b[point]) for point in a.keys() & b.keys()}
    counts = Counter((point[0], reason) for point, reason in why.items() if reason)
    said = [
        f"{count} cell{'s' * (count > 1)} of {variant}, which answer{'s' * (count == 1)} another question: {reason}"
        for (variant, reason), count in sorted(counts.items())
    ]
    return [{point: own for point, own in side.items() if not why.get(point)} for side in (a, b)], said


def _records_of(folder: Path, letter: str, left_out: list[str]) -> dict[Point, Record]:
    """The records of the machine that measured most of a folder; what is left out is added to `left_out`."""
    held = read_folder(folder)
    left_out += [f"{letter}: {sentence}" for sentence in held.left_out]
    if not held.records:
        reason = f"; {held.left_out[0]}" if held.left_out else ""
        if folder.resolve() == PUBLISHED.parent:
            reason = (
                ", but the published runtimes: figures/against_paper and the report of a folder set it against them "
                "(python -m benchmarks figures, python -m benchmarks report)"
            )
        raise ValueError(f"{folder / 'records'} holds no readable record{reason}")
    kept, said = one_machine(held.records)
    left_out += [f"{letter}: {sentence}" for sentence in said]
    return {(record.variant, record.p, record.n): record for record in kept}


def _cell(point: Point, a_side: dict, b_side: dict, threshold: float) -> tuple | None:
    """A row of COLUMNS; None where neither ended, or one of them was not tried."""
    a, b = a_side[point], b_side[point]
    medians = (a.median_epoch_s if a.status == "ok" else None, b.median_epoch_s if b.status == "ok" else None)
    counts, beside = (len(a.epoch_s), len(b.epoch_s)), beside_in(a, b)
    if a.status == b.status == "ok":
        verdict, low, high = judge(a.epoch_s, b.epoch_s, threshold)
        return (*point, *medians, medians[1] / medians[0], low, high, *counts, verdict, b.status, beside)
    ended = {("ok", True): "lost", (True, "ok"): "gained"}
    states = tuple("ok" if side.status == "ok" else side.status in _FAILED or _is_implied(side) for side in (a, b))
    verdict = ended.get(states)
    return verdict and (*point, *medians, None, None, None, *counts, verdict, b.status, beside)


def _is_implied(record: Record) -> bool:
    """Whether a cell was skipped because a smaller n ran out of memory or time."""
    return record.status == "skipped" and record.implied_by is not None


def _not_compared(a: dict, b: dict, compared: set[Point]) -> Iterator[str]:
    """How many cells are in no row: those that ended on one side, by variant and reason, and those on neither."""
    for letter, mine, other, other_letter in (("A", a, b, "B"), ("B", b, a, "A")):
        reasons: dict[tuple[str, str], int] = {}
        for point, record in mine.items():
            if record.status == "ok" and point not in compared:
                state = other[point].status if point in other else "not there"
                reasons[record.variant, state] = reasons.get((record.variant, state), 0) + 1
        for (variant, state), count in sorted(reasons.items()):
            cells = f"{count} cell" + ("s" if count > 1 else "")
            yield f"{letter}: {cells} of {variant}, in {other_letter}: {state}"
    neither = sum("ok" not in (a[point].status, b[point].status) for point in a.keys() & b.keys())
    if neither:
        yield f"{neither} cells that ended neither in A nor in B"


def describe(found: Comparison) -> str:
    """The comparison in words: what is compared, the counts, the rule, what else differs; then the lists of cells."""
    counts = found.cells["verdict"].value_counts()
    few = int((found.cells[["a_epochs", "b_epochs"]].min(axis=1) < ENOUGH).sum())
    variants, (a, b) = found.cells["variant"].nunique(), found.machines
    lines = [
        f"B against A: seconds per epoch of {variants} variant{'s' * (variants > 1)} in {len(found.cells)} "
        f"cell{'s' * (len(found.cells) > 1)} that both tried{f', on {a}' if a == b else f'; A on {a}, B on {b}'}",
        f"A  {found.a}",
        f"B  {found.b}",
    ]
    lines += [f"  {WORDS.get(verdict, verdict):<32} {counts.get(verdict, 0):>5}" for verdict in VERDICTS]
    lines += [*maps.describe(found.points), *found.fits]
    lines.append(_rule(found.threshold))
    if few:
        lines.append(
            f"{few} of these cells have fewer than {ENOUGH} epochs on a side: there the range is all there is."
        )
    lines += [f"warning: {sentence}" for sentence in found.warnings]
    lines += maps.describe_points(found.points)
    for verdict in VERDICTS[:4]:
        cells = found.cells[found.cells["verdict"] == verdict]
        lines += [f"{WORDS.get(verdict, verdict)}:"] * (len(cells) > 0) + [_line(cell) for cell in cells.itertuples()]
    lines += [f"left out: {sentence}" for sentence in found.left_out]
    return "\n".join(lines)


def _line(cell: object) -> str:
    name = cell.variant + maps.remark(cell.variant)
    where = f"    {name:<24} n = {cell.n:<8} p = {cell.p:<6}"
    beside = f"; {cell.beside}" if cell.beside else ""
    if cell.verdict == "lost":
        return f"{where} {cell.a_s:.3e} -> {cell.b_outcome}{beside}"
    if cell.verdict == "gained":
        return f"{where} -> {cell.b_s:.3e}{beside}"
    return f"{where} {cell.a_s:.3e} -> {cell.b_s:.3e}  x {cell.ratio:.3g} ({cell.low:.3g} to {cell.high:.3g}){beside}"


def _rule(threshold: float) -> str:
    return (
        f"Slower: the whole range of B / A is above {threshold:g}; faster: below 1 / {threshold:g}; same: within; else "
        "too noisy to say. The range is what the 95 % intervals of the two medians allow (order statistics). "
        "Of the fastest: equal where the intervals of several overlap and A and B share one, or within the threshold."
    )


def describe_contents(study: Study) -> Iterator[str]:
    """The records of results/MACHINE, those of experiments in its folders, and a line for each kind of other thing."""
    root = study.root
    tops = {path.parent for path in root.rglob("records") if path.is_dir()} - {root}
    if not root.is_dir():
        yield f"{root}: nothing is measured yet"
        return
    yield from _of_records(f"{root}", [read_folder(root)])
    for name in sorted({top.relative_to(root).parts[0] for top in tops}):
        yield from _of_records(f"{root / name}", [read_folder(top) for top in tops if top.is_relative_to(root / name)])
    yield from _not_running(study)
    leftovers = sorted(path for path in root.rglob("*") if is_leftover(path) and not path.is_dir())
    if leftovers:
        yield f"  half written when a process ended, or set aside: {counted(leftovers)}; they can be removed"


def left_out(study: Study) -> list[str]:
    """A sentence for each thing in results/MACHINE that a plan does not look at."""
    return [*read_folder(study.root).left_out, *map(str.strip, _not_running(study))]


def _of_records(where: str, folders: Sequence[Folder]) -> Iterator[str]:
    held, unreadable, foreign = (
        list(chain.from_iterable(getattr(folder, name) for folder in folders))
        for name in ("records", "unreadable", "foreign")
    )
    counts = Counter(record.status for record in held)
    ends = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES if counts[status])
    yield f"{where}: {len(held):,} records{': ' * bool(ends)}{ends}"
    models = Counter(map(machine_name, held)).most_common()
    for model, count in models[1:]:
        yield f"  {count:,} of them of {model}, most are of {models[0][0]}"
    if unreadable:
        yield f"  {len(unreadable):,} more that cannot be read, such as {unreadable[0]}"
    if foreign:
        yield f"  left out: {foreign_in_words(foreign)}"


def _not_running(study: Study) -> Iterator[str]:
    others = plan.running(study)[1]
    if others:
        yield f"  {counted(others)} that tell of no running cell: a node has died, or they are not of the harness"
