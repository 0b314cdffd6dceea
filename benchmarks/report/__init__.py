"""The report of a study: one self-contained HTML page, results/MACHINE/report.html; a section is a function below.

A section takes the evidence and decides nothing anew: what it says comes from analysis/ and figures/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.report import measured, noise, overview, reading, status
from benchmarks.report.evidence import Evidence, gather
from benchmarks.report.page import Section, render
from benchmarks.study import Study
from mmdma_core.files.atomic import atomically

# In the order of the page. Each takes the evidence and gives a Section, or None where it has nothing to say.
SECTIONS: list[Callable[[Evidence], Section | None]] = [
    overview.facts_section,
    overview.verdict_section,
    overview.figures,
    overview.runtime_chart,
    reading.against_the_paper,
    reading.table_a1,
    reading.log_ratios,
    reading.quality_against_time,
    status.status_section,
    status.losses_section,
    noise.section,
    measured.nodes,
    measured.machine,
    measured.full_table,
    measured.citations,
]


def path(study: Study) -> Path:
    """Return the file that `write` writes."""
    return study.root / "report.html"


def write(study: Study) -> Path:
    """Write the page from the records and figures of results/MACHINE; return its path.

    What cannot be shown is named in the page. Raises ValueError if there is no such folder, OSError if it cannot be
    written to.
    """
    evidence = gather(study)
    sections = [section for make in SECTIONS if (section := make(evidence)) is not None]
    html = render(study, sections, evidence.notes)
    with atomically(path(study)) as part:
        part.write_text(html, encoding="utf-8")
    return path(study)
