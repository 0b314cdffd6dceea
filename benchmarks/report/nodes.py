"""A study that several nodes of a cluster have measured: how many, and whether they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import mmdma_core
from benchmarks.measuring.records import Record
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, paragraph, table
from benchmarks.report.words import cells, listing, number
from mmdma_core import advice


def section(evidence: Evidence) -> Section | None:
    """A row for each node; None where one alone has measured, or none is told."""
    nodes: dict[str, list[Record]] = {}
    for record in evidence.in_study:
        nodes.setdefault(record.machine.get("node") or "not told", []).append(record)
    if len(nodes) < 2:
        return None
    told = {name: [record for record in found if record.status == "ok"] for name, found in nodes.items()}
    rows = [(name, len(found), *_facts(found), number(_slower(told, name))) for name, found in sorted(nodes.items())]
    head = ("node", "cells", "driver", "clock in the cells, MHz", "seconds, relative to the other nodes")
    said = paragraph(f"{cells(len(evidence.in_study))} from {len(nodes)} nodes.", *_differences(rows))
    return Section("The nodes", said + table("From the records", head, rows, (1, 4)))


def _facts(found: Sequence[Record]) -> tuple[str, str]:
    gpus = [gpu for record in found if (gpu := record.machine.get("gpu"))]
    drivers = sorted({str(gpu.get("driver")) for gpu in gpus})
    clocks = [gpu["sm_clock_mhz"] for gpu in gpus if gpu.get("sm_clock_mhz")]
    return listing(drivers), f"{min(clocks):,} to {max(clocks):,}" if clocks else ""


def _slower(told: dict[str, list[Record]], name: str) -> float | None:
    """The median, over the variants that other nodes measured too, of this node's speed over theirs.

    No cell is measured on two nodes, so each is set against what its variant's model of cost says for it.
    """
    ratios = []
    for variant in {record.variant for record in told[name]}:
        if mmdma_core.variant(variant).cost_model:
            here, others = [], []
            for node, found in told.items():
                cells_of_it = here if node == name else others
                cells_of_it += [record.measured for record in found if record.variant == variant]
            if here and others:
                ratios.append(advice.machine_speed(here) / advice.machine_speed(others))
    return median(ratios) if ratios else None


def _differences(rows: Sequence[tuple]) -> Iterator[str]:
    drivers = {row[2] for row in rows if row[2]}
    yield "**Their drivers differ.**" if len(drivers) > 1 else "Their drivers are the same." if drivers else ""
    yield (
        "The last column sets the cells of a node against those of the same variants on the others, each relative to "
        "its model of cost: near 1, the nodes are alike."
    )
