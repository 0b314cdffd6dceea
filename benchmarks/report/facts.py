"""The head of the report: a few facts with one number each, and where in the page each is shown in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import mmdma_core
from benchmarks.analysis import against_paper
from benchmarks.report import losses, noise, verdict
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, anchor, part
from benchmarks.report.words import listing, number, percent


@dataclass(frozen=True)
class Fact:
    """A number, what it counts, and the title of the section that shows it."""

    number: str
    words: str
    title: str

    @property
    def anchor(self) -> str:
        """The address of that section within the page."""
        return anchor(self.title)


def section(evidence: Evidence) -> Section | None:
    """Six to eight facts; None without a cell of the study."""
    if evidence.grid.empty:
        return None
    return Section("In short", part("facts", facts=list(_facts(evidence))))


def _facts(evidence: Evidence) -> Iterator[Fact]:
    yield _cells(evidence)
    yield from _winner(evidence)
    yield from _faster(evidence)
    if (evidence.grid["status"] == "ok").any():
        yield _largest(evidence)
        yield _published_map(evidence)
        yield _same(evidence)
        yield from _times(evidence)


def _cells(evidence: Evidence) -> Fact:
    outcomes = evidence.grid["outcome"].value_counts()
    total = sum(1 for _ in evidence.study.cells())
    ok, memory = (int(outcomes.get(outcome, 0)) for outcome in ("ok", "oom"))
    others = f"{memory:,} out of memory, {total - ok - memory:,} otherwise"
    return Fact(f"{ok:,} of {total:,}", f"cells came to an end; {others}", "How every cell ended")


def _winner(evidence: Evidence) -> Iterator[Fact]:
    """Who wins most often among the paper's variants, then the others and the ties."""
    found = verdict.winners(evidence, evidence.paper)
    alone, ties, none = verdict.tally(found)
    counts = {f"`{variant}`": len(points) for variant, points in alone.items()}
    counts |= {"equally fast": sum(ties.values())} if ties else {}
    counts |= {"none ended": none} if none else {}
    if none == len(found):
        return
    (first, count), *others = counts.items()
    parts = [f"{name}\N{NO-BREAK SPACE}{points}" for name, points in others]
    more = f"; {', '.join(parts)}" if others else ""
    is_fastest = f"where {first} is the fastest" if alone else "where several are equally fast"
    yield Fact(f"{count} of {len(found)}", f"points (n, p) {is_fastest} of the paper's variants{more}", "Figures")


def _faster(evidence: Evidence) -> Iterator[Fact]:
    paper, best = (verdict.winners(evidence, variants) for variants in (evidence.paper, evidence.exact))
    gains = verdict.gains(evidence, paper, best)
    if gains:
        found = f"({number(min(gains))} to {number(max(gains))} x, at {len(gains)} of {len(best)} points)"
        words = f"in the median, the fastest exact variant over the fastest of the paper's {found}"
        yield Fact(f"{number(median(gains))} x", words, "Figures")


def _largest(evidence: Evidence) -> Fact:
    """The largest n that came to an end, and that of an exact variant where an approximation goes further.

    Of a variant of another objective it counts only where no other one ended.
    """
    reached = evidence.grid[evidence.grid["status"] == "ok"].groupby("variant")["n"].max().to_dict()
    reached = {variant: reached[variant] for variant in evidence.study.variants if variant in reached}
    own = {variant: n for variant, n in reached.items() if not mmdma_core.variant(variant).objective}
    reached, another = own or reached, "" if own else " (another objective)"
    most = max(reached.values())
    exact = {variant: n for variant, n in reached.items() if mmdma_core.variant(variant).exact}
    words = f"cells, the largest n, reached by {_by(reached, most)}{another}"
    if exact and max(exact.values()) < most:
        words += f" (approximate); exact: {max(exact.values()):,}, by {_by(exact, max(exact.values()))}"
    return Fact(f"{most:,}", words, "Full table")


def _by(reached: dict[str, int], n: int) -> str:
    return listing([f"`{variant}`" for variant, last in reached.items() if last == n], most=3)


def _published_map(evidence: Evidence) -> Fact:
    counts = against_paper.winners(evidence.grid)["verdict"].value_counts()
    agree, equal, differ = (int(counts.get(verdict, 0)) for verdict in ("agree", "equal", "differ"))
    words = f"points that can be tested have the winner of the published map; {equal} equal, {differ} differ"
    return Fact(f"{agree} of {agree + equal + differ}", words, "Against the paper")


def _same(evidence: Evidence) -> Fact:
    apart, total = losses.apart(evidence)
    return Fact(f"{len(apart):,} of {total:,}", "losses stand apart from their family", "Do they compute the same?")


def _times(evidence: Evidence) -> Iterator[Fact]:
    spreads = noise.spreads(evidence)
    extrapolated = int(spreads["extrapolated"].sum())
    yield Fact(f"{extrapolated:,} of {len(spreads):,}", "runtimes are extrapolated from fewer epochs", "Noise")
    told = spreads[spreads["epochs"] >= noise.MIN_EPOCHS]["spread"]
    if len(told):
        noisy = f"above {percent(noise.NOISY)} in {int((told > noise.NOISY).sum()):,} of {len(told):,} cells"
        yield Fact(percent(told.median()), f"spread of a cell's epochs, in the median; {noisy}", "Noise")
