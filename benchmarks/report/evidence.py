"""What a report counts: the readable records of one machine, and a sentence for all that it leaves out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import mmdma_core
from benchmarks.analysis.published import PAPER_VARIANTS
from benchmarks.analysis.table import machine_name, of_study, one_machine, read_summary, to_frame
from benchmarks.measuring.records import Record, foreign_in_words, read_folder
from benchmarks.report.page import cells, listing
from benchmarks.study import Study

_KEY = ["variant", "n", "p"]


@dataclass(frozen=True)
class Evidence:
    """What lies in the folder of a study and counts.

    records  of one machine
    table    benchmarks.analysis.table.to_frame of them
    grid     the rows of the table that the study asks for: what its figures show
    notes    a sentence for each kind of thing that is left out or does not fit
    """

    study: Study
    records: list[Record]
    table: pd.DataFrame
    grid: pd.DataFrame
    notes: list[str]

    @property
    def machine(self) -> str:
        """Who measured, in words: the GPU, or the CPU and its threads."""
        threads = self.records[0].machine.get("cpu_threads")
        known = self.device == "cpu" and threads
        return machine_name(next(self.table.itertuples())) + (f", {threads} threads" if known else "")

    @property
    def in_study(self) -> list[Record]:
        """The records behind `grid`."""
        study = self.study
        return [r for r in self.records if r.variant in study.variants and r.n in study.every_n and r.p in study.p]

    @property
    def device(self) -> str:
        """'cuda' or 'cpu': where the records were measured."""
        return self.records[0].device

    @property
    def memory_column(self) -> str:
        """The column with the peak of the memory that ends a cell there."""
        return "peak_device_bytes" if self.device == "cuda" else "peak_host_bytes"

    @property
    def paper(self) -> list[str]:
        """The paper's variants in the study."""
        return [variant for variant in self.study.variants if variant in PAPER_VARIANTS]

    @property
    def exact(self) -> list[str]:
        """The exact variants in the study."""
        return [variant for variant in self.study.variants if mmdma_core.variant(variant).exact]


def gather(study: Study) -> Evidence:
    """Sort what lies in results/MACHINE. Raises ValueError if there is no such folder."""
    if not study.root.is_dir():
        hint = "run a sweep first, or name another folder with --set machine=NAME"
        raise ValueError(f"{study.root} is not there: {hint}")
    held = read_folder(study.root)
    found, unreadable = held.records, held.unreadable
    left_out = [f"{len(unreadable):,} unreadable: {listing(unreadable, most=3)}"] if unreadable else []
    left_out += [foreign_in_words(held.foreign)] if held.foreign else []
    table, of_others = one_machine(to_frame(found)) if found else (pd.DataFrame(), [])
    notes = [f"Left out: {sentence}." for sentence in (*left_out, *of_others)]
    kept = set(table[_KEY].itertuples(index=False, name=None)) if found else set()
    records = [record for record in found if (record.variant, record.n, record.p) in kept]
    grid, beyond = of_study(table, study) if found else (table, [])
    notes += [f"In the full table and nowhere else: {sentence}." for sentence in beyond]
    if found:
        notes += [*_otherwise_asked(records, study), *_drawn_from(table, study.root)]
    return Evidence(study, records, table, grid, notes)


def _otherwise_asked(kept: list[Record], study: Study) -> list[str]:
    """Records of other hyper-parameters or another number of epochs are shown, but their times mean something else."""
    asked = (study.settings.n_components, study.epochs, study.seed)
    other = Counter((r.d, r.epochs, r.seed) for r in kept if (r.d, r.epochs, r.seed) != asked)
    return [
        f"{cells(count)} {'was' if count == 1 else 'were'} measured with d = {d}, {epochs} epochs and seed {seed}, "
        f"where the study asks for d = {asked[0]}, {asked[1]} epochs and seed {asked[2]}; shown all the same."
        for (d, epochs, seed), count in other.items()
    ]


def _drawn_from(table: pd.DataFrame, root: Path) -> list[str]:
    """Whether the figures show what this page counts: their table is compared with it."""
    what = [*_KEY, "status", "runtime_s"]
    try:
        drawn, _ = one_machine(read_summary(root))
    except ValueError as error:
        return [f"The figures have no table to be drawn from: {error}."]
    here, there = (_rows(frame.reindex(columns=what)) for frame in (table, drawn))
    if here == there:
        return []
    differ = {cell[:3] for cell in here ^ there}
    return [
        f"The figures come from a table that differs from the records counted here in {cells(len(differ))}. If records "
        "have changed since it was written, `python -m benchmarks table`, `figures` and `report` bring them together."
    ]


def _rows(frame: pd.DataFrame) -> set[tuple]:
    return set(frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None))
