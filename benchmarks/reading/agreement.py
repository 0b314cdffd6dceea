"""Which variants compute the same loss: the terms after the first epochs, cell by cell, in losses.csv.

Every measured cell has its loss after the same number of epochs (EARLY_EPOCHS), from starting values that the seed
alone decides. Variants agree where MMD2 is within MMD_TOLERANCE and each penalty and distortion within
NORM_TOLERANCE of its value. Primal and dual start from different parameters, and a biased and an unbiased MMD2 differ
by about 1 / n, so several groups are expected: by formulation, by estimator, and each approximation alone.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmdma_core.files.atomic import atomically

MMD_TOLERANCE = 1e-4  # absolute: MMD2 is a difference of means of numbers up to 1, some of them from float32 distances
NORM_TOLERANCE = 1e-3  # a float32 norm over n^2 numbers, as `dual` takes it, was off by 2e-4 at n = 2,000
_NORMS = ("pen_x", "pen_y", "dis_x", "dis_y")


def losses(table: pd.DataFrame) -> pd.DataFrame:
    """One row a cell with a measurement: n, p, the groups as 'a = b | c', and the total loss of each variant."""
    measured = table[table["status"] == "ok"]
    rows = []
    for (n, p), cell in measured.groupby(["n", "p"]):
        totals = dict(zip(cell["variant"], cell["early_total"], strict=True))
        rows.append({"n": n, "p": p, "agree": " | ".join(" = ".join(group) for group in _groups(cell))} | totals)
    return pd.DataFrame(rows, columns=["n", "p", "agree", *sorted(measured["variant"].unique())])


def write_losses(table: pd.DataFrame, root: Path) -> Path:
    """Write losses.csv of results/MACHINE from its table; returns the path."""
    path = root / "losses.csv"
    with atomically(path) as part:
        losses(table).to_csv(part, index=False)
    return path


def _groups(cell: pd.DataFrame) -> list[list[str]]:
    """The variants of one cell, each with those whose first member it agrees with."""
    groups: list[list] = []
    for one in cell.itertuples():
        home = next((group for group in groups if _agree(group[0], one)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return [[one.variant for one in group] for group in groups]


def _agree(a: object, b: object) -> bool:
    def near(term: str) -> bool:
        left, right = getattr(a, f"early_{term}"), getattr(b, f"early_{term}")
        return abs(left - right) <= NORM_TOLERANCE * max(abs(left), abs(right))

    return abs(a.early_mmd - b.early_mmd) <= MMD_TOLERANCE and all(map(near, _NORMS))
