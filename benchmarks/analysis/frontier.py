"""Where memory ends each variant: the last n that is predicted to fit, against the last one that was published.

A prediction takes a model of memory (mmdma_core.models) and the whole of a card, of which a CUDA context and
libraries take a part; so it is an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

import mmdma_core
from benchmarks.analysis.published import PUBLISHED, published_ends
from benchmarks.measuring.memory import GIB
from benchmarks.plan import ranges
from mmdma_core.models import MEMORY_OF_ORIGINALS, MEMORY_OF_PUBLISHED, MemoryModel, broadcast_memory

# The paper's Results give both original implementations 14,000 cells; the full estimator of the second ends near 8,000.
# These n are not in the published grid, so thousands are tried.
ORIGINALS_PUBLISHED = {"original-2019": 14_000, "original-2020": 8_000, "original-2020-stream": 14_000}
PAPER_GIB = 16.0
THOUSANDS = range(1000, 101_000, 1000)
HOST_BYTES = 20  # a number of one view, measured at the published generator's peak, see _host_reason


@dataclass(frozen=True)
class End:
    """The last n of a variant at one p: of this project's model, of the published package's, and as published."""

    variant: str
    p: int
    ours: int | None
    package: int | None
    published: int | None


def last_fit(model: MemoryModel, ns: Sequence[int], p: int, d: int, limit: float) -> int | None:
    """The largest n of ns (ascending) up to which the model stays within `limit` bytes; None if the first exceeds."""
    fitting = None
    for n in ns:
        if model(n, p, d) > limit:
            break
        fitting = n
    return fitting


def ends(gib: float, published: pd.DataFrame) -> list[End]:
    """Every variant that the paper timed, at every p of its grid, on a card of `gib` GiB."""
    d, limit = mmdma_core.Settings().n_components, gib * GIB
    ns, ps = sorted(set(published["n"].tolist())), sorted(set(published["p"].tolist()))
    known = published_ends(published)
    rows = []
    for published_name, package in MEMORY_OF_PUBLISHED.items():
        name = published_name.removeprefix("published-")
        own = partial(mmdma_core.variant(name).needs_bytes, device="cuda")
        for p in ps:
            fits = (last_fit(model, ns, p, d, limit) for model in (own, package))
            rows.append(End(name, p, *fits, known.get((name, p))))
    for name, last in ORIGINALS_PUBLISHED.items():
        rows += [End(name, p, last_fit(MEMORY_OF_ORIGINALS[name], THOUSANDS, p, d, limit), None, last) for p in ps]
    return rows


def describe(gib: float) -> str:
    """The table and, for the paper's card, why prediction and publication differ where they do."""
    published = pd.read_csv(PUBLISHED)
    rows = ends(gib, published)
    lines = [
        f"the last n that fits in {gib:g} GiB, d = {mmdma_core.Settings().n_components}",
        f"  {'':<22}{'':<18}{'this project':>14}{'the package':>14}{'published':>12}",
        *_lines(rows),
        "The first two are predicted, the share of the card that a CUDA context takes not subtracted. The package is",
        "lsmmdma 0.1.11; of the originals their authors' code is counted.",
    ]
    return "\n".join([*lines, *(_reasons(rows, published) if gib == PAPER_GIB else ())])


def _lines(rows: list[End]) -> Iterator[str]:
    ps = sorted({row.p for row in rows})
    for name in dict.fromkeys(row.variant for row in rows):
        values = {row.p: (row.ours, row.package, row.published) for row in rows if row.variant == name}
        for where, numbers in ranges(values, ps):
            shown = ["-" if number is None else f"{number:,}" for number in numbers]
            yield f"  {name:<22}{where:<18}{shown[0]:>14}{shown[1]:>14}{shown[2]:>12}"


def _reasons(rows: list[End], published: pd.DataFrame) -> Iterator[str]:
    """Sentences that follow from the numbers, about the variants whose prediction differs from what was published."""
    for name in dict.fromkeys(row.variant for row in rows):
        both = [(row.package or row.ours, row.published) for row in rows if row.variant == name]
        predicted = [(a, b) for a, b in both if a and b]
        words = {"further": any(a > b for a, b in predicted), "less far": any(a < b for a, b in predicted)}
        for word in (word for word, holds in words.items() if holds):
            yield f"{name} is predicted to go {word} than was published."
            yield from why(name, word, published)


def why(name: str, word: str, published: pd.DataFrame) -> Iterator[str]:
    """What explains that a variant goes 'further' or 'less far' on 16 GiB than was published, if something does."""
    yield from _WHY.get((name, word), lambda published: ())(published)


def _tensor_reason(published: pd.DataFrame) -> Iterator[str]:
    n, d = ORIGINALS_PUBLISHED["original-2019"], mmdma_core.Settings().n_components
    yield (
        "  What is kept of its three (n, d, n) tensors for the gradient takes "
        f"{broadcast_memory(n, d).saved / GIB:.1f} GiB "
        f"at n = {n:,}. The paper gives this n for both original implementations together; the halved estimator of the "
        "second fits there."
    )


def _host_reason(published: pd.DataFrame) -> Iterator[str]:
    """The cells that ended the published curves share one bound in n x p, which device memory does not explain.

    The package's generate_data holds, when the second view is made, the first in float32 and two float64 arrays of
    n x p (map and noise): 4 + 16 = 20 bytes, and that was its measured peak.
    """
    d, model = mmdma_core.Settings().n_components, MEMORY_OF_PUBLISHED["published-primal-keops"]
    ns = sorted(set(published["n"].tolist()))
    known = {p: n for (name, p), n in published_ends(published).items() if name == "primal-keops"}
    reached = [(n, p) for p, n in known.items()]
    refused = [(ns[ns.index(n) + 1], p) for p, n in known.items() if n != ns[-1]]
    most, least = max(n * p for n, p in reached), min(n * p for n, p in refused)
    if most >= least:
        return
    largest = max(reached, key=lambda cell: model(*cell, d))
    smallest = min(refused, key=lambda cell: model(*cell, d))
    yield (
        f"  Its published ends obey one bound at every p: {most / 1e9:g}e9 numbers in a view (n x p) were reached, "
        f"{least / 1e9:g}e9 were not."
    )
    yield (
        f"  The device does not give that bound: n = {largest[0]:,}, p = {largest[1]:,} ran and needs "
        f"{model(*largest, d) / GIB:.2f} GiB, n = {smallest[0]:,}, p = {smallest[1]:,} did not and needs "
        f"{model(*smallest, d) / GIB:.2f} GiB: X and Y once in float32, and p x p matrices."
    )
    yield (
        f"  The package's generator does grow as n x p alone: {HOST_BYTES} bytes a number on the host, float64 map and "
        f"noise, which is {HOST_BYTES * most / GIB:.1f} GiB where it ran and {HOST_BYTES * least / GIB:.1f} GiB where "
        "it did not. The paper does not tell the host's memory."
    )


_WHY = {("primal-keops", "further"): _host_reason, ("original-2019", "less far"): _tensor_reason}
