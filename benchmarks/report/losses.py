"""Whether the variants compute the same: their losses after the same few epochs, and who stands apart."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

import mmdma_core
from benchmarks.reading.agreement import MMD_TOLERANCE, NORM_TOLERANCE, losses
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, paragraph, table
from benchmarks.report.words import number, percent
from mmdma_core import Settings

_TOLERANCES = dict.fromkeys(("pen_x", "pen_y", "dis_x", "dis_y"), NORM_TOLERANCE) | {"mmd": MMD_TOLERANCE}


def section(evidence: Evidence) -> Section | None:
    """losses.csv as a table, with those marked that stand apart, and by how much; None without a measured cell."""
    if evidence.grid.empty or not (evidence.grid["status"] == "ok").any():
        return None
    ok = evidence.grid[evidence.grid["status"] == "ok"].set_index(["variant", "n", "p"])
    found, (others, total) = losses(evidence.grid), apart(evidence)
    variants = _in_order(evidence, found)
    rows = [
        (f"{n:,}", f"{p:,}", *(_written(cell[v], v, (v, n, p) in others) for v in variants))
        for cell in found.to_dict("records")
        for n, p in [(cell["n"], cell["p"])]
    ]
    marked = [
        (variant, f"{n:,}", f"{p:,}", other, _difference(ok.loc[variant, n, p], ok.loc[other, n, p]))
        for (variant, n, p), other in others.items()
    ]
    head = ("n", "p", *(f"`{variant}`" for variant in variants))
    html = paragraph(*_in_words(evidence, len(marked), total))
    if marked:
        html += table("Losses that stand apart", ("variant", "n", "p", "from", "furthest in"), marked, (1, 2))
    every = table("Loss by cell and variant", head, rows, range(1, 2 + len(variants)), css="tall screen")
    paper = paragraph("The table of all losses, wider than paper, is left out here; `losses.csv` has it.", css="paper")
    return Section("Do they compute the same?", html + every + paper)


def apart(evidence: Evidence) -> tuple[dict[tuple[str, int, int], str], int]:
    """(variant, n, p) -> one that it stands apart from, for every loss that does; and how many losses there are."""
    found = losses(evidence.grid)
    others = {
        (variant, cell.n, cell.p): other
        for cell in found[["n", "p", "agree"]].itertuples()
        for variant, other in outliers(cell.agree, evidence.study.settings).items()
    }
    return others, int(found[_in_order(evidence, found)].notna().sum().sum())


def _in_order(evidence: Evidence, found: pd.DataFrame) -> list[str]:
    return [variant for variant in evidence.study.variants if variant in found]


def outliers(agree: str, settings: Settings) -> dict[str, str]:
    """Variants of one cell that stand apart from their family -> one that they are apart from.

    A family is the exact variants of one formulation and one estimator of MMD2; its largest group is taken to be
    right. Of two largest groups nobody knows, so both stand apart.

    agree  the groups of benchmarks.reading.agreement.losses: 'a = b | c'
    """
    families: dict[tuple, dict[int, list[str]]] = {}
    for i, group in enumerate(agree.split(" | ")):
        for variant in filter(_is_exact, group.split(" = ")):
            known = mmdma_core.variant(variant)
            family = families.setdefault((known.formulation, known.taken(settings).unbiased), {})
            family.setdefault(i, []).append(variant)
    apart = {}
    for family in families.values():
        first, *others = sorted(family.values(), key=len, reverse=True)
        apart |= {variant: first[0] for group in others for variant in group}
        if others and len(others[0]) == len(first):
            apart |= {variant: others[0][0] for variant in first}
    return apart


def _is_exact(variant: str) -> bool:
    return mmdma_core.variant(variant).exact


def _difference(one: Mapping, other: Mapping) -> str:
    """The term that is furthest off for its tolerance, and by how much: MMD2 absolutely, a norm relative to itself."""
    off = {}
    for term, tolerance in _TOLERANCES.items():
        a, b = one[f"early_{term}"], other[f"early_{term}"]
        by = abs(a - b) / (1.0 if term == "mmd" else max(abs(a), abs(b)))
        off[term] = (by / tolerance, by)
    term = max(off, key=off.get)
    return f"{term}: {number(off[term][1]) if term == 'mmd' else percent(off[term][1], 2)}"


def _in_words(evidence: Evidence, apart: int, total: int) -> tuple[str, ...]:
    epochs = int(evidence.grid["early_epoch"].max())
    return (
        f"The total loss after {epochs} epochs, from the same starting values. Compared are MMD2 (within "
        f"{MMD_TOLERANCE:g}) and each penalty and distortion (within {percent(NORM_TOLERANCE, 1)} of its value).",
        "Exact variants of one formulation and one estimator of MMD2 must agree; approximate ones, in grey, need not. "
        "Those marked ≠ do not.",
        f"**{apart:,} of {total:,} losses stand apart.**" if apart else f"None of {total:,} losses stands apart.",
    )


def _written(value: float, variant: str, apart: bool) -> str | Markup:
    if pd.isna(value):
        return ""
    if apart:
        return Markup('<span class="apart">≠ {:.6g}</span>').format(value)
    if not _is_exact(variant):
        return Markup('<span class="aside">{:.6g}</span>').format(value)
    return f"{value:.6g}"
