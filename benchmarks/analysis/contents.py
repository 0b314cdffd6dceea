"""What lies in the folder of results, for `python -m benchmarks check`: records, and what is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from benchmarks.measuring.records import STATUSES, Folder, counted, foreign_in_words, is_leftover, read_folder
from benchmarks.analysis.differences import machine_name
from benchmarks import running
from benchmarks.study import Study


def describe(study: Study) -> Iterator[str]:
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
    others = running.cells(study)[1]
    if others:
        yield f"  {counted(others)} that tell of no running cell: a node has died, or they are not of the harness"
