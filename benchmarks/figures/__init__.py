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

    from benchmarks.study import Study

NAMES = (
    "figure_1a",
    "fastest_of_all",
    "figure_1b",
    "figure_a1",
    "runtimes_all",
    "memory",
    "log_ratios",
    "against_paper",
    "exponents",
)
SEVERAL = "scaling"  # drawn where there are records of several devices; so no output that is waited for

_PANELS = 4  # p up to which runtimes_all has a panel for each, else those of figure_1b


def paths(study: Study) -> list[Path]:
    """Return the files that draw_all writes in any case."""
    return [study.root / "figures" / f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")]


def question(study: Study) -> str:
    """Return what the figures show, in words: when it changes they are drawn anew."""
    shown = (study.name, study.n, study.p, study.variants, study.figure_1b_p, study.published, study.further)
    return " ".join(map(str, shown))


def draw_all(study: Study) -> list[Path]:
    """Draw every figure of the study, and return their paths; what the table has beyond it is left out, and said.

    Raises ValueError if the table is missing or has no row of the study.
    """
    from benchmarks.analysis.table import of_study, read_summary
    from benchmarks.figures.style import save

    table, left_out = of_study(read_summary(study.root), study)
    for sentence in left_out:
        print(f"left out of the figures: {sentence}", file=sys.stderr)
    if table.empty:
        raise ValueError(f"{study.root} holds no record of the study {study.name!r}")
    for name, figure in zip(NAMES, _figures(study, table), strict=True):
        save(figure, study.root / "figures", name)
    several = [study.root / "figures" / f"{SEVERAL}.{suffix}" for suffix in ("png", "svg")]
    figure = _of_several_devices(study, table)
    if figure is not None:
        save(figure, study.root / "figures", SEVERAL)
        return [*paths(study), *several]
    for path in several:  # of records that are gone
        path.unlink(missing_ok=True)
    return paths(study)


def _figures(study: Study, table: pd.DataFrame) -> Iterator[Figure]:
    import mmdma_core
    from benchmarks.analysis import agreement, published
    from benchmarks.analysis.published import PAPER_IMPLEMENTATIONS, PAPER_VARIANTS
    from benchmarks.figures import against_paper, curves, heatmap, scaling

    apart = {name for name, _, _ in agreement.apart(table, study.settings)}
    where = _where(study, table)
    on_gpu = table["device"].iloc[0] == "cuda"
    exact = [variant for variant in study.variants if mmdma_core.variant(variant).exact]
    paper = [variant for variant in study.variants if variant in PAPER_VARIANTS]
    maps = ((f"Fastest of the paper's variants\n{where}", paper), (f"Fastest of all exact variants\n{where}", exact))
    yield from heatmap.draw(table, study.n, study.p, maps, apart)
    runtime = ("runtime_s", f"seconds for {study.epochs} epochs")
    few = [p for p in study.p if p in study.figure_1b_p] or list(study.p)
    six = [variant for variant in study.variants if variant in PAPER_IMPLEMENTATIONS]
    ns = sorted({n for variant, _, n in study.points() if variant in six}) or study.n
    read = published.read()
    read = read[read["n"].between(ns[0], ns[-1]) & read["p"].isin(study.p) & read["variant"].isin(study.variants)]
    behind = read if study.published and len(read) else None
    for ps in (few, study.p):
        own, title = table[table["variant"].isin(six)], f"The paper's implementations, {where}"
        yield curves.draw(own, *runtime, ns, ps, six, title, behind, apart=apart)
    some = study.p if len(study.p) <= _PANELS else few
    title = f"Runtime of every variant, {where}"
    yield curves.draw(table, *runtime, study.every_n, some, study.variants, title, apart=apart)
    held = table["peak_device_bytes"] if on_gpu else table["peak_host_bytes"]
    memory = table.assign(memory_gib=held / 2**30)
    cap = study.gpu_gib if on_gpu else study.host_gib
    reach = f"up to n = {study.n[-1]:,}" if study.further else "of the study"
    limit = (cap, f"limit {reach}, {cap:g} GiB") if cap else None
    peak = ("memory_gib", f"peak {'device' if on_gpu else 'host'} memory, GiB", study.every_n)
    yield curves.draw(memory, *peak, few, study.variants, f"Memory, {where}", limit=limit, apart=apart)
    yield against_paper.draw_log_ratios(table, study.n, study.p, f"Runtimes compared, {where}")
    yield against_paper.draw(table, f"Against the published V100: {where}")
    yield scaling.draw_exponents(table, f"Growth in n and p, {where}", apart)


def _of_several_devices(study: Study, table: pd.DataFrame) -> Figure | None:
    """Return speed-up and memory on several devices; None where nothing was measured on several."""
    from benchmarks.figures import scaling

    several = scaling.read_scaling(study.root if study.devices == 1 else study.root.parent)
    return None if several.empty else scaling.draw(several, f"Several devices, {_where(study, table)}")


def draw_predicted(table: pd.DataFrame, where: str, folder: Path, against: pd.DataFrame | None = None) -> list[Path]:
    """Draw Figure 1A and A1 of a table that benchmarks.analysis.predict gives, each marked as predicted.

    where    which card, in words
    against  its `winners`, for a map against the published one; A1 then has the published runtimes behind it
    """
    from benchmarks.analysis import published
    from benchmarks.analysis.published import PAPER_VARIANTS
    from benchmarks.figures import against_paper, curves, heatmap
    from benchmarks.figures.style import mark, save

    (ns, ps), seconds = published.grid(), f"seconds for {published.EPOCHS} epochs"
    variants, behind = list(dict.fromkeys(table["variant"])), None if against is None else published.read()
    maps = [(f"Predicted: fastest of the paper's variants\n{where}", PAPER_VARIANTS)]
    title = f"Predicted: runtime, {where}"
    figures = {
        "figure_1a": heatmap.draw(table, ns, ps, maps)[0],
        "figure_a1": curves.draw(table, "runtime_s", seconds, ns, ps, variants, title, behind),
    }
    if against is not None:
        figures["against_paper"] = against_paper.draw_map(against, f"Predicted, against the published V100: {where}")
    for name, figure in figures.items():
        save(mark(figure, "predicted"), folder, f"predicted_{name}")
    return [folder / f"predicted_{name}.{suffix}" for name in figures for suffix in ("png", "svg")]


def _where(study: Study, table: pd.DataFrame) -> str:
    from benchmarks.analysis.table import machine_name
    from mmdma_core.matching.pictures import shortened

    row = next(table.itertuples())
    return shortened(machine_name(row), 50) + ("" if row.device == "cuda" else f", {study.threads} threads")
