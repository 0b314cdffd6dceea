"""What the study says beyond its own figures: against the paper, Table A1 measured, and ratios of runtimes."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from benchmarks.analysis import against_paper
from benchmarks.analysis import exponents as growth
from benchmarks.figures import SEVERAL
from benchmarks.figures.style import style
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, figure, paragraph, table

_VERDICTS = ("agree", "equal", "differ", "untestable")


def against_the_paper(evidence: Evidence) -> Section | None:
    """Return this machine beside the published V100, and what does not reproduce; None without records."""
    if evidence.grid.empty:
        return None
    _, left_out = against_paper.comparable(evidence.grid)
    winners, frontier, jumps = (
        f(evidence.grid) for f in (against_paper.winners, against_paper.frontier, against_paper.jumps)
    )
    counts = winners["verdict"].value_counts()
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _VERDICTS if verdict in counts)
    measured = int((frontier["basis"] == "measured").sum())
    fits = frontier["verdict"].value_counts()
    jump = ", ".join(f"{verdict} at {count} p" for verdict, count in jumps["verdict"].value_counts().items())
    head = paragraph(
        f"Of the {len(winners)} points of the published map of the fastest, {said}. Equal: the two may be as fast, "
        "within the reading error there or the intervals of the medians here.",
        f"Whether a point fits 16 GiB: {fits.get('agree', 0)} agree and {fits.get('differ', 0)} differ; {measured} of "
        f"these {len(frontier)} were measured at 16 GiB, the others are predicted by the models of memory.",
        f"The published jump of LSMMD-MA between 30,000 and 40,000 cells: {jump}.",
        *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in left_out),
    )
    drawn = figure(
        evidence.study.root,
        "against_paper",
        "**Against the published V100.** Above, the fastest of the paper's variants; below, runtime ratios.",
        f"The map of the fastest against the published one: {said}. The table below has the ratios.",
    )
    return Section("Against the paper", head + drawn + _ratios(evidence.grid) + _differences(evidence.grid))


def table_a1(evidence: Evidence) -> Section | None:
    """Return fitted exponents beside those of the dominating term; None where nothing ended."""
    if evidence.ok.empty:
        return None
    found = growth.exponents(evidence.grid)
    headings = ["variant", "quantity", "term", "points", "n: theory", "n: measured", "p: theory", "p: measured", "note"]
    rows = [
        (
            row.variant,
            row.quantity,
            row.term,
            row.points,
            *(_plain(row.n_theory), _interval(row.n, row.n_low, row.n_high)),
            *(_plain(row.p_theory), _interval(row.p, row.p_low, row.p_high)),
            row.note,
        )
        for row in found.itertuples()
    ]
    text = (
        "Exponents of an epoch's runtime and of the peak memory in n and in p, fitted where one term of a variant's "
        "model makes up most of it, with their 95 % intervals, beside the exponents of that term."
    )
    root = evidence.study.root
    drawn = figure(root, "exponents", "**Table A1, measured.**", "The table below has the same numbers.")
    words = "Speed-up and memory of each, where something was measured on several."
    several = (root / "figures" / f"{SEVERAL}.svg").exists()
    devices = figure(root, SEVERAL, "**Several devices.**", words) if several else Markup()
    return Section(
        "Table A1, measured",
        paragraph(text) + drawn + devices + table("Exponents", headings, rows, numeric=range(3, 8), css="tall"),
    )


def log_ratios(evidence: Evidence) -> Section | None:
    """Return the contours of runtime ratios; None without records."""
    if evidence.grid.empty:
        return None
    caption = "**Ratios of runtimes,** on a log scale; the black line is where the two are equally fast."
    alt = "Filled contours over n and p for three pairs of variants. The full table has the runtimes."
    return Section("Which of two is faster", figure(evidence.study.root, "log_ratios", caption, alt))


def quality_against_time(evidence: Evidence) -> Section | None:
    """Return the picture of `python -m benchmarks scale`, approximations beside the exact ones; None without.

    What is approximate is in no map of the fastest: its times mean something beside what its matches are worth.
    """
    root = evidence.study.root
    if not (root / "scale" / "scale.svg").exists():
        return None
    caption = "**Whole fits.** FOSCTTM (0 is best, 0.5 is chance) of every start, against its seconds."
    alt = "FOSCTTM of every start against its seconds, a panel for each n; scale/scale.csv has the values."
    return Section("Quality against time", figure(root, "scale", caption, alt, folder="scale"))


def _ratios(grid: pd.DataFrame) -> Markup:
    found = against_paper.ratio_summary(against_paper.ratios(grid))
    if found.empty:
        return paragraph("Nothing was measured both here and there, so there are no ratios.")
    columns = ["lowest", "lower_quartile", "median", "upper_quartile", "highest"]
    rows = [
        (style(row["variant"]).label, row["points"], *(f"{row[column]:.3g}" for column in columns))
        for _, row in found.iterrows()
    ]
    headings = ["variant", "points", *(column.replace("_", " ") for column in columns)]
    return table("Runtime here over the published, by variant", headings, rows, numeric=range(1, 7))


def _differences(grid: pd.DataFrame) -> Markup:
    sentences = against_paper.in_short(grid)
    if not sentences:
        return paragraph("Nothing that could be tested differs.")
    head = paragraph("**What does not reproduce, with its likely cause.**")
    said = (paragraph(f"{number}. {sentence.rstrip('.')}.") for number, sentence in enumerate(sentences, 1))
    return head + Markup().join(said)


def _interval(value: float, low: float, high: float) -> str:
    return "" if pd.isna(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _plain(value: float) -> str:
    return "" if pd.isna(value) else f"{value:g}"
