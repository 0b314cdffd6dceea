"""The question of Figure 1A: which variant is the fastest at a point, which are as fast, or why none is.

The published study: runtimes read off a plot, and the fastest variant at each n and p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    median epoch with 95 % (benchmarks.analysis.table). More than one name is a tie, counted as 'equal'.
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


PUBLISHED = Path(__file__).parents[2] / "results" / "published-v100" / "runtimes.csv"
READING = 0.07  # a value that was read off the plot is good to this fraction
APART = (1 + READING) / (1 - READING)  # two readings within this ratio may be of equal times
EPOCHS, D = 500, 10
NOTHING_FITS = "nothing fits"


def grid() -> tuple[list[int], list[int]]:
    """n and p of the published grid."""
    read = pd.read_csv(PUBLISHED)
    return sorted(read["n"].unique().tolist()), sorted(read["p"].unique().tolist())


def published_ends(published: pd.DataFrame) -> dict[tuple[str, int], int]:
    """(variant, p) -> the last published n.

    Points of the dual variants that lie behind another marker are missing, and whether they fit does not depend on p
    beyond the data: the longest of their curves stands for all p.
    """
    ends = published.groupby(["variant", "p"])["n"].max().to_dict()
    longest = published.groupby("variant")["n"].max()
    ps = sorted(published["p"].unique())
    hidden = {(v, p): longest[v] for v in longest.index if v.startswith("dual") for p in ps}
    return {key: int(n) for key, n in (ends | hidden).items()}


def runtimes() -> pd.DataFrame:
    """Every cell that fitted: variant, n, p, runtime_s, source.

    source  'read': from the panel of this p. 'other p': a dual variant whose marker is hidden here, and whose runtime
            hardly depends on p: from p = 10,000, else the median of the panels that show it. 'hidden': runtime_s is
            NaN, no panel tells it.
    """
    read = pd.read_csv(PUBLISHED)[["variant", "n", "p", "runtime_s"]]
    ns, _ = grid()
    cells = [(variant, n, p) for (variant, p), end in published_ends(read).items() for n in ns if n <= end]
    known = pd.DataFrame(cells, columns=["variant", "n", "p"]).merge(read, how="left")
    dual = read[read["variant"].str.startswith("dual")]
    stands = dual.groupby(["variant", "n"])["runtime_s"].median().to_dict()
    stands |= dual[dual["p"] == 10_000].set_index(["variant", "n"])["runtime_s"].to_dict()
    other = pd.Series([stands.get(cell) for cell in zip(known["variant"], known["n"], strict=True)], dtype=float)
    known["source"] = "read"
    known.loc[known["runtime_s"].isna(), "source"] = "other p"
    known["runtime_s"] = known["runtime_s"].fillna(other)
    known.loc[known["runtime_s"].isna(), "source"] = "hidden"
    return known


def described(n: int, p: int) -> str:
    """The fastest variant where something fits, as Figure 1A shows it.

    Dual below 5000 cells; dual with KeOps from there to below 10000 for p >= 100, 20000 for p >= 2000, 30000 for
    p >= 3000; primal with KeOps elsewhere. No two runtimes that one panel shows contradict that.
    """
    if n < 5000:
        return "dual"
    end = 30_000 if p >= 3000 else 20_000 if p >= 2000 else 10_000 if p >= 100 else 0
    return "dual-keops" if n < end else "primal-keops"


def published_winners() -> pd.DataFrame:
    """Every cell of the grid: n, p, winner (a variant or NOTHING_FITS), close, hidden.

    close   the winner, and the variants that two reading errors (APART) may put before it
    hidden  the variants that fitted, with a runtime that no panel tells
    """
    cells = {point: cell.set_index("variant")["runtime_s"] for point, cell in runtimes().groupby(["n", "p"])}
    ns, ps = grid()
    rows = []
    for n, p in ((n, p) for n in ns for p in ps):
        seconds = cells.get((n, p))
        if seconds is None:
            rows.append((n, p, NOTHING_FITS, (NOTHING_FITS,), ()))
            continue
        shown = described(n, p)
        least = seconds.min() if math.isnan(seconds[shown]) else seconds[shown]
        close = {shown, *seconds.index[seconds <= APART * least]}
        rows.append((n, p, shown, tuple(sorted(close)), tuple(seconds.index[seconds.isna()])))
    return pd.DataFrame(rows, columns=["n", "p", "winner", "close", "hidden"])
