"""The question of Figure 1A: which variant is the fastest at a point, which are as fast, or why none is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

Winners = Mapping[tuple[int, int], tuple[str, ...]]  # (n, p) -> what `winners` gives

PAPER_VARIANTS = ("primal", "primal-keops", "dual", "dual-keops")
PAPER_IMPLEMENTATIONS = (*PAPER_VARIANTS, "original-2019", "original-2020")  # those of Figures 1B and A1


def winner(cell: pd.DataFrame | None, expected: int) -> str:
    """The fastest variant of a point, from its rows of the table, else why there is none.

    cell      one row for each variant that was tried; None: no variant was
    expected  how many were to be tried

    'nothing fits': all of them ran out of memory. 'too slow': none ended, and time was a reason. 'not all': none ended,
    and some could not be tried. 'untested': no row.
    """
    if cell is None:
        return "untested"
    ok = cell[cell["status"] == "ok"]
    if len(ok):
        return ok.loc[ok["runtime_s"].idxmin(), "variant"]
    if len(cell) == expected and (cell["outcome"] == "oom").all():
        return "nothing fits"
    return "too slow" if cell["outcome"].isin(["timeout", "budget"]).any() else "not all"


def winners(cell: pd.DataFrame | None, expected: int) -> tuple[str, ...]:
    """The winner of a point, then all variants that are as fast, by runtime; or the one reason why there is none.

    As fast is a variant whose interval overlaps with the winner's: prepare_s + epochs x the interval that holds the
    median epoch with 95 % (benchmarks.analysis.spread). More than one name is a tie, counted as 'equal'.
    """
    best = winner(cell, expected)
    if cell is None or "median_low_s" not in cell or best not in set(cell["variant"]):  # a prediction has no interval
        return (best,)
    ok = cell[cell["status"] == "ok"].sort_values("runtime_s", kind="stable").set_index("variant")
    low, high = (ok["prepare_s"] + ok["epochs"] * ok[f"median_{end}_s"] for end in ("low", "high"))
    as_fast = (low <= high[best]) & (high >= low[best])
    return (best, *(variant for variant in ok.index[as_fast] if variant != best))


def winners_over(table: pd.DataFrame, ns: Sequence[int], ps: Sequence[int], variants: Sequence[str]) -> Winners:
    """The winners among `variants` at every point of a grid."""
    cells = dict(iter(table[table["variant"].isin(variants)].groupby(["n", "p"])))
    return {(n, p): winners(cells.get((n, p)), len(variants)) for p in ps for n in ns}
