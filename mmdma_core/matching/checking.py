"""The parameters of the estimator, checked before anything is read or run."""

from __future__ import annotations

import numbers

from sklearn.base import BaseEstimator

from mmdma_core.fused.batches import LEAST
from mmdma_core.settings import is_whole, plain


def check_parameters(model: BaseEstimator) -> None:
    """Raises ValueError for the first that cannot be, those that are Settings' own aside."""
    for name in ("n_epochs", "n_starts", "loss_every"):
        value = plain(getattr(model, name))
        if not is_whole(value) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    size = plain(model.batch_size)
    if size is not None and size != "auto" and (not is_whole(size) or size < LEAST):
        raise ValueError(f"batch_size must be 'auto', None or an integer of at least {LEAST}, got {size!r}")
    for name in ("window", "tolerance"):
        value = plain(getattr(model, name))
        if not isinstance(value, numbers.Real) or value < 0:
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    if model.window and model.window < model.loss_every:
        raise ValueError(f"window must be 0 or at least loss_every = {model.loss_every}, got {model.window!r}")
    if model.kernel not in ("linear", "precomputed"):
        raise ValueError(f"kernel must be 'linear' or 'precomputed', got {model.kernel!r}")
    if model.kernel == "precomputed" and (model.center or model.l2_normalize):
        raise ValueError("center and l2_normalize are for features, not for kernel='precomputed'")
    if isinstance(model.sigma, str) and model.sigma != "median":
        raise ValueError(f"sigma must be a positive number or 'median', got {model.sigma!r}")
