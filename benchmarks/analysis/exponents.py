"""The paper's Table A1, measured: how the runtime of an epoch and the peak memory of each variant grow in n and p.

A fit takes the points where one term dominates, which the variant's own models of cost and of memory say
(mmdma_core.models). At a point a model grows locally as n^a p^b; where both a and b are within
MIXED of whole numbers, these are the exponents of the term that dominates, and the theory. Points with the same
pair are fitted together,

    log quantity = c + a log n + b log p,

by least squares, if they are also at least FLOOR times the least of the variant: what does not grow (launches, what a
process holds anyway) is then at most 1 / FLOOR of them. Intervals are of Student's t, and take the residuals as
independent; caches, whose speed changes with n, are not in the models. Nor is what the host's allocator keeps of freed
arrays below its threshold for mapping (32 MiB in glibc): peaks of host memory grow unevenly around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import t as student

import mmdma_core

MIXED = 0.25  # of an exponent: the dominating term has some three quarters of the model
FLOOR = 8.0
HIGHEST = 3  # of an exponent in Table A1; more is the seam between the two formulas of the primal at n = p
LEAST_POINTS = 3
_STEP = 1.01  # the local exponent is a difference quotient
COLUMNS = ("variant", "quantity", "term", "points", "below", "n_from", "n_to", "p_from", "p_to")
COLUMNS += ("n", "n_low", "n_high", "n_theory", "p", "p_low", "p_high", "p_theory", "note")

Model = Callable[[int, int, int], float]


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a variant, quantity and dominating term, from the table of one machine.

    quantity                'runtime' (the median epoch) or 'memory' (the peak, on the device or the host)
    term                    as in 'n p^2'; 'mixed' where none dominates, and these points are in no fit
    points, below           how many are fitted, and how many are below the floor
    n_from, n_to, p_from, p_to   range of those fitted
    n, n_low, n_high        the fitted exponent of n and its 95 % interval; NaN where it is not determined
    n_theory                the exponent of the term; p, p_low, p_high, p_theory: the same of p
    note                    why something is missing, in words
    """
    ok = table[table["status"] == "ok"]
    held = ok["peak_device_bytes"].where(ok["device"] == "cuda", ok["peak_host_bytes"]).astype(float)
    ok = ok.assign(runtime=ok["median_epoch_s"], memory=held)
    rows = []
    for variant, points in ok.groupby("variant"):
        models = _models(variant, points["device"].iloc[0])
        for quantity in ("runtime", "memory"):
            found = _terms(points.dropna(subset=[quantity]), quantity, models[quantity])
            rows += [{"variant": variant, "quantity": quantity} | row for row in found]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _models(variant: str, device: str) -> dict[str, Model | None]:
    """Return the models that a variant states on a device; none of one that is not registered (any more)."""
    if variant not in mmdma_core.variants():
        return {"runtime": None, "memory": None}
    known = mmdma_core.variant(variant)
    cost = known.cost_model
    memory = known.memory_model and partial(known.needs_bytes, device=device)
    return {"runtime": cost and (lambda n, p, d: cost(n, p, d).seconds()), "memory": memory}


def dominating(model: Model, n: int, p: int, d: int) -> tuple[int, int] | None:
    """Return the exponents in n and p of the term that makes up most of the model at a point; None where none does.

    n is taken a little smaller and p a little larger, so that both stay on one side of n = p for n <= p.
    """
    here = model(n, p, d)
    pair = (here / model(n / _STEP, p, d), model(n, p * _STEP, d) / here)
    local = [math.log(ratio) / math.log(_STEP) for ratio in pair]
    whole = tuple(round(exponent) for exponent in local)
    clear = all(abs(a - b) <= MIXED and 0 <= b <= HIGHEST for a, b in zip(local, whole, strict=True))
    return whole if clear else None


def term(exponents: tuple[int, int] | None) -> str:
    """Return 'n p^2' for (1, 2); 'mixed' for None."""
    if exponents is None:
        return "mixed"
    powers = [(name, power) for name, power in zip("np", exponents, strict=True) if power]
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in powers) or "constant"


def _terms(points: pd.DataFrame, quantity: str, model: Model | None) -> Iterator[dict]:
    """Yield a row for each term that dominates some of the points, the largest groups first, and one for the others."""
    if points.empty:
        return
    if model is None:
        reason = f"no model of its {quantity} is registered: theory and range are not known"
        yield {"term": "mixed", "points": 0, "below": len(points), "note": reason}
        return
    pairs = pd.Series(
        [dominating(model, point.n, point.p, point.d) for point in points.itertuples()],
        index=points.index,
        dtype=object,
    )
    floor = FLOOR * points[quantity].min()
    for pair in sorted(set(pairs.dropna()), key=lambda pair: -(pairs == pair).sum()):
        group = points[pairs == pair]
        above = group[group[quantity] >= floor]
        yield {"term": term(pair), "below": len(group) - len(above)} | _fit(above, quantity, pair)
    if pairs.isna().any():
        yield {"term": "mixed", "points": 0, "below": 0, "note": f"{pairs.isna().sum()} points where no term dominates"}


def _fit(points: pd.DataFrame, quantity: str, theory: tuple[int, int]) -> dict:
    """Return exponents with intervals; the axes along which the points do not vary are left out, and named."""
    row: dict = {"points": len(points), "n_theory": theory[0], "p_theory": theory[1]}
    if points.empty:
        return row | {"note": "too few points"}
    for axis in "np":
        row |= {f"{axis}_from": points[axis].min(), f"{axis}_to": points[axis].max()}
    axes = [axis for axis in "np" if points[axis].nunique() > 1]
    notes = [f"one {axis} only" for axis in "np" if axis not in axes]
    logs = np.log(points[axes].to_numpy(dtype=float)).reshape(len(points), len(axes))
    design = np.column_stack([np.ones(len(points)), logs])
    freedom = len(points) - design.shape[1]
    if len(points) < LEAST_POINTS or freedom < 1:
        return row | {"note": "; ".join(["too few points", *notes])}
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return row | {"note": "n and p vary together"}
    target = np.log(points[quantity].to_numpy(dtype=float))
    fitted = np.linalg.lstsq(design, target, rcond=None)[0]
    variance = ((target - design @ fitted) ** 2).sum() / freedom
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    half = student.ppf(0.975, freedom) * errors
    for axis, value, width in zip(axes, fitted[1:], half[1:], strict=True):
        row |= {axis: value, f"{axis}_low": value - width, f"{axis}_high": value + width}
    return row | {"note": "; ".join(notes)}
