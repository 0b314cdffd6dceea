"""The published study of one V100, and the question of its Figure 1A: which variant is the fastest at a point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

Winners = Mapping[tuple[int, int], tuple[str, ...]]  # (n, p) -> what `winners` gives

PAPER_VARIANTS = ("primal", "primal-keops", "dual", "dual-keops")
PAPER_IMPLEMENTATIONS = (*PAPER_VARIANTS, "original-2019", "original-2020")  # those of Figures 1B and A1

PUBLISHED = Path(__file__).parents[2] / "results" / "published-v100" / "runtimes.csv"
READING = 0.07  # a value that was read off the plot is good to this fraction
APART = (1 + READING) / (1 - READING)  # two readings within this ratio may be of equal times
EPOCHS, D, PAPER_GIB = 500, 10, 16.0
# The paper's Results give both original implementations 14,000 cells; the full estimator of the second ends near 8,000.
ORIGINALS_PUBLISHED = {"original-2019": 14_000, "original-2020": 8_000, "original-2020-stream": 14_000}
NOTHING_FITS = "nothing fits"


def winners(rows: pd.DataFrame | None, expected: int) -> tuple[str, ...]:
    """Return the fastest variant of a point and those that are as fast, by runtime; or one reason why there is none.

    As fast is a variant whose interval overlaps with that of the fastest: prepare_s + epochs x the interval that holds
    the median epoch with 95 % (benchmarks.analysis.table). More than one name is a tie, counted as 'equal'.

    rows      of the table, one for each variant that was tried; None: no variant was
    expected  how many were to be tried

    'nothing fits': all of them ran out of memory. 'too slow': none ended, and time was a reason. 'not all': none ended,
    and some could not be tried. 'untested': no row.
    """
    if rows is None:
        return ("untested",)
    ok = rows[rows["status"] == "ok"].sort_values("runtime_s", kind="stable").set_index("variant")
    if ok.empty:
        if len(rows) == expected and (rows["outcome"] == "oom").all():
            return (NOTHING_FITS,)
        return ("too slow" if rows["outcome"].isin(["timeout", "budget"]).any() else "not all",)
    best = ok.index[0]
    if "median_low_s" not in ok:  # a prediction has no interval
        return (best,)
    low, high = (ok["prepare_s"] + ok["epochs"] * ok[f"median_{end}_s"] for end in ("low", "high"))
    return tuple(ok.index[(ok.index == best) | ((low <= high[best]) & (high >= low[best]))])


def winners_over(table: pd.DataFrame, ns: Sequence[int], ps: Sequence[int], variants: Sequence[str]) -> Winners:
    """Return the winners among `variants` at every point of a grid."""
    points = dict(iter(table[table["variant"].isin(variants)].groupby(["n", "p"])))
    return {(n, p): winners(points.get((n, p)), len(variants)) for p in ps for n in ns}


@cache
def read() -> pd.DataFrame:
    """Return the runtimes that were read off the plot: variant, n, p, runtime_s."""
    return pd.read_csv(PUBLISHED)[["variant", "n", "p", "runtime_s"]]


def grid() -> tuple[list[int], list[int]]:
    """Return n and p of the published grid."""
    return sorted(read()["n"].unique().tolist()), sorted(read()["p"].unique().tolist())


def published_ends() -> dict[tuple[str, int], int]:
    """Return the last published n of each (variant, p).

    Points of the dual variants that lie behind another marker are missing, and whether they fit does not depend on p
    beyond the data: the longest of their curves stands for all p.
    """
    ends = read().pivot_table(index="p", columns="variant", values="n", aggfunc="max")
    for variant in ends.columns[ends.columns.str.startswith("dual")]:
        ends[variant] = ends[variant].max()
    return ends.unstack().astype(int).to_dict()


def runtimes() -> pd.DataFrame:
    """Return every point that fitted: variant, n, p, runtime_s, source.

    source  'read': from the panel of this p. 'other p': a dual variant whose marker is hidden here, and whose runtime
            hardly depends on p: from p = 10,000, else the median of the panels that show it. 'hidden': runtime_s is
            NaN, no panel tells it.
    """
    ns, _ = grid()
    points = [(variant, n, p) for (variant, p), end in published_ends().items() for n in ns if n <= end]
    known = pd.DataFrame(points, columns=["variant", "n", "p"]).merge(read(), how="left")
    dual = read()[read()["variant"].str.startswith("dual")]
    stands = dual.groupby(["variant", "n"])["runtime_s"].median().to_dict()
    stands |= dual[dual["p"] == 10_000].set_index(["variant", "n"])["runtime_s"].to_dict()
    other = pd.Series([stands.get(point) for point in zip(known["variant"], known["n"], strict=True)], dtype=float)
    known["source"] = "read"
    known.loc[known["runtime_s"].isna(), "source"] = "other p"
    known["runtime_s"] = known["runtime_s"].fillna(other)
    known.loc[known["runtime_s"].isna(), "source"] = "hidden"
    return known


def described(n: int, p: int) -> str:
    """Return the fastest variant where something fits, as Figure 1A shows it.

    Dual below 5000 cells; dual with KeOps from there to below 10000 for p >= 100, 20000 for p >= 2000, 30000 for
    p >= 3000; primal with KeOps elsewhere. No two runtimes that one panel shows contradict that.
    """
    if n < 5000:
        return "dual"
    end = 30_000 if p >= 3000 else 20_000 if p >= 2000 else 10_000 if p >= 100 else 0
    return "dual-keops" if n < end else "primal-keops"


def published_winners() -> pd.DataFrame:
    """Return every point of the grid: n, p, winner (a variant or NOTHING_FITS), close, hidden.

    close   the winner, and the variants that two reading errors (APART) may put before it
    hidden  the variants that fitted, with a runtime that no panel tells
    """
    known = {point: rows.set_index("variant")["runtime_s"] for point, rows in runtimes().groupby(["n", "p"])}
    ns, ps = grid()
    rows = []
    for n, p in ((n, p) for n in ns for p in ps):
        seconds = known.get((n, p))
        if seconds is None:
            rows.append((n, p, NOTHING_FITS, (NOTHING_FITS,), ()))
            continue
        shown = described(n, p)
        least = seconds.min() if math.isnan(seconds[shown]) else seconds[shown]
        close = {shown, *seconds.index[seconds <= APART * least]}
        rows.append((n, p, shown, tuple(sorted(close)), tuple(seconds.index[seconds.isna()])))
    return pd.DataFrame(rows, columns=["n", "p", "winner", "close", "hidden"])
