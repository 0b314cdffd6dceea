"""The question of Figure 1A: which variant is the fastest at a point, or why none is."""

from __future__ import annotations

import pandas as pd

PAPER_VARIANTS = ("primal", "primal-keops", "dual", "dual-keops")


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
