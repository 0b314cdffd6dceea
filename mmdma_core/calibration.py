"""The rates of a machine from a few measured cells: what turns models of cost into seconds on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from mmdma_core.advice import Measured
from mmdma_core.registry import variant, variants
from mmdma_core.costs import Rates

# In order of magnitude, from the data sheet of a V100: 1.4e13 operations and 900 GB a second; 5,120 lanes, each of
# which gives a result after four cycles. An epoch of some hundred launches: assumed.
GPU = Rates(products=1e13, passes=2e11, evaluated=1e13, compiled=1e13, filled_by=20_000, epoch_s=5e-3)
_PULL = 0.02  # what a rate that is off by e counts beside a cell that is off by e


def calibrate(cells: Sequence[Measured], start: Rates = GPU) -> Rates:
    """Rates that bring the models of cost nearest to the cells: least squares of log(predicted / measured).

    cells  of one machine, of any variants that state a cost; a few of each kind of work and of small and large n
    start  rates of a machine like it. Every rate is pulled to them a little, so that one that no cell tells stays

    Raises ValueError where no cell is of a variant that states a cost.
    """
    models = {name: variant(name).cost_model for name in variants()}
    known = [(models[cell.variant](cell.n, cell.p, cell.d), cell.epoch_s) for cell in cells if models.get(cell.variant)]
    if not known:
        raise ValueError("no cell of a variant that states a cost: rates cannot be calibrated")
    measured = np.log([seconds for _, seconds in known])

    def off(logs: np.ndarray) -> np.ndarray:
        rates = Rates(*np.exp(logs))
        predicted = np.log([cost.seconds(rates) for cost, _ in known])
        return np.concatenate([predicted - measured, _PULL * (logs - np.log(start))])

    return Rates(*map(float, np.exp(least_squares(off, np.log(start)).x)))
