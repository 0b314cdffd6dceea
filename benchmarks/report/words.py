"""Numbers, lists and ranges as a reader writes them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

from benchmarks.plan import runs


def number(value: float | None) -> str:
    """Three digits: 0.0123, 4.57, 1,230; '' for None and for what is no number."""
    if value is None or math.isnan(value):
        return ""
    if isinstance(value, int) or abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(share: float, digits: int = 0) -> str:
    """'7 %'; '' for what is no number."""
    return "" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def cells(count: int) -> str:
    """'1 cell', '1,200 cells'."""
    return f"{count:,} cell" + ("" if count == 1 else "s")


def listing(words: Sequence[str], most: int | None = None) -> str:
    """'a, b and c'; beyond `most` words 'a, b and 3 more'."""
    words = list(words)
    if most is not None and len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def spans(values: Iterable[int], grid: Sequence[int]) -> str:
    """Values of a grid, with neighbours in one: '10 to 1,000 and 5,000'."""
    return listing([f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in runs(set(values), grid)])


def at(values: Iterable[int], grid: Sequence[int], name: str) -> str:
    """'p = 10 to 100', or 'every p' where all of the grid is meant."""
    values = set(values)
    return f"every {name}" if values == set(grid) and len(values) > 1 else f"{name} = {spans(values, grid)}"


def grouped(values: Mapping[Hashable, Hashable]) -> dict[Hashable, list]:
    """Value -> the keys that have it, both in order of appearance."""
    groups: dict[Hashable, list] = {}
    for key, value in values.items():
        groups.setdefault(value, []).append(key)
    return groups
