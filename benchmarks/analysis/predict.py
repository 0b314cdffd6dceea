"""Figure 1 of a card that is not here, from models of cost and memory: a card that was measured gives the rates.

A runtime is a variant's cost (mmdma_core.models) at the rates that a few cells of the measured card give
(mmdma_core.advice); whether it fits says its model of memory. Of the published V100 CALIBRATION has the
cells, and the package's own models are taken. `against_published` sets the result against all that was published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import mmdma_core
from benchmarks.analysis import published
from benchmarks.analysis.against_paper import JUMP
from benchmarks.analysis.frontier import PAPER_GIB
from benchmarks.analysis.published import NOTHING_FITS, PAPER_VARIANTS, winner
from benchmarks.analysis.table import machine_name, one_machine, to_frame
from benchmarks.measuring import records
from benchmarks.measuring.memory import GIB
from mmdma_core.advice import Measured, calibrate
from mmdma_core.files.atomic import atomically
from mmdma_core.models import Rates

V100 = "v100"
VARIANTS = (*PAPER_VARIANTS, "original-2019", "original-2020")  # of Figure A1
WITHIN = 1.5  # a runtime that is not off by more is counted as right
NEARLY = 1.15  # another variant is as good as the published winner if it was published with at most that much more
_PACKAGE = "published-"
_UNITS = ("operations of products", "numbers through memory", "operations of KeOps")


@dataclass(frozen=True)
class Card:
    """A card that was measured.

    name      in words
    shown     the cells that rates are calibrated on
    cells     all that is known of it
    package   whether it ran the published package, whose models are then those of the paper's variants
    """

    name: str
    shown: list[Measured]
    cells: list[Measured]
    package: bool

    def rates(self) -> Rates:
        """What it does in a second."""
        return calibrate(self.shown)

    def is_published(self, gib: float) -> bool:
        """Whether a prediction of this card with `gib` GiB can be set against what was published."""
        return self.package and gib == PAPER_GIB

    def modelled(self, variant: str) -> str:
        """The variant whose models stand for one of VARIANTS."""
        return _PACKAGE + variant if self.package and variant in PAPER_VARIANTS else variant


def card(like: str = V100) -> Card:
    """The published V100, or the GPU that measured a folder results/MACHINE.

    Raises ValueError if the folder has no cell of a GPU.
    """
    return _published_card() if like == V100 else _measured_card(Path(like))


def calibration_cells(runtimes: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Of each variant's published curves three cells (variant, n, p), chosen by where they lie.

    At the least p the first n, and the n nearest to the middle of the curve on a log axis; at the greatest p the last.
    """
    found = []
    for variant, cells in runtimes.dropna().groupby("variant"):
        low, high = (cells[cells["p"] == p]["n"] for p in (cells["p"].min(), cells["p"].max()))
        middle = math.sqrt(low.min() * low.max())
        nearest = min(sorted(low), key=lambda n: abs(math.log(n / middle)))
        p_low, p_high = cells["p"].min(), cells["p"].max()
        found += [(variant, n, p) for n, p in ((low.min(), p_low), (nearest, p_low), (high.max(), p_high))]
    return [(str(variant), int(n), int(p)) for variant, n, p in found]


def _published_card() -> Card:
    read = published.runtimes().dropna()
    epochs = {(c.variant, c.n, c.p): c.runtime_s / published.EPOCHS for c in read.itertuples()}
    shown = [Measured(_PACKAGE + v, n, p, published.D, epochs[v, n, p]) for v, n, p in calibration_cells(read)]
    return Card(
        "the published V100", shown, [Measured(v, n, p, published.D, s) for (v, n, p), s in epochs.items()], True
    )


def _measured_card(root: Path) -> Card:
    known = [record for record in records.read_all(root) if record.status == "ok" and record.device == "cuda"]
    if not known:
        raise ValueError(f"--like: {root} holds no cell that a GPU measured; {V100} is the published one")
    table, _ = one_machine(to_frame(known))
    cells = measured(table)
    return Card(f"{machine_name(next(table.itertuples()))} in {root}", cells, cells, False)


def measured(table: pd.DataFrame) -> list[Measured]:
    """The cells of a table of benchmarks.analysis.table, all of them ok, as advice and calibration take them."""
    columns = zip(*(table[name] for name in ("variant", "n", "p", "d", "median_epoch_s")), strict=True)
    return [Measured(*cell) for cell in columns]


def predicted(known: Card, gib: float) -> pd.DataFrame:
    """The table of such a card with `gib` GiB: VARIANTS over the published grid, d as published.

    variant, n, p, d; status, outcome ('ok', or 'oom' where the model of memory exceeds the card); runtime_s of the
    published epochs (NaN where it does not fit); extrapolated, which no cell is; basis, 'predicted' in every row.
    """
    rates = known.rates()
    ns, ps = published.grid()
    rows = []
    for name, p, n in ((name, p, n) for name in VARIANTS for p in ps for n in ns):
        models = mmdma_core.variant(known.modelled(name))
        fits = models.needs_bytes(n, p, published.D, device="cuda") <= gib * GIB
        seconds = published.EPOCHS * models.cost_model(n, p, published.D).seconds(rates)
        status = "ok" if fits else "oom"
        rows.append((name, n, p, published.D, status, status, seconds if fits else math.nan, False, "predicted"))
    columns = ["variant", "n", "p", "d", "status", "outcome", "runtime_s", "extrapolated", "basis"]
    return pd.DataFrame(rows, columns=columns)


def winners(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell of the grid: n, p, here (predicted), there (published), verdict.

    verdict  'agree'; 'equal': another variant, which was published with at most NEARLY times the time of the winner;
             'differ'
    """
    times = published.runtimes().set_index(["variant", "n", "p"])["runtime_s"].to_dict()
    cells = dict(iter(table[table["variant"].isin(PAPER_VARIANTS)].groupby(["n", "p"])))
    rows = []
    for there in published.published_winners().itertuples():
        n, p = there.n, there.p
        here = winner(cells.get((n, p)), len(PAPER_VARIANTS))
        ratio = times.get((here, n, p), math.nan) / times.get((there.winner, n, p), math.nan)
        verdict = "agree" if here == there.winner else "equal" if ratio <= NEARLY else "differ"
        rows.append((n, p, here, there.winner, verdict))
    return pd.DataFrame(rows, columns=["n", "p", "here", "there", "verdict"])


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Every published runtime: variant, n, p, source, shown (to the calibration), ratio = predicted / published.

    A reading of a dual variant stands for several p: one that is shown is taken as shown at every p of that value. A
    cell that is predicted not to fit has no ratio, and is left out.
    """
    read = published.runtimes().dropna()
    shown = set(calibration_cells(read))
    times = read.set_index(["variant", "n", "p"])["runtime_s"]
    values = {(variant, n, times[variant, n, p]) for variant, n, p in shown if variant.startswith("dual")}
    both = read.merge(table[["variant", "n", "p", "runtime_s"]], on=["variant", "n", "p"], suffixes=("_there", ""))
    both["ratio"] = both["runtime_s"] / both["runtime_s_there"]
    both["shown"] = [
        (c.variant, c.n, c.p) in shown or (c.variant, c.n, c.runtime_s_there) in values for c in both.itertuples()
    ]
    return both.dropna(subset=["ratio"])[["variant", "n", "p", "source", "shown", "ratio"]].reset_index(drop=True)


def right(found: pd.Series) -> pd.Series:
    """Which ratios are within a factor of WITHIN."""
    return found.between(1 / WITHIN, WITHIN)


def write(table: pd.DataFrame, against: pd.DataFrame | None, folder: Path) -> Path:
    """Write the table of `predicted` as predicted.csv; if given, `there` and `verdict` of `winners` beside each."""
    if against is not None:
        table = table.merge(against.drop(columns="here"), on=["n", "p"])
    with atomically(folder / "predicted.csv") as part:
        table.to_csv(part, index=False)
    return folder / "predicted.csv"


def describe(known: Card, gib: float, table: pd.DataFrame) -> str:
    """The rates, who is predicted to win where, and for the published card how far that is from what was published."""
    rates = known.rates()
    four = dict(iter(table[table["variant"].isin(PAPER_VARIANTS)].groupby(["n", "p"])))
    counts = pd.Series([winner(cell, len(PAPER_VARIANTS)) for cell in four.values()]).value_counts()
    lines = [
        f"predicted, nothing is measured: a card of {gib:g} GiB like {known.name}, d = {published.D}, "
        f"{published.EPOCHS} epochs",
        f"calibrated on {len(known.shown)} cells; in a second "
        + ", ".join(f"{rate:.2g} {unit}" for rate, unit in zip(rates[:3], _UNITS, strict=True)),
        f"and {1000 * rates.epoch_s:.2g} ms an epoch at any size; {rates.filled_by:,.0f} cells fill the card",
        f"fastest of the paper's variants in {len(four)} cells: "
        + ", ".join(f"{what} {count}" for what, count in counts.items()),
    ]
    return "\n".join([*lines, *(_against_published(table) if known.is_published(gib) else ())])


def _against_published(table: pd.DataFrame) -> Iterator[str]:
    cells, found = winners(table), ratios(table)
    counts = cells["verdict"].value_counts()
    good = len(cells) - counts.get("differ", 0)
    yield (
        f"of {len(cells)} published cells it names the winner in {counts.get('agree', 0)}, one within "
        f"{100 * (NEARLY - 1):.0f} % of it in {counts.get('equal', 0)}: {100 * good / len(cells):.0f} %"
    )
    hidden = found[~found["shown"]]
    share = right(hidden["ratio"]).mean()
    yield f"of {len(hidden)} runtimes that it was not shown {100 * share:.0f} % are within a factor of {WITHIN:g}"
    yield from _missing(cells, hidden)


def _missing(cells: pd.DataFrame, hidden: pd.DataFrame) -> Iterator[str]:
    """Where it is off, which term of the models is missing."""
    off = hidden[~right(hidden["ratio"])]
    jump = (off["n"] > JUMP[0]) & off["variant"].str.endswith("keops") & (off["ratio"] < 1)
    host = (cells["there"] == NOTHING_FITS) & (cells["here"] != NOTHING_FITS)
    if jump.any():
        part = off[jump]
        yield (
            f"off, {len(part)} runtimes: the published jump above n = {JUMP[0]:,}; these are predicted too short, "
            f"n = {part['n'].min():,} to {part['n'].max():,}, p up to {part['p'].max():,}. Missing: work of the host, "
            "see docs/reading.md"
        )
    if (~jump).any():
        part = off[~jump]
        yield (
            f"off, {len(part)} runtimes: n = {part['n'].min():,} to {part['n'].max():,}. Missing: launches, which the "
            "models take as the same for every variant"
        )
    if host.any():
        yield f"off, {host.sum()} winners: predicted to fit, not published: the host's memory (see frontier)"
    rest = (cells["verdict"] == "differ") & ~host
    if rest.any():
        pairs = cells[rest].groupby(["there", "here"]).size()
        yield f"off, {rest.sum()} winners: " + ", ".join(f"{b} for {a} {count}" for (a, b), count in pairs.items())
