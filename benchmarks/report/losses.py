"""Whether the variants compute the same: their losses after the same few epochs, and who stands apart."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

import mmdma_core
from benchmarks.analysis import agreement
from benchmarks.analysis.agreement import MMD_TOLERANCE, NORM_TOLERANCE, losses
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, paragraph, table
from benchmarks.report.words import percent


def section(evidence: Evidence) -> Section | None:
    """losses.csv as a table, with those marked that stand apart, and by how much; None without a measured cell."""
    if evidence.grid.empty or not (evidence.grid["status"] == "ok").any():
        return None
    found, (others, total) = losses(evidence.grid), apart(evidence)
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


def apart(evidence: Evidence) -> tuple[dict[agreement.Point, agreement.Apart], int]:
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
