"""The figures of a study, drawn from its table: one file for each kind, colours and axes in style.py.

A figure takes a table and returns a matplotlib Figure; a new one is a file, a name in NAMES and a line in `_figures`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from benchmarks.study.study import Study

NAMES = (
    *("figure_1a", "fastest_of_all", "figure_1b", "figure_a1", "memory"),
    *("log_ratios", "against_paper", "exponents", "scaling"),
)


def paths(study: Study) -> list[Path]:
    """The files that draw_all writes."""
    return [study.root / "figures" / f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")]


def question(study: Study) -> str:
    """What the figures show, in words: when it changes they are drawn anew."""
    shown = (study.name, study.n, study.p, study.variants, study.figure_1b_p, study.published, study.further)
    return " ".join(map(str, shown))


def draw_all(study: Study) -> list[Path]:
    """Draw every figure of the study; what the table has beyond it is left out, with a sentence on stderr.

    Raises ValueError if the table is missing or has no cell of the study.
    """
    from benchmarks.figures.style import save
    from benchmarks.reading.selection import of_study
    from benchmarks.reading.table import read_summary

    table, left_out = of_study(read_summary(study.root), study)
    for sentence in left_out:
        print(f"left out of the figures: {sentence}", file=sys.stderr)
    if table.empty:
        raise ValueError(f"{study.root} holds no cell of the study {study.name!r}")
    for name, figure in zip(NAMES, _figures(study, table), strict=True):
        save(figure, study.root / "figures", name)
    return paths(study)


def _figures(study: Study, table: pd.DataFrame) -> Iterator[Figure]:
    import mmdma_core
    from benchmarks.figures import against_paper, curves, exponents, heatmap, ratios, scaling
    from benchmarks.paper.fastest import PAPER_VARIANTS
    from benchmarks.reading.scaling import read_scaling

    where = _where(study, table)
    on_gpu = table["device"].iloc[0] == "cuda"
    exact = [variant for variant in study.variants if mmdma_core.variant(variant).exact]
    paper = [variant for variant in study.variants if variant in PAPER_VARIANTS]
    yield heatmap.draw(table, study.n, study.p, paper, f"Fastest of the paper's variants, {where}")
    yield heatmap.draw(table, study.n, study.p, exact, f"Fastest of all exact variants, {where}")
    runtime = ("runtime_s", f"seconds for {study.epochs} epochs", study.every_n)
    few = [p for p in study.p if p in study.figure_1b_p] or list(study.p)
    behind = _published(study) if study.published else None
    for ps in (few, study.p):
        yield curves.draw(table, *runtime, ps, study.variants, f"Runtime, {where}", behind)
    held = table["peak_device_bytes"] if on_gpu else table["peak_host_bytes"]
    memory = table.assign(memory_gib=held / 2**30)
    cap = study.gpu_gib if on_gpu else study.host_gib
    reach = f"up to n = {study.n[-1]:,}" if study.further else "of the study"
    limit = (cap, f"limit {reach}, {cap:g} GiB") if cap else None
    peak = ("memory_gib", f"peak {'device' if on_gpu else 'host'} memory, GiB", study.every_n)
    yield curves.draw(memory, *peak, few, study.variants, f"Memory, {where}", limit=limit)
    yield ratios.draw(table, study.n, study.p, f"Runtimes compared, {where}")
    yield against_paper.draw(table, f"Against the published V100: {where}")
    yield exponents.draw(table, f"Growth in n and p, {where}")
    root = study.root if study.devices == 1 else study.root.parent
    yield scaling.draw(read_scaling(root), f"Several devices, {where}")


def _where(study: Study, table: pd.DataFrame) -> str:
    from benchmarks.reading.selection import machine_name

    row = next(table.itertuples())
    return machine_name(row) + ("" if row.device == "cuda" else f", {study.threads} threads")


def _published(study: Study) -> pd.DataFrame | None:
    """The published runtimes within the study's grid; None if they have nothing there."""
    import pandas as pd

    from benchmarks.paper.published import PUBLISHED

    published = pd.read_csv(PUBLISHED)
    within = published["n"].between(study.n[0], study.every_n[-1]) & published["p"].isin(study.p)
    within &= published["variant"].isin(study.variants)
    return published[within] if within.any() else None
