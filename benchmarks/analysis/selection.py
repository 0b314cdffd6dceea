"""Which rows of a table a reader takes: those of one machine, and of what a study asks. The rest is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

import mmdma_core

if TYPE_CHECKING:
    from benchmarks.study import Study


def machine_name(row: object) -> str:
    """Who measured a row of the table: the GPU, or the CPU where that measured."""
    name = row.gpu if row.device == "cuda" else row.cpu
    return name if isinstance(name, str) else f"an unnamed {row.device} machine"


def one_machine(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the machine that measured the most cells, and a sentence about every other one."""
    names = pd.Series([machine_name(row) for row in table.itertuples()], index=table.index, dtype=str)
    counts = names.value_counts()
    said = [
        f"{_cells(count)} of {name}: the folder holds those of several machines, {counts.index[0]} has the most"
        for name, count in counts.iloc[1:].items()
    ]
    return (table[names == counts.index[0]], said) if said else (table, [])


def of_study(table: pd.DataFrame, study: Study) -> tuple[pd.DataFrame, list[str]]:
    """The rows of one machine that the study asks for, and a sentence about each kind that is left out."""
    kept, said = one_machine(table)
    for name, count in kept["variant"].value_counts(sort=False).items():
        if name not in study.variants:
            why = f"which the study {study.name!r} does not ask for"
            if name not in mmdma_core.variants():
                why = "which is not registered: it no longer exists, or config.yaml does not list its plugin"
            said.append(f"{_cells(count)} of {name}, {why}")
    kept = kept[kept["variant"].isin(study.variants)]
    for axis, grid in (("n", study.every_n), ("p", study.p)):
        beyond = kept[~kept[axis].isin(grid)]
        if len(beyond):
            values = ", ".join(f"{value:,}" for value in sorted(beyond[axis].unique()))
            said.append(f"{_cells(len(beyond))} at {axis} = {values}, not in the grid of the study {study.name!r}")
            kept = kept[kept[axis].isin(grid)]
    return kept, said


def _cells(count: int) -> str:
    return f"{count} cell" + ("s" if count != 1 else "")
