"""Whether the variants compute the same: their losses after the same few epochs, and who stands apart.

A study that several nodes of a cluster have measured: how many, and whether they differ.

How every cell of the study ended: a grid for each variant, and every reason in a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import pandas as pd
from markupsafe import Markup

import mmdma_core
from benchmarks.analysis import agreement
from benchmarks.analysis.agreement import MMD_TOLERANCE, NORM_TOLERANCE, losses
from benchmarks.figures.style import count
from benchmarks.measuring.records import Record
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, at, cells, grouped, listing, number, paragraph, part, percent, table
from mmdma_core import advice


def losses_section(evidence: Evidence) -> Section | None:
    """losses.csv as a table, with those marked that stand apart, and by how much; None without a measured cell."""
    if evidence.grid.empty or not (evidence.grid["status"] == "ok").any():
        return None
    found, (others, total) = losses(evidence.grid), losses_apart(evidence)
    variants = _in_order(evidence, found)
    rows = [
        (f"{n:,}", f"{p:,}", *(_written(cell[v], v, (v, n, p) in others) for v in variants))
        for cell in found.to_dict("records")
        for n, p in [(cell["n"], cell["p"])]
    ]
    marked = [(v, f"{n:,}", f"{p:,}", who.other, who.words) for (v, n, p), who in sorted(others.items())]
    head = ("n", "p", *(f"`{variant}`" for variant in variants))
    html = paragraph(*_in_words(evidence, len(marked), total))
    if marked:
        html += table("Losses that stand apart", ("variant", "n", "p", "from", "furthest in"), marked, (1, 2))
    every = table("Loss by cell and variant", head, rows, range(1, 2 + len(variants)), css="tall screen")
    paper = paragraph("The table of all losses, wider than paper, is left out here; `losses.csv` has it.", css="paper")
    return Section("Do they compute the same?", html + every + paper)


def losses_apart(evidence: Evidence) -> tuple[dict[agreement.Point, agreement.Apart], int]:
    """The losses that stand apart, see benchmarks.analysis.agreement, and how many losses there are."""
    found = agreement.apart(evidence.grid, evidence.study.settings)
    return found, int((evidence.grid["status"] == "ok").sum())


def _in_order(evidence: Evidence, found: pd.DataFrame) -> list[str]:
    return [variant for variant in evidence.study.variants if variant in found]


def _in_words(evidence: Evidence, apart: int, total: int) -> tuple[str, ...]:
    epochs = int(evidence.grid["early_epoch"].max())
    return (
        f"The total loss after {epochs} epochs, from the same starting values. Compared are MMD2 (within "
        f"{MMD_TOLERANCE:g}) and each penalty and distortion (within {percent(NORM_TOLERANCE, 1)} of its value).",
        "Exact variants of one formulation and one estimator of MMD2 must agree. Approximate ones, in grey, must agree "
        "with them over all cells within the tolerance that they declare. Those marked ≠ do not. A variant of another "
        "objective has nobody to agree with.",
        f"**{apart:,} of {total:,} losses stand apart.**" if apart else f"None of {total:,} losses stands apart.",
    )


def _written(value: float, variant: str, apart: bool) -> str | Markup:
    if pd.isna(value):
        return ""
    if apart:
        return Markup('<span class="apart">≠ {:.6g}</span>').format(value)
    if not mmdma_core.variant(variant).exact:
        return Markup('<span class="aside">{:.6g}</span>').format(value)
    return f"{value:.6g}"


def nodes_section(evidence: Evidence) -> Section | None:
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


@dataclass(frozen=True)
class Mark:
    """How an end is shown: by a letter and a colour, never by colour alone."""

    letter: str
    css: str
    words: str


NO_RECORD = Mark("·", "none", "no record")
NOT_ASKED = Mark("", "none", "not part of the study")
MARKS = {  # (status, outcome) of benchmarks.analysis.table.to_frame
    ("ok", "ok"): Mark("●", "ok", "came to an end"),
    ("oom", "oom"): Mark("M", "memory", "out of memory"),
    ("skipped", "oom"): Mark("m", "memory", "not tried: out of memory at a smaller n"),
    ("timeout", "timeout"): Mark("T", "late", "out of time"),
    ("skipped", "timeout"): Mark("t", "late", "not tried: out of time at a smaller n"),
    ("skipped", "budget"): Mark("b", "late", "not tried: no time left in the sweep"),
    ("error", "error"): Mark("E", "failed", "failed"),
    ("missing_dependency", "missing_dependency"): Mark("D", "absent", "a package or a device is missing"),
    ("unsupported", "unsupported"): Mark("U", "absent", "not supported by the variant"),
}
_UNKNOWN = Mark("?", "absent", "ended in a way that this page does not know")


def status_section(evidence: Evidence) -> Section | None:
    """The grids, their legend, and the reasons; None if the study has no record."""
    if evidence.grid.empty:
        return None
    study = evidence.study
    rows = {(cell.variant, cell.n, cell.p): cell for cell in evidence.grid.itertuples()}
    variants, apart = [], {name for name, _, _ in losses_apart(evidence)[0]}
    for name in study.variants:
        asked = {(n, p) for variant, p, n in study.points() if variant == name}
        grid = [[_square(rows.get((name, n, p)), n, p, asked) for n in study.every_n] for p in reversed(study.p)]
        ended = sum(square["mark"] is MARKS["ok", "ok"] for row in grid for square in row)
        remark = mmdma_core.variant(name).remark
        said = f"{ended} of {len(asked)}{'; ' * bool(remark)}{remark}"
        variants.append({"name": name, "rows": grid, "count": said, "apart": name in apart})
    shown = {square["mark"] for variant in variants for row in variant["rows"] for square in row}
    known = (*MARKS.values(), _UNKNOWN, NO_RECORD)
    legend = part("legend", marks=[mark for mark in known if mark in shown])
    ns, ps = ([count(value) for value in values] for values in (study.every_n, reversed(study.p)))
    intro = paragraph(
        "Cells n across, features p upwards, as in the maps; under each name, how many cells came to an end.",
        "Why the others did not is told in the table below, and over each square.",
        *(["Marked ≠ is a variant whose losses do not agree with its family's, see below."] if apart else []),
    )
    grids = part("grids", variants=variants, ns=ns, ps=ps)
    return Section("How every cell ended", intro + legend + grids + _reasons(evidence))


def _square(cell: object, n: int, p: int, asked: set[tuple[int, int]]) -> dict:
    where = f"n = {n:,}, p = {p:,}"
    if cell is None:
        mark = NO_RECORD if (n, p) in asked else NOT_ASKED
        return {"mark": mark, "title": f"{where}: {mark.words}"}
    mark = MARKS.get((cell.status, cell.outcome), _UNKNOWN)
    detail = f"{number(cell.runtime_s)} s" if cell.status == "ok" else cell.detail
    return {"mark": mark, "title": f"{where}: {mark.words}" + (f" ({detail})" if detail else "")}


def _reasons(evidence: Evidence) -> Markup:
    """What stands over the squares, for paper and for fingers: cells that ended for the same reason in one row."""
    ended = evidence.grid[evidence.grid["status"] != "ok"]
    if ended.empty:
        return paragraph("Every cell that has a record came to an end.")
    rows = [
        (variant, MARKS.get((status, outcome), _UNKNOWN).words, _places(same, evidence), detail)
        for (variant, status, outcome, detail), same in ended.groupby(["variant", "status", "outcome", "detail"])
    ]
    rows.sort(key=lambda row: evidence.study.variants.index(row[0]))
    return table("Cells that did not come to an end", ("variant", "how it ended", "where", "reason"), rows, css="tall")


def _places(some: pd.DataFrame, evidence: Evidence) -> str:
    """'n = 4,000, p = 10 to 100', one line for each set of n."""
    ns = {p: tuple(sorted(group["n"])) for p, group in some.groupby("p")}
    lines = (f"{at(n, evidence.study.every_n, 'n')}, {at(ps, evidence.study.p, 'p')}" for n, ps in grouped(ns).items())
    return "\n".join(lines)
