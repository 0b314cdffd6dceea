"""What a report counts: the readable records of one machine, and a sentence for all that it leaves out."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

import mmdma_core
from benchmarks.figures.style import PAPER_VARIANTS
from benchmarks.records import Record, UnreadableRecord, read
from benchmarks.report.words import cells, listing
from benchmarks.study import Study
from benchmarks.table import read_summary, to_frame


@dataclass(frozen=True)
class Evidence:
    """The records that count, and `notes`, a sentence for each kind of thing that does not or that does not fit."""

    study: Study
    records: list[Record]
    notes: list[str]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a cell, see benchmarks.table.to_frame."""
        return to_frame(self.records)

    @cached_property
    def grid(self) -> pd.DataFrame:
        """The rows of the table that lie in the study's grid: what its figures show."""
        return self.table[_in_grid(self.table, self.study)] if self.records else self.table

    @property
    def in_study(self) -> list[Record]:
        """The records behind `grid`."""
        study = self.study
        return [r for r in self.records if r.variant in study.variants and r.n in study.n and r.p in study.p]

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
        raise ValueError(
            f"{study.root} is not there: run a sweep first, or name another folder with --set machine=NAME"
        )
    found, notes = _readable(study.root)
    kept, others = _of_one_machine(found)
    notes += others
    if kept:
        notes += [*_unregistered(kept), *_outside(kept, study), *_otherwise_asked(kept, study)]
        notes += _drawn_from(to_frame(kept), study.root)
    return Evidence(study, kept, notes)


def name_of(record: Record) -> str:
    """Which machine measured, in words: the GPU, or the CPU and its threads."""
    gpu = record.machine.get("gpu")
    if record.device == "cuda" and gpu:
        return gpu["name"]
    threads = record.machine.get("cpu_threads")
    return (record.machine.get("cpu") or "an unnamed CPU") + (f", {threads} threads" if threads else "")


def _readable(root: Path) -> tuple[list[Record], list[str]]:
    found, refused = [], defaultdict(list)
    for path in sorted((root / "records").glob("*/p*/n*.json")):
        try:
            found.append(read(path))
        except UnreadableRecord as error:
            refused[str(error).removeprefix(f"{path}: ")].append(f"`{path.relative_to(root)}`")
    notes = [
        f"{len(paths)} record {'file is' if len(paths) == 1 else 'files are'} left out, not readable here "
        f"({reason}): {listing(paths, most=6)}."
        for reason, paths in refused.items()
    ]
    return found, notes


def _of_one_machine(found: list[Record]) -> tuple[list[Record], list[str]]:
    """The records of the machine that has the most, since times of two machines do not compare."""
    counts = Counter(map(name_of, found))
    if len(counts) < 2:
        return found, []
    (kept, number), *others = counts.most_common()
    left_out = listing([f"{name} ({cells(count)})" for name, count in others])
    note = (
        f"The folder holds the records of {len(counts)} machines, whose times do not compare. "
        f"This page is about {kept} ({cells(number)}); left out of it: {left_out}."
    )
    return [record for record in found if name_of(record) == kept], [note]


def _unregistered(kept: list[Record]) -> list[str]:
    unknown = Counter(record.variant for record in kept if record.variant not in mmdma_core.variants())
    return [
        f"The variant `{variant}` ({cells(count)}) is not registered any more: in the full table and in nothing else."
        for variant, count in unknown.items()
    ]


def _outside(kept: list[Record], study: Study) -> list[str]:
    table = to_frame(kept)
    outside = table[~_in_grid(table, study) & table["variant"].isin(mmdma_core.variants())]
    if outside.empty:
        return []
    why = []
    variants = sorted(set(outside["variant"]) - set(study.variants))
    why += [f"variants {listing([f'`{variant}`' for variant in variants])}"] if variants else []
    for axis, asked in (("n", study.n), ("p", study.p)):
        more = [f"{value:,}" for value in sorted(set(outside[axis]) - set(asked))]
        why += [f"{axis} = {listing(more, most=6)}"] if more else []
    return [
        f"{cells(len(outside))} of the folder {'lies' if len(outside) == 1 else 'lie'} outside the study "
        f"`{study.name}` ({'; '.join(why)}): in the full table and in nothing else. Another study is named with "
        "`--set study=NAME`."
    ]


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
    what = ["variant", "n", "p", "status", "runtime_s"]
    try:
        drawn = read_summary(root)
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


def _in_grid(table: pd.DataFrame, study: Study) -> pd.Series:
    return table["variant"].isin(study.variants) & table["n"].isin(study.n) & table["p"].isin(study.p)
