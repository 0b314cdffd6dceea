"""How every cell of the study ended: a grid for each variant, and every reason in a table."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

import mmdma_core
from benchmarks.figures.style import count
from benchmarks.report import losses
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, paragraph, part, table
from benchmarks.report.words import at, grouped, number


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


def section(evidence: Evidence) -> Section | None:
    """The grids, their legend, and the reasons; None if the study has no record."""
    if evidence.grid.empty:
        return None
    study = evidence.study
    rows = {(cell.variant, cell.n, cell.p): cell for cell in evidence.grid.itertuples()}
    variants, apart = [], {name for name, _, _ in losses.apart(evidence)[0]}
    for name in study.variants:
        asked = {(n, p) for variant, p, n in study.cells() if variant == name}
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
