"""The table of all records of a machine: summary.csv, summary.parquet, and the count of statuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from benchmarks.measuring.records import STATUSES, Record, read_all
from benchmarks.analysis.spread import median_interval
from mmdma_core.files.atomic import atomically

_NESTED = ("epoch_s", "losses", "metrics", "limits", "machine", "ran_out_of", "missing", "ranks")


def to_frame(records: list[Record]) -> pd.DataFrame:
    """One row a cell: the record's plain fields, the median epoch, the losses, and who measured.

    median_low_s, median_high_s are the interval that holds the median epoch with 95 %, see benchmarks.analysis.spread.
    outcome is the status, or what a skipped cell was skipped for: 'oom', 'timeout' or 'budget'.
    """
    rows = []
    for record in records:
        row = {f.name: getattr(record, f.name) for f in dataclasses.fields(Record) if f.name not in _NESTED}
        row["median_epoch_s"] = record.median_epoch_s
        low_high = median_interval(record.epoch_s) if record.epoch_s else (None, None)
        row["median_low_s"], row["median_high_s"] = low_high
        row["outcome"] = _outcome(record)
        row |= {f"limit_{name}": value for name, value in record.limits.items()}
        for when, losses in record.losses.items():
            row |= {f"{when}_{name}": value for name, value in losses.items()}
        row |= {f"metric_{name}": value for name, value in record.metrics.items()}
        gpu = record.machine.get("gpu")
        row |= {"gpu": gpu and gpu["name"], "cpu": record.machine.get("cpu"), "commit": record.machine.get("commit")}
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.sort_values(["variant", "p", "n"], ignore_index=True) if rows else frame


def _outcome(record: Record) -> str:
    if record.status != "skipped":
        return record.status
    implied_by = record.detail.split(" ", 1)[0]
    return implied_by if implied_by in STATUSES else "budget"


def write_summary(root: Path) -> pd.DataFrame:
    """Write summary.csv and summary.parquet of results/MACHINE. Raises ValueError if it has no readable record."""
    frame = to_frame(read_all(root))
    if frame.empty:
        raise ValueError(f"{root / 'records'} holds no readable record: run a sweep first")
    for suffix, save in (("csv", frame.to_csv), ("parquet", frame.to_parquet)):
        with atomically(root / f"summary.{suffix}") as part:
            save(part, index=False)
    return frame


def read_summary(root: Path) -> pd.DataFrame:
    """The table that write_summary left. Raises ValueError if there is none, or one of another version."""
    path = root / "summary.parquet"
    if not path.exists():
        raise ValueError(f"{path} is not there: run `python -m benchmarks table` first")
    table = pd.read_parquet(path)
    absent = [name for name in to_frame([Record("", 0, 0, 0, 0, 0, "", "", "ok")]) if name not in table]
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}: run `python -m benchmarks table` again")
    return table


def count_statuses(frame: pd.DataFrame) -> str:
    """How many cells of each variant ended how, and every error by name."""
    counts = pd.crosstab(frame["variant"], frame["status"])
    counts = counts[[status for status in STATUSES if status in counts]]
    lines = [counts.to_string()]
    for cell in frame[frame["status"] == "error"].itertuples():
        lines.append(f"\nerror: {cell.variant}, n = {cell.n}, p = {cell.p}: {cell.detail}")
    return "\n".join(lines)
