"""Cells that lie in one place: empty cells, copies of a cell, a view that the fit has collapsed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

_ONE_POINT, _ONE_PLACE = 16, 8  # epsilons of the type that the largest coordinate has
_FEWEST = 1e-3  # of the cells: a reader need not know of fewer


def note(e: torch.Tensor, given: object, name: str) -> tuple[str, ...]:
    """What to say of an embedding in float64, if its cells coincide to the rounding of the type that was given."""
    unit = _epsilon(given) * float(e.abs().max())
    if float((e.amax(0) - e.amin(0)).max()) <= _ONE_POINT * unit:
        return (f"all {len(e)} cells of {name} lie at one point: no metric can tell them apart",)
    places = (e / (_ONE_PLACE * unit)).round().cpu().numpy() + 0.0  # no -0
    alike = int(pd.DataFrame(places).duplicated(keep=False).sum())
    if alike > _FEWEST * len(e):
        return (f"{alike} of {len(e)} cells of {name} coincide with another cell of it",)
    return ()


def _epsilon(given: object) -> float:
    """Of the type of the coordinates; of integers that of float64."""
    if isinstance(given, torch.Tensor):
        return torch.finfo(given.dtype if given.is_floating_point() else torch.float64).eps
    dtype = np.asarray(given).dtype
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)
