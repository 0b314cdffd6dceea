"""The head of the report: a few facts with one number each, and where in the page each is shown in full.

The head of the report: the verdict, the figures, and a chart that tells its values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import pandas as pd
from markupsafe import Markup

import mmdma_core
from benchmarks.analysis import against_paper
from benchmarks.figures import heatmap
from benchmarks.figures.style import style
from benchmarks.measuring.memory import GIB
from benchmarks.report import noise, status, verdict
from benchmarks.report import verdict as judged
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, anchor, figure, grouped, listing, number, paragraph, part, percent, spans


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


def facts_section(evidence: Evidence) -> Section | None:
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
    total = sum(1 for _ in evidence.study.points())
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
    apart, total = status.losses_apart(evidence)
    return Fact(f"{len(apart):,} of {total:,}", "losses stand apart from their family", "Do they compute the same?")


def _times(evidence: Evidence) -> Iterator[Fact]:
    spreads = noise.spreads(evidence)
    extrapolated = int(spreads["extrapolated"].sum())
    yield Fact(f"{extrapolated:,} of {len(spreads):,}", "runtimes are extrapolated from fewer epochs", "Noise")
    told = spreads[spreads["epochs"] >= noise.MIN_EPOCHS]["spread"]
    if len(told):
        noisy = f"above {percent(noise.NOISY)} in {int((told > noise.NOISY).sum()):,} of {len(told):,} cells"
        yield Fact(percent(told.median()), f"spread of a cell's epochs, in the median; {noisy}", "Noise")


_DASHES = {"-": "", "--": "5 3", "-.": "6 3 1.5 3"}  # Matplotlib's names, as SVG has them
_ENDS = {"oom": "out of memory", "timeout": "out of time", "budget": "no time left", "error": "failed"}


def verdict_section(evidence: Evidence) -> Section:
    """The verdict, computed from the records: a paragraph for each thing that it says."""
    return Section("Verdict", Markup().join(map(paragraph, judged.sentences(evidence))))


def figures(evidence: Evidence) -> Section | None:
    """The figures of the study as they lie in its folder, the two maps of the fastest side by side."""
    if evidence.grid.empty:
        return None
    study, root = evidence.study, evidence.study.root
    ns, ps = spans(study.every_n, study.every_n), spans(study.p, study.p)
    maps = (
        ("figure_1a", "**Figure 1A.** The fastest of the paper's variants.", evidence.paper),
        ("fastest_of_all", "**The fastest** of all exact variants.", evidence.exact),
    )
    text = (
        "Split where several are equally fast: the 95 % intervals of their medians overlap. Hatched where all "
        "of them ran out of memory, grey where none ended in the time given, stippled where not all could run, dotted "
        "where nothing was tried."
    )
    drawn = [figure(root, name, caption, _map_in_words(evidence, among)) for name, caption, among in maps]
    marks = "Hollow: extrapolated from fewer epochs. A cross ends a line where memory ran out, a bar where time did."
    v100 = "; faint behind, the published V100 where it ran."
    lines = (
        ("figure_1b", f"**Figure 1B.** Runtime of the paper's implementations for a few p{v100}", marks),
        ("figure_a1", f"**Figure A1.** The same for every p{v100}", marks),
        ("runtimes_all", "**Every variant.** Runtime against n.", marks),
        ("memory", "**Memory.** The peak that a cell held, against n.", marks),
    )
    curves = [
        figure(root, name, f"{caption} {more}", f"{caption.replace('*', '')} n = {ns}, p = {ps}. {_SAME_NUMBERS}")
        for name, caption, more in lines
    ]
    pair = Markup('<div class="pair">{}</div>').format(Markup().join(drawn))
    said = paragraph(text, "Every chart is also there as PNG and SVG, inside this page.", css="quiet")
    return Section("Figures", pair + said + Markup().join(curves))


_SAME_NUMBERS = "The full table below has the same numbers."


def _map_in_words(evidence: Evidence, variants: Sequence[str]) -> str:
    """A heat map for one who cannot see it: at each p the winners along n."""
    study, found = evidence.study, judged.winners(evidence, variants)
    lines = []
    for p in study.p:
        along = grouped({n: _in_words(found[n, p]) for n in study.n})
        parts = [f"{what} at n = {spans(ns, study.n)}" for what, ns in along.items()]
        lines.append(f"p = {p:,}: {listing(parts)}.")
    return "The fastest variant. " + " ".join(lines)


def _in_words(what: tuple[str, ...]) -> str:
    return heatmap.SPECIAL[what[0]][0] if what[0] in heatmap.SPECIAL else judged.named(what).replace("`", "")


def runtime_chart(evidence: Evidence) -> Section | None:
    """Runtime, epoch and memory against n, drawn in the page from the cells that it carries."""
    if not (evidence.grid["status"] == "ok").any() if len(evidence.grid) else True:
        return None
    study = evidence.study
    kind = "device" if evidence.device == "cuda" else "host"
    quantities = [f"runtime of {study.epochs} epochs", "one epoch", f"peak {kind} memory"]
    table = evidence.grid.assign(memory_gib=evidence.grid[evidence.memory_column].astype(float) / GIB)
    cells = [
        {
            "v": study.variants.index(cell.variant),
            "n": cell.n,
            "p": cell.p,
            "values": [_plain(v) for v in (cell.runtime_s, cell.median_epoch_s, cell.memory_gib)],
            "extrapolated": cell.extrapolated is True,
            "ended": _ENDS.get(cell.outcome, cell.outcome.replace("_", " ")),
        }
        for cell in table.astype({"extrapolated": object}).itertuples()
    ]
    looks = [{"label": style(v).label, "color": style(v).color, "dash": _dashes(style(v).dash)} for v in study.variants]
    data = {"n": list(study.every_n), "cells": cells, "variants": looks, "units": ["s", "s", "GiB"]}
    return Section("Values, variant by variant", part("chart", data=data, quantities=quantities, ps=study.p))


def _plain(value: float) -> float | None:
    return None if pd.isna(value) else float(f"{value:.4g}")


def _dashes(dash: str | tuple) -> str:
    """Matplotlib's dashes as SVG writes them, for a line of 1.5 points."""
    return _DASHES[dash] if isinstance(dash, str) else " ".join(f"{1.5 * length:g}" for length in dash[1])
