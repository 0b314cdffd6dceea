"""Warnings that name the line of a person's own code, however deep in this package they arise."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = ("mmdma_core", "contextlib", "sklearn")  # scikit-learn stands around transform and fit_transform


@contextmanager
def at_the_caller() -> Iterator[None]:
    """Warnings of the block are given after it, as of the line that called into this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame = frame.f_back
    place = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    caught = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:  # a warning may tell what the error comes of
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, *place, registry)
