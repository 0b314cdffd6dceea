"""Which variants compute the same loss: the terms after the first epochs, point by point, in losses.csv.

Every measurement has its loss after the same number of epochs (EARLY_EPOCHS), from starting values that the seed alone
decides. Variants agree where MMD2 is within MMD_TOLERANCE and each penalty and distortion within
NORM_TOLERANCE of its value. Primal and dual start from different parameters, and a biased and an unbiased MMD2 differ
by about 1 / n, so several groups are expected: by formulation, by estimator, and each approximation alone.

A family is the variants of one formulation and one estimator of MMD2; the largest group of its exact ones at a point is
taken to be right there. An approximation is compared over all points at once, since its errors average out: the sum of
its differences from the family must be within its tolerance (Variant.tolerance) of the sum of what the family has. Of
MMD2 one estimate from n cells may be off by NOISE / sqrt(n) times the tolerance besides. A variant of another objective
has no family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import mmdma_core
from mmdma_core import Settings
from mmdma_core.files.atomic import atomically

MMD_TOLERANCE = 1e-4  # absolute: MMD2 is a difference of means of numbers up to 1, some of them from float32 distances
NORM_TOLERANCE = 2e-3  # a float32 norm over n^2 numbers, as `dual` takes it, was off by 1.1e-3 at n = 4,000
SAME = 0.05  # a norm of `dual` is off by 1.4 % at n = 10,000, by another order of its sum
FOSCTTM_TOLERANCE = 0.05  # 0.5 is chance; exact variants from the same starts are within 0.01
NOISE = 3.0  # single losses of the laptop study are within 0.9 of what it allows
_NORMS = ("pen_x", "pen_y", "dis_x", "dis_y")
Point = tuple[str, int, int]  # variant, n, p


class Apart(NamedTuple):
    """The variant from which a loss stands apart, and in which term by how much, in words."""

    other: str
    words: str


def apart(table: pd.DataFrame, settings: Settings) -> dict[Point, Apart]:
    """Return from whom each loss of the table stands apart that does; see the module's docstring.

    Of two largest groups of a family nobody knows which is right, so both stand apart. An approximation stands apart at
    every point that was compared, or at none.
    """
    measured = table[(table["status"] == "ok") & table["variant"].isin(mmdma_core.variants())]
    if "early_mmd" not in measured:
        return {}
    found: dict[Point, Apart] = {}
    pairs: dict[str, list[tuple]] = {}  # approximation -> its rows, and the row with which each is compared
    families = measured["variant"].map(lambda name: _family(mmdma_core.variant(name), settings))
    for _, rows in measured.groupby(["n", "p", families]):
        kinds = rows["variant"].map(mmdma_core.variant)
        groups = sorted(_groups(rows[[kind.exact for kind in kinds]]), key=len, reverse=True)
        if not groups:
            continue
        first, *others = groups
        tie = bool(others) and len(others[0]) == len(first)
        wrong = [(row, first[0]) for group in others for row in group]
        wrong += [(row, others[0][0]) for row in first] if tie else []
        for row, other in wrong:
            found[row.variant, row.n, row.p] = Apart(other.variant, _furthest(row, other))
        if not tie:
            for row in rows[[kind.remark == "approximate" for kind in kinds]].itertuples():
                pairs.setdefault(row.variant, []).append((row, first[0]))
    for name, both in pairs.items():
        words = _off_on_average(both, mmdma_core.variant(name).tolerance)
        found |= {(name, row.n, row.p): Apart(other.variant, words) for row, other in both if words}
    return found


def _family(variant: mmdma_core.Variant, settings: Settings) -> str:
    return f"{variant.formulation}, {'unbiased' if variant.taken(settings).unbiased else 'biased'}"


def matches_apart(best: Mapping[str, float]) -> set[str]:
    """Return the variants whose match is worse than their family's by more than FOSCTTM_TOLERANCE.

    best  variant -> the lowest FOSCTTM of its starts, in one problem. Here a family is those of one formulation: the
          estimators of MMD2 differ by too little to lose a match. Names that are no variants are never apart
    """
    known = {name: mmdma_core.variant(name) for name in best if name in mmdma_core.variants()}
    found = set()
    for name, variant in known.items():
        exact = [best[other] for other, own in known.items() if own.exact and own.formulation == variant.formulation]
        if exact and not variant.objective and not best[name] <= min(exact) + FOSCTTM_TOLERANCE:
            found.add(name)
    return found


def same_question(row: Any) -> bool:
    """Return whether two early losses of a variant can be those of the same settings and data.

    row  variant, n, and the terms of both: early_mmd_a, early_mmd_b and so on. Where one is missing, they can be.

    What lambda1 and lambda2 weigh is compared with its sum, beside each term; SAME of a value covers other machines.
    """
    known = mmdma_core.variant(row.variant) if row.variant in mmdma_core.variants() else None
    noise = known.tolerance if known and not known.exact else 0.0
    terms = [{term: getattr(row, f"early_{term}_{side}", None) for term in ("total", "mmd", *_NORMS)} for side in "ab"]
    if pd.isna([value for loss in terms for value in loss.values()]).any():
        return True
    for loss in terms:
        loss["weighed"] = loss["total"] - loss["mmd"]

    def near(term: str, absolute: float, relative: float) -> bool:
        left, right = (loss[term] for loss in terms)
        return abs(left - right) <= absolute + (relative + noise) * max(abs(left), abs(right))

    mmd = 10 * MMD_TOLERANCE + noise * NOISE / math.sqrt(row.n)
    return near("mmd", mmd, 0.0) and all(near(term, 0.0, SAME) for term in ("weighed", *_NORMS))


def _off_on_average(both: list[tuple], tolerance: float) -> str:
    """Return the term in which an approximation is off for its tolerance, and by how much, in words; '' if none is."""
    mine, right = (pd.DataFrame(rows) for rows in zip(*both, strict=True))

    def off(term: str) -> pd.Series:
        return mine[f"early_{term}"] - right[f"early_{term}"]

    size = right["early_mmd"].abs().sum()
    noise = NOISE * math.sqrt((1 / mine["n"]).sum())
    by = abs(off("mmd").sum(skipna=False))
    if not by <= tolerance * (size + noise) + MMD_TOLERANCE * len(both):
        return f"mmd: {by:.3g} over {len(both)} points, whose sum is {size:.3g}"
    for term in _NORMS:
        by, size = off(term).abs().sum(skipna=False), right[f"early_{term}"].abs().sum()
        if not by <= (tolerance + NORM_TOLERANCE) * size:
            return f"{term}: {100 * by / (size or 1):.3g} % over {len(both)} points"
    return ""


def _furthest(one: Any, other: Any) -> str:
    """Return the term that is furthest off for its tolerance, and by how much: MMD2 absolutely, a norm relatively."""
    off = {}
    for term in ("mmd", *_NORMS):
        a, b = getattr(one, f"early_{term}"), getattr(other, f"early_{term}")
        by = abs(a - b) / (1.0 if term == "mmd" else max(abs(a), abs(b)) or 1.0)
        off[term] = (by / (MMD_TOLERANCE if term == "mmd" else NORM_TOLERANCE), by)
    term = max(off, key=lambda term: math.inf if math.isnan(off[term][0]) else off[term][0])
    return f"{term}: {off[term][1]:.3g}" if term == "mmd" else f"{term}: {100 * off[term][1]:.2f} %"


def losses(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a point: n, p, the groups that agree as 'a = b | c', and the total loss of each variant."""
    measured = table[table["status"] == "ok"]
    rows = []
    for (n, p), point in measured.groupby(["n", "p"]):
        agree = " | ".join(" = ".join(row.variant for row in group) for group in _groups(point))
        rows.append({"n": n, "p": p, "agree": agree} | dict(zip(point["variant"], point["early_total"], strict=True)))
    return pd.DataFrame(rows, columns=["n", "p", "agree", *sorted(measured["variant"].unique())])


def write_losses(table: pd.DataFrame, root: Path) -> Path:
    """Write losses.csv of results/MACHINE from its table; return the path."""
    path = root / "losses.csv"
    with atomically(path) as part:
        losses(table).to_csv(part, index=False)
    return path


def _groups(point: pd.DataFrame) -> list[list]:
    """Return the rows of one point, each with those whose first member it agrees with."""
    groups: list[list] = []
    for one in point.itertuples():
        home = next((group for group in groups if _agree(group[0], one)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return groups


def _agree(a: Any, b: Any) -> bool:
    def near(term: str) -> bool:
        left, right = getattr(a, f"early_{term}"), getattr(b, f"early_{term}")
        return abs(left - right) <= NORM_TOLERANCE * max(abs(left), abs(right))

    return abs(a.early_mmd - b.early_mmd) <= MMD_TOLERANCE and all(map(near, _NORMS))
