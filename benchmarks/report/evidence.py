"""What a report counts: the readable records of one machine, and a sentence for all that it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

import mmdma_core
from benchmarks.analysis import agreement
from benchmarks.analysis.published import PAPER_VARIANTS, Winners, winners_over
from benchmarks.analysis.table import machine_name, measurements, of_study, one_machine, read_summary, to_full_frame
from benchmarks.measuring.records import foreign_in_words, read_folder
from benchmarks.report.page import listing
from benchmarks.study import Study

_POINT = ["variant", "n", "p"]


@dataclass(frozen=True)
class Evidence:
    """What lies in the folder of a study and counts.

    table  the records of one machine, see benchmarks.analysis.table.to_full_frame
    grid   the rows of the table that the study asks for: what its figures show
    notes  a sentence for each kind of thing that is left out or does not fit
    """

    study: Study
    table: pd.DataFrame
    grid: pd.DataFrame
    notes: list[str]

    @property
    def machine(self) -> str:
        """Who measured, in words: the GPU, or the CPU and its threads."""
        first = next(self.table.itertuples())
        threads = first.facts.get("cpu_threads") if first.device == "cpu" else None
        return machine_name(first) + (f", {threads} threads" if threads else "")

    @property
    def device(self) -> str:
        """'cuda' or 'cpu': where the records were measured."""
        return self.table["device"].iloc[0]

    @property
    def memory_column(self) -> str:
        """The column with the peak of the memory that ends a measurement there."""
        return "peak_device_bytes" if self.device == "cuda" else "peak_host_bytes"

    @property
    def paper(self) -> list[str]:
        """The paper's variants in the study."""
        return [variant for variant in self.study.variants if variant in PAPER_VARIANTS]

    @property
    def exact(self) -> list[str]:
        """The exact variants in the study."""
        return [variant for variant in self.study.variants if mmdma_core.variant(variant).exact]

    @cached_property
    def ok(self) -> pd.DataFrame:
        """The rows of the grid that came to an end."""
        return self.grid[self.grid["status"] == "ok"] if len(self.grid) else self.grid

    @cached_property
    def paper_winners(self) -> Winners:
        """The fastest of the paper's variants at each point of the study, as figure_1a has them."""
        return winners_over(self.grid, self.study.n, self.study.p, self.paper)

    @cached_property
    def exact_winners(self) -> Winners:
        """The fastest of all exact variants at each point of the study, as fastest_of_all has them."""
        return winners_over(self.grid, self.study.n, self.study.p, self.exact)

    @cached_property
    def apart(self) -> dict[agreement.Point, agreement.Apart]:
        """The losses that stand apart, see benchmarks.analysis.agreement."""
        return agreement.apart(self.grid, self.study.settings)


def gather(study: Study) -> Evidence:
    """Sort what lies in results/MACHINE. Raises ValueError if there is no such folder."""
    if not study.root.is_dir():
        hint = "run a sweep first, or name another folder with --set machine=NAME"
        raise ValueError(f"{study.root} is not there: {hint}")
    held = read_folder(study.root)
    left_out = []
    if held.unreadable:
        left_out.append(f"{len(held.unreadable):,} unreadable: {listing(held.unreadable, most=3)}")
    if held.foreign:
        left_out.append(foreign_in_words(held.foreign))
    table = to_full_frame(held.records)
    if table.empty:
        return Evidence(study, table, table, [f"Left out: {sentence}." for sentence in left_out])
    table, of_others = one_machine(table)
    grid, beyond = of_study(table, study)
    notes = [f"Left out: {sentence}." for sentence in (*left_out, *of_others)]
    notes += [f"In the full table and nowhere else: {sentence}." for sentence in beyond]
    notes += [*_otherwise_asked(table, study), *_drawn_from(table, study.root)]
    return Evidence(study, table, grid, notes)


def _otherwise_asked(table: pd.DataFrame, study: Study) -> list[str]:
    """Name records of other hyper-parameters or another number of epochs, whose times mean something else."""
    asked = (study.settings.n_components, study.epochs, study.seed)
    counts = table.groupby(["d", "epochs", "seed"]).size().drop(asked, errors="ignore")
    return [
        f"{measurements(count)} {'was' if count == 1 else 'were'} made with d = {d}, {epochs} epochs and seed {seed}, "
        f"where the study asks for d = {asked[0]}, {asked[1]} epochs and seed {asked[2]}; shown all the same."
        for (d, epochs, seed), count in counts.items()
    ]


def _drawn_from(table: pd.DataFrame, root: Path) -> list[str]:
    """Say whether the figures show what this page counts: their table is compared with it."""
    try:
        drawn, _ = one_machine(read_summary(root))
    except ValueError as error:
        return [f"The figures have no table to be drawn from: {error}."]
    here, there = (_rows(frame) for frame in (table, drawn))
    if here == there:
        return []
    differ = {row[:3] for row in here ^ there}
    return [
        f"The figures come from a table that differs from the records counted here in {measurements(len(differ))}. If "
        "records have changed since it was written, `python -m benchmarks table`, `figures` and `report` bring them "
        "together."
    ]


def _rows(frame: pd.DataFrame) -> set[tuple]:
    frame = frame[[*_POINT, "status", "runtime_s"]]
    return set(frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None))
