"""The foot of the report: who measured, every cell in one table to search and to take along, whom to cite."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator

import pandas as pd

import mmdma_core
from benchmarks.analysis.table import as_csv
from benchmarks.measuring.records import Record
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, cells, download, listing, number, paragraph, part, table
from mmdma_core.models import in_words


def machine(evidence: Evidence) -> Section | None:
    """What the records say about the machine; where they differ, how many say what."""
    if not evidence.records:
        return None
    facts: dict[str, Counter] = {}
    for record in evidence.records:
        for name, value in _facts(record):
            facts.setdefault(name, Counter())[value] += 1
    rows = [(name, _values(counter, len(evidence.records))) for name, counter in facts.items()]
    return Section("The machine", table(f"From {len(evidence.records):,} records", ("what", "recorded"), rows))


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    machine, gpu = record.machine, record.machine.get("gpu")
    yield "node", str(machine.get("node") or "not told")
    yield "measured on", {"cuda": "GPU", "cpu": "CPU"}[record.device]
    if gpu:
        yield "GPU", gpu["name"]
        yield "GPU memory", in_words(gpu["memory_bytes"]) if gpu.get("memory_bytes") else "not told"
        yield "driver", str(gpu.get("driver"))
        yield "highest clock, MHz", str(gpu.get("max_sm_clock_mhz"))
        yield "memory clock, MHz", str(gpu.get("memory_clock_mhz"))
    yield "CPU", str(machine.get("cpu"))
    yield "CPU threads", str(machine.get("cpu_threads"))
    yield "host memory", in_words(machine["memory_bytes"]) if machine.get("memory_bytes") else "not told"
    yield "operating system", str(machine.get("os"))
    yield "Python", str(machine.get("python"))
    for package, version in machine.get("versions", {}).items():
        yield package, version or "not installed"
    for name, value in record.limits.items():
        yield f"limits.{name}", "none" if value is None else f"{value:g}"
    yield "commit", machine.get("commit") or "not told"


def _values(counter: Counter, total: int) -> str:
    if len(counter) == 1 and counter.total() == total:
        return next(iter(counter))
    return "\n".join(f"{value} ({cells(number)})" for value, number in counter.most_common())


COLUMNS = (  # of the full table: heading, column of the summary, how it is written
    ("n", "n", lambda value: f"{value:,}"),
    ("p", "p", lambda value: f"{value:,}"),
    ("status", "status", str),
    ("runtime, s", "runtime_s", number),
    ("extrapolated", "extrapolated", lambda value: {True: "yes", False: "no"}.get(value, "")),
    ("median epoch, s", "median_epoch_s", number),
    ("epochs timed", "epochs_measured", lambda value: f"{value:,}"),
    ("prepare, s", "prepare_s", number),
    ("first epoch, s", "warmup_s", number),
    ("peak memory, MiB", "memory_mib", number),
    ("loss, early", "early_total", lambda value: "" if pd.isna(value) else f"{value:.6g}"),
    ("detail", "detail", str),
)
_WORDS = ("status", "extrapolated", "detail")


def full_table(evidence: Evidence) -> Section | None:
    """Every cell that counts, in the grid or not, to search, to sort, and to take along as CSV and Parquet."""
    if not evidence.records:
        return None
    frame = evidence.table.astype({"extrapolated": object})
    frame["memory_mib"] = frame[evidence.memory_column].astype(float) / 2**20
    frame = frame.reindex(columns=[*frame.columns, *({"early_total"} - set(frame.columns))])
    rows = [
        (variant, *(write(value) for (_, _, write), value in zip(COLUMNS, values, strict=True)))
        for variant, *values in frame[["variant", *(column for _, column, _ in COLUMNS)]].itertuples(index=False)
    ]
    headings = ("variant", *(heading for heading, _, _ in COLUMNS))
    numeric = [i for i, (_, column, _) in enumerate(COLUMNS, start=1) if column not in _WORDS]
    shown = table("Every cell; a heading sorts", headings, rows, numeric, id="cells", css="tall screen")
    paper = paragraph(
        f"The table of {cells(len(rows))} is left out on paper; the page has it as CSV and Parquet.", css="paper"
    )
    return Section("Full table", part("search", links=_downloads(evidence.table)) + shown + paper)


def _downloads(frame: pd.DataFrame) -> list:
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    return [
        download("summary.csv", as_csv(frame).encode()),
        download("summary.parquet", parquet.getvalue()),
    ]


def citations(evidence: Evidence) -> Section:
    """Where each variant comes from, as it is registered."""
    gone = sorted({record.variant for record in evidence.records} - set(mmdma_core.variants()))
    more = sorted({r.variant for r in evidence.records} - set(gone) - set(evidence.study.variants))
    known = [mmdma_core.variant(name) for name in (*evidence.study.variants, *more)]
    rows = [(v.name, v.label, v.remark, v.reference) for v in known]
    html = table("The origin of each variant", ("variant", "in the figures", "", "cite"), rows)
    if gone:
        html += paragraph(
            f"Not registered any more, so without a reference: {listing([f'`{name}`' for name in gone])}."
        )
    return Section("How to cite", html)
