"""The maps of the fastest in two results folders, point by point, and whole fits: quality against time.

At a point (n, p) the fastest variants of A and of B (benchmarks.analysis.published.winners: several where the
intervals of their medians overlap) are

    same    one variant, and on both sides the same,
    equal   several on a side, with one in common; or two that differ by no more than the threshold on both sides,
    differ  otherwise.

Only variants that both sides told something about compete there. Approximate ones, and those of another objective, are
in neither map; what they are worth shows in whole fits, whose matches are judged with their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd

import mmdma_core
from benchmarks.analysis.published import PAPER_VARIANTS, winners

VERDICTS = ("same", "equal", "differ")
COLUMNS = ("among", "n", "p", "a", "b", "verdict")
_UNTOLD = ("budget", "missing_dependency")  # outcomes that say nothing about how fast a variant is


def remark(variant: str) -> str:
    """' (approximate)' or the like, to stand behind the name of a variant; '' of an exact or unknown one."""
    said = mmdma_core.variant(variant).remark if variant in mmdma_core.variants() else ""
    return f" ({said})" if said else ""


def _is_exact(variant: str) -> bool:
    return variant in mmdma_core.variants() and mmdma_core.variant(variant).exact


AMONG: Mapping[str, Callable[[str], bool]] = {
    "the paper's variants": PAPER_VARIANTS.__contains__,
    "all exact variants": _is_exact,
}


def compared(a: pd.DataFrame, b: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return one row for each map and point where something ended in A or B, with COLUMNS; a and b hold winners.

    The tables of both have the same measurements in the same order.
    """
    told = ~a["outcome"].isin(_UNTOLD) & ~b["outcome"].isin(_UNTOLD)
    rows = []
    for among, takes in AMONG.items():
        kept = told & a["variant"].map(takes).astype(bool)
        sides = [dict(iter(side[kept].groupby(["n", "p"]))) for side in (a, b)]
        for n, p in sides[0]:
            pair = [side[n, p] for side in sides]
            best = [winners(each, len(each)) for each in pair]
            if any((each["status"] == "ok").any() for each in pair):
                rows.append((among, n, p, *best, _verdict(*best, *pair, threshold)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _verdict(
    a: tuple[str, ...], b: tuple[str, ...], rows_a: pd.DataFrame, rows_b: pd.DataFrame, threshold: float
) -> str:
    if set(a) & set(b):
        return "same" if len(a) == len(b) == 1 else "equal"
    for rows, best, other in ((rows_a, a, b), (rows_b, b, a)):
        runtime = rows[rows["status"] == "ok"].set_index("variant")["runtime_s"].to_dict()
        if not {best[0], other[0]} <= runtime.keys() or runtime[other[0]] > threshold * runtime[best[0]]:
            return "differ"
    return "equal"


def describe(found: pd.DataFrame) -> Iterator[str]:
    """The count of each verdict in each map."""
    for among, points in found.groupby("among", sort=False):
        counts = points["verdict"].value_counts()
        said = ", ".join(f"{verdict} {counts.get(verdict, 0)}" for verdict in VERDICTS)
        yield f"The fastest of {among} at {len(points)} points (n, p): {said}"


def describe_points(found: pd.DataFrame) -> Iterator[str]:
    """Every point that differs, map by map."""
    for among, points in found[found["verdict"] == "differ"].groupby("among", sort=False):
        yield f"the fastest of {among} differ:"
        for point in points.itertuples():
            yield f"    n = {point.n:<8} p = {point.p:<6} {' = '.join(point.a)} -> {' = '.join(point.b)}"


def quality_against_time(a: Path, b: Path) -> Iterator[str]:
    """Median seconds and FOSCTTM at the lowest loss of each method and n that `scale` fitted in both folders."""
    tables = [_fits(folder / "scale" / "scale.csv") for folder in (a, b)]
    both = [fit for fit in tables[0] if fit in tables[1]]
    if both:
        yield "Quality against time, whole fits: seconds a start, FOSCTTM at the lowest loss (0 is best):"
    for n, method in both:
        (a_s, a_foscttm), (b_s, b_foscttm) = (table[n, method] for table in tables)
        kind = remark(method.split(" ")[0])
        values = f"{a_s:.3g} -> {b_s:.3g} s, {a_foscttm:.3f} -> {b_foscttm:.3f}"
        yield f"    {method + kind:<40} n = {n:<8} {values}"


def _fits(path: Path) -> dict[tuple[int, str], tuple[float, float]]:
    if not path.exists():
        return {}
    starts = pd.read_csv(path)
    if not {"n", "method", "status", "seconds", "loss", "foscttm"} <= set(starts):
        return {}  # of another version
    ended = starts[starts["status"] == "ok"].groupby(["n", "method"], sort=False)
    return {fit: (rows["seconds"].median(), rows.loc[rows["loss"].idxmin(), "foscttm"]) for fit, rows in ended}
