"""The head of the report: facts of one number each, the verdict, the figures, and a chart that tells its values."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

import mmdma_core
from benchmarks.analysis import against_paper
from benchmarks.analysis.published import Winners
from benchmarks.figures import heatmap
from benchmarks.figures.style import style
from benchmarks.measuring.memory import GIB
from benchmarks.report import noise, verdict
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, figure, grouped, listing, number, paragraph, part, percent, spans
from benchmarks.report.status import mark_of

_DASHES = {"-": "", "--": "5 3", "-.": "6 3 1.5 3"}  # Matplotlib's names, as SVG has them


class Fact(NamedTuple):
    """A number, what it counts, and the title of the section that shows it."""

    number: str
    words: str
    title: str


def facts_section(evidence: Evidence) -> Section | None:
    """Return up to eight facts; None without a record of the study."""
    if evidence.grid.empty:
        return None
    return Section("In short", part("facts", facts=list(_facts(evidence))))


def _facts(evidence: Evidence) -> Iterator[Fact]:
    total, ok = sum(1 for _ in evidence.study.points()), len(evidence.ok)
    memory = int((evidence.grid["outcome"] == "oom").sum())
    others = f"{memory:,} out of memory, {total - ok - memory:,} otherwise"
    yield Fact(f"{ok:,} of {total:,}", f"measurements came to an end; {others}", "How every measurement ended")
    yield from _winner(evidence.paper_winners)
    gains = verdict.gains(evidence)
    if gains:
        found = (
            f"({number(min(gains))} to {number(max(gains))} x, at {len(gains)} of {len(evidence.exact_winners)} points)"
        )
        words = f"in the median, the fastest exact variant over the fastest of the paper's {found}"
        yield Fact(f"{number(median(gains))} x", words, "Figures")
    if not ok:
        return
    yield _largest(evidence)
    counts = against_paper.winners(evidence.grid)["verdict"].value_counts()
    agree, equal, differ = (int(counts.get(verdict, 0)) for verdict in ("agree", "equal", "differ"))
    words = f"points that can be tested have the winner of the published map; {equal} equal, {differ} differ"
    yield Fact(f"{agree} of {agree + equal + differ}", words, "Against the paper")
    words = "losses stand apart from their family"
    yield Fact(f"{len(evidence.apart):,} of {ok:,}", words, "Do they compute the same?")
    found = noise.spreads(evidence)
    extrapolated = int(found["extrapolated"].sum())
    yield Fact(f"{extrapolated:,} of {ok:,}", "runtimes are extrapolated from fewer epochs", "Noise")
    told = found["spread"].dropna()
    if len(told):
        noisy = f"above {percent(noise.NOISY)} in {(told > noise.NOISY).sum():,} of {len(told):,}"
        yield Fact(percent(told.median()), f"spread of the epochs of a measurement, in the median; {noisy}", "Noise")


def _winner(found: Winners) -> Iterator[Fact]:
    """Yield who wins most often among the paper's variants, then the others and the ties."""
    alone, ties, none = verdict.tally(found)
    counts = {f"`{variant}`": len(points) for variant, points in alone.items()}
    counts |= {"equally fast": sum(ties.values())} if ties else {}
    counts |= {"none ended": none} if none else {}
    if none == len(found):
        return
    (first, count), *others = counts.items()
    more = "".join(f"{', ' if i else '; '}{name}\N{NO-BREAK SPACE}{points}" for i, (name, points) in enumerate(others))
    is_fastest = f"where {first} is the fastest" if alone else "where several are equally fast"
    yield Fact(f"{count} of {len(found)}", f"points (n, p) {is_fastest} of the paper's variants{more}", "Figures")


def _largest(evidence: Evidence) -> Fact:
    """Return the largest n that came to an end, and that of an exact variant where an approximation goes further.

    Of a variant of another objective it counts only where no other one ended.
    """
    reached = evidence.ok.groupby("variant")["n"].max().reindex(evidence.study.variants).dropna().astype(int)
    own = reached[[not mmdma_core.variant(variant).objective for variant in reached.index]]
    reached, another = (reached, " (another objective)") if own.empty else (own, "")
    most = reached.max()
    exact = reached[[mmdma_core.variant(variant).exact for variant in reached.index]]
    words = f"cells, the largest n, reached by {_by(reached, most)}{another}"
    if len(exact) and exact.max() < most:
        words += f" (approximate); exact: {exact.max():,}, by {_by(exact, exact.max())}"
    return Fact(f"{most:,}", words, "Full table")


def _by(reached: pd.Series, n: int) -> str:
    return listing([f"`{variant}`" for variant in reached.index[reached == n]], most=3)


def verdict_section(evidence: Evidence) -> Section:
    """Return the verdict, computed from the records: a paragraph for each thing that it says."""
    return Section("Verdict", Markup().join(map(paragraph, verdict.sentences(evidence))))


def figures(evidence: Evidence) -> Section | None:
    """Return the figures of the study as they lie in its folder, the two maps of the fastest side by side."""
    if evidence.grid.empty:
        return None
    study, root = evidence.study, evidence.study.root
    ns, ps = spans(study.every_n, study.every_n), spans(study.p, study.p)
    maps = (
        ("figure_1a", "**Figure 1A.** The fastest of the paper's variants.", evidence.paper_winners),
        ("fastest_of_all", "**The fastest** of all exact variants.", evidence.exact_winners),
    )
    text = (
        "Split where several are equally fast: the 95 % intervals of their medians overlap. Hatched where all "
        "of them ran out of memory, grey where none ended in the time given, stippled where not all could run, dotted "
        "where nothing was tried."
    )
    drawn = [figure(root, name, caption, _map_in_words(evidence, found)) for name, caption, found in maps]
    marks = "Hollow: extrapolated from fewer epochs. A cross ends a line where memory ran out, a bar where time did."
    v100 = "; faint behind, the published V100 where it ran."
    lines = (
        ("figure_1b", f"**Figure 1B.** Runtime of the paper's implementations for a few p{v100}", marks),
        ("figure_a1", f"**Figure A1.** The same for every p{v100}", marks),
        ("runtimes_all", "**Every variant.** Runtime against n.", marks),
        ("memory", "**Memory.** The peak of each measurement, against n.", marks),
    )
    same = "The full table below has the same numbers."
    curves = [
        figure(root, name, f"{caption} {more}", f"{caption.replace('*', '')} n = {ns}, p = {ps}. {same}")
        for name, caption, more in lines
    ]
    pair = Markup('<div class="pair">{}</div>').format(Markup().join(drawn))
    said = paragraph(text, "Every chart is also there as PNG and SVG, inside this page.", css="quiet")
    return Section("Figures", pair + said + Markup().join(curves))


def _map_in_words(evidence: Evidence, found: Winners) -> str:
    """Return a heat map for one who cannot see it: at each p the winners along n."""
    study = evidence.study
    lines = []
    for p in study.p:
        along = grouped({n: _in_words(found[n, p]) for n in study.n})
        parts = [f"{what} at n = {spans(ns, study.n)}" for what, ns in along.items()]
        lines.append(f"p = {p:,}: {listing(parts)}.")
    return "The fastest variant. " + " ".join(lines)


def _in_words(what: tuple[str, ...]) -> str:
    return heatmap.SPECIAL[what[0]][0] if what[0] in heatmap.SPECIAL else verdict.named(what).replace("`", "")


def runtime_chart(evidence: Evidence) -> Section | None:
    """Return runtime, epoch and memory against n, drawn in the page from the values that it carries."""
    if evidence.ok.empty:
        return None
    study = evidence.study
    kind = "device" if evidence.device == "cuda" else "host"
    quantities = [f"runtime of {study.epochs} epochs", "one epoch", f"peak {kind} memory"]
    table = evidence.grid.assign(memory_gib=evidence.grid[evidence.memory_column].astype(float) / GIB)
    points = [
        {
            "v": study.variants.index(row.variant),
            "n": row.n,
            "p": row.p,
            "values": [_plain(v) for v in (row.runtime_s, row.median_epoch_s, row.memory_gib)],
            "extrapolated": row.extrapolated is True,
            "ended": mark_of(row).words,
        }
        for row in table.astype({"extrapolated": object}).itertuples()
    ]
    looks = [{"label": style(v).label, "color": style(v).color, "dash": _dashes(style(v).dash)} for v in study.variants]
    data = {"n": list(study.every_n), "points": points, "variants": looks, "units": ["s", "s", "GiB"]}
    return Section("Values, variant by variant", part("chart", data=data, quantities=quantities, ps=study.p))


def _plain(value: float) -> float | None:
    return None if pd.isna(value) else float(f"{value:.4g}")


def _dashes(dash: str | tuple) -> str:
    """Return Matplotlib's dashes as SVG writes them, for a line of 1.5 points."""
    return _DASHES[dash] if isinstance(dash, str) else " ".join(f"{1.5 * length:g}" for length in dash[1])
