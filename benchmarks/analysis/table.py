"""The table of all records of a machine: summary.csv and summary.parquet, and which of its rows a reader takes.

Those of one machine, and of what a study asks. The rest is named, as is what else lies in the folder of results.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binom

import mmdma_core
from benchmarks import plan
from benchmarks.measuring.records import (
    STATUSES,
    Folder,
    Record,
    counted,
    foreign_in_words,
    is_leftover,
    read_all,
    read_folder,
)
from benchmarks.study import Study
from mmdma_core.files.atomic import atomically

ENOUGH = 6  # epochs from which order statistics can give 95 %: 1 - 2 / 2^6
# What the table has in columns of its own, or not at all.
_LEFT_OUT = ("losses", "metrics", "limits", "machine", "ran_out_of", "missing", "ranks", "deviations", "implied_end")

EXTRA = ["others", "others_in_words", "facts"]  # columns of to_full_frame beside those of to_frame


def to_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row a record: its plain fields, the median epoch, the losses, and who measured.

    epoch_s has a list of the timed epochs; a CSV file is written without it, see as_csv.
    median_low_s, median_high_s are the interval that holds the median epoch with 95 %, see median_interval.
    outcome is the status, or what a measurement was skipped for: 'oom', 'timeout' or 'budget'.
    """
    rows = []
    for record in records:
        row = {f.name: getattr(record, f.name) for f in dataclasses.fields(Record) if f.name not in _LEFT_OUT}
        row["median_epoch_s"] = record.median_epoch_s
        low_high = median_interval(record.epoch_s) if record.epoch_s else (None, None)
        row["median_low_s"], row["median_high_s"] = low_high
        row["outcome"] = (record.implied_end or "budget") if record.status == "skipped" else record.status
        row |= {f"limit_{name}": value for name, value in record.limits.items()}
        for when, losses in record.losses.items():
            row |= {f"{when}_{name}": value for name, value in losses.items()}
        row |= {f"metric_{name}": value for name, value in record.metrics.items()}
        gpu = record.machine.get("gpu")
        row |= {"gpu": gpu and gpu["name"], "cpu": record.machine.get("cpu"), "commit": record.machine.get("commit")}
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.sort_values(["variant", "p", "n"], ignore_index=True) if rows else frame


def to_full_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return to_frame with EXTRA, which no file has: who measured, and what others took of the machine meanwhile.

    others           share of the cores or of the GPU, whichever is larger, 0 to 1; NaN where it is not known
    others_in_words  'an unknown share', '73 % of the cores'
    facts            what the record says of the machine, flat: {'cpu': ..., 'gpu.name': ..., 'versions.torch': ...}
    """
    table = to_frame(records)
    if table.empty:
        return table
    known = {(record.variant, record.p, record.n): record for record in records}
    rows = [known[point] for point in zip(table["variant"], table["p"], table["n"], strict=True)]
    others = pd.Series([row.others for row in rows], dtype=float)
    return table.assign(
        others=others, others_in_words=[row.others_in_words for row in rows], facts=list(map(_facts, rows))
    )


def _facts(record: Record) -> dict[str, Any]:
    found = {}
    for name, value in record.machine.items():
        found |= (
            {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    return found


def median_interval(epoch_s: Sequence[float]) -> tuple[float, float]:
    """Return the interval that holds the median epoch with 95 %, in seconds; no distribution is assumed.

    It goes from the k-th shortest to the k-th longest epoch, with the largest k for which fewer than k of the epochs
    lie below the median with at most 2.5 % (order statistics). Under 6 epochs it is the whole range, which holds the
    median less often: with 1 - 2 / 2^m for m epochs.
    """
    ordered = sorted(epoch_s)
    k = _rank_of_bound(len(ordered))
    return ordered[k - 1], ordered[-k]


@cache
def _rank_of_bound(m: int) -> int:
    return max(int(binom.ppf(0.025, m, 0.5)), 1)


def write_summary(root: Path) -> pd.DataFrame:
    """Write summary.csv and summary.parquet of results/MACHINE. Raises ValueError if it has no readable record."""
    frame = to_frame(read_all(root))
    if frame.empty:
        raise ValueError(f"{root / 'records'} holds no readable record: run a sweep first")
    with atomically(root / "summary.csv") as part:
        part.write_text(as_csv(frame), encoding="utf-8")
    with atomically(root / "summary.parquet") as part:
        frame.to_parquet(part, index=False)
    return frame


def as_csv(frame: pd.DataFrame) -> str:
    """Return the table as text, without the lists of epochs."""
    return frame.drop(columns="epoch_s").to_csv(index=False)


def read_summary(root: Path) -> pd.DataFrame:
    """Read the table that write_summary left. Raises ValueError if there is none, or one of another version."""
    path = root / "summary.parquet"
    if not path.exists():
        raise ValueError(f"{path} is not there: run `python -m benchmarks table` first")
    table = pd.read_parquet(path)
    absent = [name for name in to_frame([Record("", 0, 0, 0, 0, 0, "", "", "ok")]) if name not in table]
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}: run `python -m benchmarks table` again")
    return table.assign(epoch_s=table["epoch_s"].map(list))


def count_statuses(frame: pd.DataFrame) -> str:
    """Say how many measurements of each variant ended how, and every error by name."""
    counts = pd.crosstab(frame["variant"], frame["status"])
    counts = counts[[status for status in STATUSES if status in counts]]
    lines = [counts.to_string()]
    for row in frame[frame["status"] == "error"].itertuples():
        lines.append(f"\nerror: {row.variant}, n = {row.n}, p = {row.p}: {row.detail}")
    return "\n".join(lines)


def machine_name(row: object) -> str:
    """Say who measured a row of the table: the GPU, or the CPU where that measured."""
    name = row.gpu if row.device == "cuda" else row.cpu
    return name if isinstance(name, str) else f"an unnamed {row.device} machine"


def one_machine(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of the machine that measured the most, and a sentence about every other one."""
    names = pd.Series([machine_name(row) for row in table.itertuples()], index=table.index, dtype=str)
    counts = names.value_counts()
    said = [
        f"{measurements(count)} of {name}: the folder holds those of several machines, {counts.index[0]} has the most"
        for name, count in counts.iloc[1:].items()
    ]
    return (table[names == counts.index[0]], said) if said else (table, [])


def of_study(table: pd.DataFrame, study: Study) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of one machine that the study asks for, and a sentence about each kind that is left out."""
    kept, said = one_machine(table)
    for name, count in kept["variant"].value_counts(sort=False).items():
        if name not in study.variants:
            why = f"which the study {study.name!r} does not ask for"
            if name not in mmdma_core.variants():
                why = "which is not registered: it no longer exists, or config.yaml does not list its plugin"
            said.append(f"{measurements(count)} of {name}, {why}")
    kept = kept[kept["variant"].isin(study.variants)]
    for axis, grid in (("n", study.every_n), ("p", study.p)):
        beyond = kept[~kept[axis].isin(grid)]
        if len(beyond):
            values = ", ".join(f"{value:,}" for value in sorted(beyond[axis].unique()))
            said.append(
                f"{measurements(len(beyond))} at {axis} = {values}, not in the grid of the study {study.name!r}"
            )
            kept = kept[kept[axis].isin(grid)]
    return kept, said


def measurements(count: int) -> str:
    """Return '1 measurement', '1,200 measurements'."""
    return f"{count:,} measurement" + ("s" if count != 1 else "")


def describe_contents(study: Study) -> Iterator[str]:
    """Say what results/MACHINE holds: its records, those of experiments, and each kind of other thing."""
    root = study.root
    if not root.is_dir():
        yield f"{root}: nothing is measured yet"
        return
    tops = {root, *(path.parent for path in root.rglob("records") if path.is_dir())}
    parts = {top: top.relative_to(root).parts[:1] for top in sorted(tops)}
    for name in sorted(set(parts.values())):
        yield from _of_records(root.joinpath(*name), [read_folder(top) for top in parts if parts[top] == name])
    yield from map("  {}".format, _not_running(study))
    leftovers = sorted(path for path in root.rglob("*") if is_leftover(path) and not path.is_dir())
    if leftovers:
        yield f"  half written when a process ended, or set aside: {counted(leftovers)}; they can be removed"


def left_out(study: Study) -> list[str]:
    """Return a sentence for each thing in results/MACHINE that a plan does not look at."""
    return [*read_folder(study.root).left_out, *_not_running(study)]


def _of_records(where: Path, folders: Sequence[Folder]) -> Iterator[str]:
    held, unreadable, foreign = (
        list(chain.from_iterable(getattr(folder, name) for folder in folders))
        for name in ("records", "unreadable", "foreign")
    )
    counts = Counter(record.status for record in held)
    ends = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES if counts[status])
    yield f"{where}: {len(held):,} records{': ' * bool(ends)}{ends}"
    yield from map("  {}".format, one_machine(to_frame(held))[1] if held else ())
    if unreadable:
        yield f"  {len(unreadable):,} more that cannot be read, such as {unreadable[0]}"
    if foreign:
        yield f"  left out: {foreign_in_words(foreign)}"


def _not_running(study: Study) -> Iterator[str]:
    others = plan.running(study)[1]
    if others:
        yield f"{counted(others)} that tell of nothing that runs: a node has died, or they are not of the harness"
