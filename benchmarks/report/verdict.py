"""The verdict in one paragraph: who wins where, whether the paper's pattern is seen, where memory ends whom."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

import mmdma_core
from benchmarks.analysis.published import Winners
from benchmarks.analysis.table import measurements
from benchmarks.figures import heatmap
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import at, grouped, listing, number
from benchmarks.report.status import MARKS, mark_of

PATTERN = ("dual", "dual-keops", "primal-keops")  # Figure 1A of the paper: who wins as n grows, at every p


def sentences(evidence: Evidence) -> list[str]:
    """Return the verdict, computed from the records; each sentence stands where there is something to say."""
    if evidence.table.empty:
        return [f"`{evidence.study.root / 'records'}` holds no record that counts, so there is no verdict."]
    said = [_count(evidence)]
    if evidence.grid.empty:
        return [*said, "So there is no verdict on this study; the full table below has what was measured."]
    paper = evidence.paper_winners
    said += _who_wins("the paper's variants", paper) if evidence.paper else ["None of the paper's variants is in it."]
    said += _of_all_exact(evidence)
    said += pattern(paper, evidence.study.n, evidence.study.p) if evidence.paper else []
    return [*said, *_apart(evidence), *_memory(evidence), *_extrapolated(evidence)]


def tally(found: Winners) -> tuple[dict[str, list[tuple[int, int]]], dict[str, int], int]:
    """Return the points of each variant that wins alone, most first; how often each tie; at how many none ended."""
    ended = {point: what for point, what in found.items() if what[0] not in heatmap.SPECIAL}
    alone = grouped({point: what[0] for point, what in ended.items() if len(what) == 1})
    ties = Counter(named(what) for what in ended.values() if len(what) > 1)
    most_first = dict(sorted(alone.items(), key=lambda item: -len(item[1])))
    return most_first, dict(ties.most_common()), len(found) - len(ended)


def named(what: Iterable[str]) -> str:
    """Return '`dual` = `primal`', whichever was the first."""
    return " = ".join(f"`{variant}`" for variant in sorted(what))


def _count(evidence: Evidence) -> str:
    study, total = evidence.study, sum(1 for _ in evidence.study.points())
    counts = Counter(mark_of(row).words for row in evidence.grid.itertuples())
    order = [mark.words for mark in MARKS.values() if mark.words in counts]
    parts = [f"{counts[words]:,} {words}" for words in (*order, *(counts.keys() - set(order)))]
    missing = total - len(evidence.grid)
    parts += [f"{missing:,} {'has' if missing == 1 else 'have'} no record"] if missing else []
    return (
        f"On {evidence.machine}, of the {measurements(total)} of the study `{study.name}` "
        f"({len(study.variants)} variants, n = {study.n[0]:,} to {study.every_n[-1]:,}, p = {study.p[0]:,} to "
        f"{study.p[-1]:,}), {listing(parts)}."
    )


def _who_wins(among: str, found: Winners) -> Iterator[str]:
    """Say the points of each winner, the most frequent one first, and the box of n and p that they lie in."""
    alone, ties, none = tally(found)
    if none == len(found):
        yield f"Of {among}, none came to an end anywhere."
        return
    wins = [f"`{variant}` at {len(points)}{_box(points, found)}" for variant, points in alone.items()]
    each = [f"{names} at {count}" for names, count in ties.items()]
    wins += [f"several, equally fast, at {sum(ties.values())} ({listing(each)})"] if ties else []
    wins += [f"none at {none}"] if none else []
    yield f"At the {len(found)} points (n, p) the fastest of {among} is {listing(wins)}."


def _box(points: Sequence[tuple[int, int]], found: Winners) -> str:
    """Return the range of n and p that the points span; nothing if that is the range of all."""
    box, all_ = ([_range([point[axis] for point in some]) for axis in (0, 1)] for some in (points, found))
    return "" if box == all_ else f" (n = {box[0]}, p = {box[1]})"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _of_all_exact(evidence: Evidence) -> Iterator[str]:
    """Say who wins when every exact variant competes, and by how much over the paper's."""
    if set(evidence.exact) <= set(evidence.paper):
        return
    yield from _who_wins("all exact variants", evidence.exact_winners)
    found = gains(evidence)
    if found:
        low, middle, high = map(number, (min(found), median(found), max(found)))
        spread = f" in the median ({low} to {high})" if len(found) > 1 else ""
        yield f"Where it is not one of the paper's, it is {middle} times as fast as the fastest of those{spread}."


def gains(evidence: Evidence) -> list[float]:
    """Return runtime of the fastest of the paper's over that of the fastest exact one, where that is none of them."""
    runtime = evidence.grid.set_index(["variant", "n", "p"])["runtime_s"]
    return [
        runtime[evidence.paper_winners[point][0], *point] / runtime[best[0], *point]
        for point, best in evidence.exact_winners.items()
        if evidence.paper_winners[point][0] not in heatmap.SPECIAL and not set(best) & set(evidence.paper)
    ]


def pattern(found: Winners, ns: Sequence[int], ps: Sequence[int]) -> Iterator[str]:
    """Say whether the map has the pattern of the paper's Figure 1A, in three parts that hold or not at each p.

    dual wins at the smallest n; primal-keops wins at the largest n at which anything ended; the n from which on it wins
    does not fall as p grows. Nobody else wins anywhere. It takes three n at one p to tell. Of several that are equally
    fast each one wins, and the one that fits counts.
    """
    along = {p: [(n, found[n, p]) for n in ns if found[n, p][0] not in heatmap.SPECIAL] for p in ps}
    along = {p: points for p, points in along.items() if points}
    if max(map(len, along.values()), default=0) < len(PATTERN):
        yield "The paper's pattern cannot be told from so few points: no p has a winner at three n."
        return
    ps = list(along)
    first = [p for p in ps if PATTERN[0] in along[p][0][1]]
    last = [p for p in ps if PATTERN[-1] in along[p][-1][1]]
    starts = [_taken_over(along[p]) for p in ps]
    soonest = itertools.accumulate((low for low, _ in starts), max)  # that lets the n never fall
    rises = all(n <= high for n, (_, high) in zip(soonest, starts, strict=True))
    between = [p for p in ps if any(PATTERN[1] in what for _, what in along[p])]
    strangers = grouped({(n, p): named(what) for p in ps for n, what in along[p] if not set(what) & set(PATTERN)})
    taken_over = math.isfinite(min(low for low, _ in starts))
    parts = (first == ps, last == ps, rises and taken_over, bool(between), not strangers)
    seen = "is **seen**" if all(parts) else "is **seen in part**" if any(parts) else "is **not seen**"
    order = f"`{PATTERN[0]}`, then `{PATTERN[1]}`, then `{PATTERN[2]}` as n grows, the last later the larger p is"
    details = [
        f"`{PATTERN[0]}` wins at the smallest n {_where(first, ps)}",
        f"`{PATTERN[1]}` wins at some n {_where(between, ps)}",
        f"`{PATTERN[2]}` wins at the largest n {_where(last, ps)}",
        f"the n from which on it wins {'never falls' if rises else 'does not always rise'} as p grows"
        if taken_over
        else "it takes over at no p",
    ]
    details += [
        f"{what}, which wins nowhere in the paper, wins at {len(points)} point{'s' if len(points) > 1 else ''}"
        for what, points in strangers.items()
    ]
    yield f"The paper's pattern ({order}) {seen}: {'; '.join(details)}."


def _taken_over(points: Sequence[tuple[int, tuple[str, ...]]]) -> tuple[float, float]:
    """Return the least and the largest n from which on primal-keops wins to the last n, by whether ties count for it.

    Infinity where it does not win at the last n.
    """
    starts = []
    for fits in (lambda what: PATTERN[-1] in what, lambda what: what == (PATTERN[-1],)):
        won = itertools.takewhile(lambda point, fits=fits: fits(point[1]), reversed(points))
        starts.append(min((n for n, _ in won), default=math.inf))
    return starts[0], starts[1]


def _where(some: Sequence[int], ps: Sequence[int]) -> str:
    return f"at {at(some, ps, 'p')}" if some else "at no p"


def _apart(evidence: Evidence) -> Iterator[str]:
    """Say who may not compute what the others do, so is no winner to rely on; and who is meant to compute another."""
    of_each = Counter(variant for variant, _, _ in evidence.apart)
    if of_each:
        wrong = listing(
            [f"`{v}` at {of_each[v]} point{'s' * (of_each[v] > 1)}" for v in evidence.study.variants if v in of_each]
        )
        yield f"**Losses unlike their family's**, marked ≠: {wrong}. Look at them below before relying on their times."
    others = [
        f"`{v}` ({mmdma_core.variant(v).objective})" for v in evidence.study.variants if mmdma_core.variant(v).objective
    ]
    if others:
        yield f"Of another objective, so drawn apart and in no map of the fastest: {listing(others)}."


def _memory(evidence: Evidence) -> Iterator[str]:
    """Say from which n on each variant runs out of memory, variants and p with the same answer in one."""
    ran_out = evidence.grid[evidence.grid["outcome"] == "oom"]
    if ran_out.empty:
        yield "Nothing ran out of memory."
        return
    first = ran_out.groupby(["variant", "p"])["n"].min()
    ends = {variant: _ends(first[variant].to_dict(), evidence.study.p) for variant in first.index.unique(0)}
    ends = {variant: ends[variant] for variant in evidence.study.variants if variant in ends}
    parts = [f"{listing([f'`{v}`' for v in variants])} {where}" for where, variants in grouped(ends).items()]
    limits = evidence.grid["limit_gpu_gib" if evidence.device == "cuda" else "limit_host_gib"].dropna().unique()
    given = f" (limit {limits[0]:g} GiB)" if len(limits) == 1 else ""
    yield f"Memory{given} ends {'; '.join(parts)}."


def _ends(first: Mapping[int, int], ps: Sequence[int]) -> str:
    return listing([f"from n = {n:,} at {at(where, ps, 'p')}" for n, where in grouped(first).items()])


def _extrapolated(evidence: Evidence) -> Iterator[str]:
    total, count = len(evidence.ok), int(evidence.ok["extrapolated"].astype(bool).sum())
    if count:
        share = f"All {count:,}" if count == total else f"{count:,} of the {total:,}"
        yield f"{share} runtimes are extrapolated from fewer epochs than they stand for."
