"""How all measurements of the study ended, with every reason; and whether the variants compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

import mmdma_core
from benchmarks.analysis.agreement import MMD_TOLERANCE, NORM_TOLERANCE, losses
from benchmarks.figures.style import count
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, at, grouped, number, paragraph, part, percent, table


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
    ("oom", "oom"): Mark("M", "memory", "ran out of memory"),
    ("skipped", "oom"): Mark("m", "memory", "ran out of memory at a smaller n"),
    ("timeout", "timeout"): Mark("T", "late", "ran out of time"),
    ("skipped", "timeout"): Mark("t", "late", "ran out of time at a smaller n"),
    ("skipped", "budget"): Mark("b", "late", "had no time left in the sweep"),
    ("error", "error"): Mark("E", "failed", "failed"),
    ("missing_dependency", "missing_dependency"): Mark("D", "absent", "lacked a package or a device"),
    ("unsupported", "unsupported"): Mark("U", "absent", "asked what the variant does not support"),
}
_UNKNOWN = Mark("?", "absent", "ended in a way that this page does not know")


def mark_of(row: Any) -> Mark:
    """Return how the end of a row of the table is shown."""
    return MARKS.get((row.status, row.outcome), _UNKNOWN)


def status_section(evidence: Evidence) -> Section | None:
    """Return the grids, their legend, and the reasons; None if the study has no record."""
    if evidence.grid.empty:
        return None
    study = evidence.study
    rows = {(row.variant, row.n, row.p): row for row in evidence.grid.itertuples()}
    variants, apart = [], {name for name, _, _ in evidence.apart}
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
        "Cells n across, features p upwards, as in the maps; under each name, how many measurements came to an end.",
        "Why the others did not is told in the table below, and over each square.",
        *(["Marked ≠ is a variant whose losses do not agree with its family's, see below."] if apart else []),
    )
    grids = part("grids", variants=variants, ns=ns, ps=ps)
    return Section("How every measurement ended", intro + legend + grids + _reasons(evidence))


def _square(row: Any, n: int, p: int, asked: set[tuple[int, int]]) -> dict:
    where = f"n = {n:,}, p = {p:,}"
    if row is None:
        mark = NO_RECORD if (n, p) in asked else NOT_ASKED
        return {"mark": mark, "title": f"{where}: {mark.words}"}
    mark = mark_of(row)
    detail = f"{number(row.runtime_s)} s" if row.status == "ok" else row.detail
    return {"mark": mark, "title": f"{where}: {mark.words}" + (f" ({detail})" if detail else "")}


def _reasons(evidence: Evidence) -> Markup:
    """Return what stands over the squares, for paper and for fingers; what ended for the same reason shares a row."""
    ended = evidence.grid[evidence.grid["status"] != "ok"]
    if ended.empty:
        return paragraph("Every measurement came to an end.")
    words = [mark_of(row).words for row in ended.itertuples()]
    rows = [
        (variant, how, _places(same, evidence), detail)
        for (variant, how, detail), same in ended.groupby(["variant", words, "detail"])
    ]
    rows.sort(key=lambda row: evidence.study.variants.index(row[0]))
    return table(
        "Measurements that did not come to an end", ("variant", "how it ended", "where", "reason"), rows, css="tall"
    )


def _places(some: pd.DataFrame, evidence: Evidence) -> str:
    """Return 'n = 4,000, p = 10 to 100', one line for each set of n."""
    ns = {p: tuple(sorted(group["n"])) for p, group in some.groupby("p")}
    lines = (f"{at(n, evidence.study.every_n, 'n')}, {at(ps, evidence.study.p, 'p')}" for n, ps in grouped(ns).items())
    return "\n".join(lines)


def losses_section(evidence: Evidence) -> Section | None:
    """Return losses.csv as a table, with those marked that stand apart, and by how much; None without a loss."""
    if evidence.ok.empty:
        return None
    found, apart, total = losses(evidence.grid), evidence.apart, len(evidence.ok)
    variants = [variant for variant in evidence.study.variants if variant in found]
    rows = [
        (f"{row['n']:,}", f"{row['p']:,}", *(_written(row[v], v, (v, row["n"], row["p"]) in apart) for v in variants))
        for row in found.to_dict("records")
    ]
    html = paragraph(
        f"The total loss after {evidence.ok['early_epoch'].max():.0f} epochs, from the same starting values. Compared "
        f"are MMD2 (within {MMD_TOLERANCE:g}) and each penalty and distortion (within {percent(NORM_TOLERANCE, 1)} of "
        "its value).",
        "Exact variants of one formulation and one estimator of MMD2 must agree. Approximate ones, in grey, must agree "
        "with them over all points within the tolerance that they declare. Those marked ≠ do not. A variant of another "
        "objective has nobody to agree with.",
        f"**{len(apart):,} of {total:,} losses stand apart.**" if apart else f"None of {total:,} losses stands apart.",
    )
    if apart:
        marked = [(v, f"{n:,}", f"{p:,}", who.other, who.words) for (v, n, p), who in sorted(apart.items())]
        html += table("Losses that stand apart", ("variant", "n", "p", "from", "furthest in"), marked, (1, 2))
    head = ("n", "p", *(f"`{variant}`" for variant in variants))
    every = table("Loss by point and variant", head, rows, range(1, 2 + len(variants)), css="tall screen")
    paper = paragraph("The table of all losses, wider than paper, is left out here; `losses.csv` has it.", css="paper")
    return Section("Do they compute the same?", html + every + paper)


def _written(value: float, variant: str, apart: bool) -> str | Markup:
    if pd.isna(value):
        return ""
    if apart:
        return Markup('<span class="apart">≠ {:.6g}</span>').format(value)
    if not mmdma_core.variant(variant).exact:
        return Markup('<span class="aside">{:.6g}</span>').format(value)
    return f"{value:.6g}"
