"""The foot of the report: who measured, all measurements in one table to search and to take along, whom to cite."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Any

import pandas as pd

import mmdma_core
from benchmarks.analysis.predict import measured
from benchmarks.analysis.table import EXTRA, as_csv, measurements
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, download, listing, number, paragraph, part, table
from mmdma_core.advice import machine_speed
from mmdma_core.models import in_words

_FACTS = {  # what a record says of its machine, by the names of benchmarks.analysis.table.to_full_frame -> the heading
    "node": "node",
    "gpu.name": "GPU",
    "gpu.memory_bytes": "GPU memory",
    "gpu.driver": "driver",
    "gpu.max_sm_clock_mhz": "highest clock, MHz",
    "gpu.memory_clock_mhz": "memory clock, MHz",
    "cpu": "CPU",
    "cpu_threads": "CPU threads",
    "memory_bytes": "host memory",
    "os": "operating system",
    "python": "Python",
    "commit": "commit",
}


def machine(evidence: Evidence) -> Section | None:
    """Return what the records say about the machine; where they differ, how many say what."""
    if evidence.table.empty:
        return None
    limits = [name for name in evidence.table if name.startswith("limit_")]
    found: dict[str, Counter] = {}
    for row in evidence.table.to_dict("records"):
        measured_on = {"cuda": "GPU", "cpu": "CPU"}[row["device"]]
        for name, value in (("measured on", measured_on), *_facts(row["facts"])):
            found.setdefault(name, Counter())[value] += 1
        for name in limits:
            value = "none" if pd.isna(row[name]) else f"{row[name]:g}"
            found.setdefault(name.replace("limit_", "limits."), Counter())[value] += 1
    total = len(evidence.table)
    rows = [(name, _values(counter, total)) for name, counter in found.items()]
    return Section("The machine", table(f"From {total:,} records", ("what", "recorded"), rows))


def _facts(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, heading in _FACTS.items():
        value = facts.get(name)
        if value is not None:
            yield heading, in_words(value) if name.endswith("memory_bytes") else str(value)
        elif not name.startswith("gpu."):
            yield heading, "not told"
    for name, version in facts.items():
        if name.startswith("versions."):
            yield name.removeprefix("versions."), version or "not installed"


def _values(counter: Counter, total: int) -> str:
    if len(counter) == 1 and counter.total() == total:
        return next(iter(counter))
    return "\n".join(f"{value} ({measurements(number)})" for value, number in counter.most_common())


def nodes(evidence: Evidence) -> Section | None:
    """Return a row for each node of a cluster that measured; None where one alone has, or none is told."""
    names = evidence.grid["facts"].map(lambda facts: facts.get("node") or "not told") if len(evidence.grid) else ()
    if len(set(names)) < 2:
        return None
    rows = []
    for name, group in evidence.grid.groupby(names):
        known = [facts for facts in group["facts"] if "gpu.name" in facts]
        drivers = sorted({str(facts.get("gpu.driver")) for facts in known})
        clocks = [facts["gpu.sm_clock_mhz"] for facts in known if facts.get("gpu.sm_clock_mhz")]
        reached = f"{min(clocks):,} to {max(clocks):,}" if clocks else ""
        slower = _slower(evidence.ok[names == name], evidence.ok[names != name])
        rows.append((name, len(group), listing(drivers), reached, number(slower)))
    drivers = {row[2] for row in rows if row[2]}
    said = paragraph(
        f"{measurements(len(evidence.grid))} from {len(rows)} nodes.",
        "**Their drivers differ.**" if len(drivers) > 1 else "Their drivers are the same." if drivers else "",
        "The last column sets a node against the same variants on the others, each measurement relative to its model "
        "of cost: near 1, the nodes are alike.",
    )
    head = ("node", "measurements", "driver", "clock, MHz", "seconds, relative to the other nodes")
    return Section("The nodes", said + table("From the records", head, rows, (1, 4)))


def _slower(here: pd.DataFrame, elsewhere: pd.DataFrame) -> float | None:
    """Return the median, over the variants that other nodes measured too, of this node's speed over theirs.

    No point is measured on two nodes, so each is set against what its variant's model of cost says for it.
    """
    ratios = []
    for variant in set(here["variant"]) & set(elsewhere["variant"]):
        own, others = (machine_speed(measured(rows[rows["variant"] == variant])) for rows in (here, elsewhere))
        if own and others:
            ratios.append(own / others)
    return median(ratios) if ratios else None


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
    """Return all that counts, in the grid or not, to search, to sort, and to take along as CSV and Parquet."""
    if evidence.table.empty:
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
    shown = table("Every measurement; a heading sorts", headings, rows, numeric, id="full", css="tall screen")
    paper = paragraph(
        f"The table of {measurements(len(rows))} is left out on paper; the page has it as CSV and Parquet.", css="paper"
    )
    return Section("Full table", part("search", links=_downloads(evidence.table.drop(columns=EXTRA))) + shown + paper)


def _downloads(frame: pd.DataFrame) -> list:
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    return [
        download("summary.csv", as_csv(frame).encode()),
        download("summary.parquet", parquet.getvalue()),
    ]


def citations(evidence: Evidence) -> Section:
    """Return where each variant comes from, as it is registered."""
    measured_too = set() if evidence.table.empty else set(evidence.table["variant"])
    gone = sorted(measured_too - set(mmdma_core.variants()))
    more = sorted(measured_too - set(gone) - set(evidence.study.variants))
    known = [mmdma_core.variant(name) for name in (*evidence.study.variants, *more)]
    rows = [(v.name, v.label, v.remark, v.reference) for v in known]
    html = table("The origin of each variant", ("variant", "in the figures", "", "cite"), rows)
    if gone:
        names = listing([f"`{name}`" for name in gone])
        html += paragraph(f"Not registered any more, so without a reference: {names}.")
    return Section("How to cite", html)
