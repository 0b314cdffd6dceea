"""The head of the report: the verdict, the figures, and a chart that tells its values."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from benchmarks.figures import heatmap
from benchmarks.figures.style import style
from benchmarks.measuring.memory import GIB
from benchmarks.report import verdict as judged
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, figure, paragraph, part
from benchmarks.report.words import grouped, listing, spans

_DASHES = {"-": "", "--": "5 3", "-.": "6 3 1.5 3"}  # Matplotlib's names, as SVG has them
_ENDS = {"oom": "out of memory", "timeout": "out of time", "budget": "no time left", "error": "failed"}


def verdict(evidence: Evidence) -> Section:
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
