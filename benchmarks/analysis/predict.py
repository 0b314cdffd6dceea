"""What a card that is not here would do: Figure 1 of it, and where its memory ends each variant.

A runtime is a variant's cost (mmdma_core.models) at the rates that a few measurements of another card give
(mmdma_core.advice). Whether it fits says its model of memory, which has the whole of a card; a CUDA context and
libraries take a part of that, so it is an upper bound. Of the published V100 the package's own models are taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

import mmdma_core
from benchmarks.analysis import published
from benchmarks.analysis.published import (
    ORIGINALS_PUBLISHED,
    PAPER_GIB,
    PAPER_IMPLEMENTATIONS,
    PAPER_VARIANTS,
    winners_over,
)
from benchmarks.analysis.table import machine_name, one_machine, to_frame
from benchmarks.measuring import records
from benchmarks.measuring.memory import GIB
from benchmarks.plan import ranges
from mmdma_core.advice import Measured
from mmdma_core.files.atomic import atomically
from mmdma_core.models import MemoryModel, Rates

V100 = "v100"
WITHIN = 1.5  # a runtime that is not off by more is counted as right
NEARLY = 1.15  # another variant is as good as the published winner if it was published with at most that much more
_PACKAGE = "published-"
_UNITS = ("operations of products", "numbers through memory", "operations of KeOps")
# In order of magnitude, from the data sheet of a V100: 1.4e13 operations and 900 GB a second; 5,120 lanes, each of
# which gives a result after four cycles. An epoch of some hundred launches: assumed.
GPU = Rates(products=1e13, passes=2e11, evaluated=1e13, compiled=1e13, filled_by=20_000, epoch_s=5e-3)
_PULL = 0.02  # what a rate that is off by e counts beside a measurement that is off by e
_THOUSANDS = range(1000, 101_000, 1000)  # the n of the originals are not in the published grid


@dataclass(frozen=True)
class Card:
    """A card that was measured.

    name      in words
    shown     the measurements that rates are calibrated on
    known     all measurements of it
    package   whether it ran the published package, whose models are then those of the paper's variants
    """

    name: str
    shown: list[Measured]
    known: list[Measured]
    package: bool

    def rates(self) -> Rates:
        """Return what it does in a second."""
        return calibrate(self.shown)

    def is_published(self, gib: float) -> bool:
        """Return whether a prediction of this card with `gib` GiB can be set against what was published."""
        return self.package and gib == PAPER_GIB

    def modelled(self, variant: str) -> str:
        """Return the variant whose models stand for one of the paper's implementations."""
        return _PACKAGE + variant if self.package and variant in PAPER_VARIANTS else variant


def card(like: str = V100) -> Card:
    """Return the published V100, or the GPU that measured a folder results/MACHINE.

    Raises ValueError if the folder has no measurement of a GPU.
    """
    if like == V100:
        read = published.runtimes().dropna()
        epochs = {(row.variant, row.n, row.p): row.runtime_s / published.EPOCHS for row in read.itertuples()}
        known = [Measured(variant, n, p, published.D, s) for (variant, n, p), s in epochs.items()]
        shown = [Measured(_PACKAGE + v, n, p, published.D, epochs[v, n, p]) for v, n, p in calibration_points(read)]
        return Card("the published V100", shown, known, True)
    own = [record for record in records.read_all(Path(like)) if record.status == "ok" and record.device == "cuda"]
    if not own:
        raise ValueError(f"--like: {like} holds no measurement of a GPU; {V100} is the published one")
    table, _ = one_machine(to_frame(own))
    return Card(f"{machine_name(next(table.itertuples()))} in {like}", measured(table), measured(table), False)


def calibration_points(runtimes: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Return of each variant's published curves three points (variant, n, p), chosen by where they lie.

    At the least p the first n, and the n nearest to the middle of the curve on a log axis; at the greatest p the last.
    """
    found = []
    for variant, rows in runtimes.dropna().groupby("variant"):
        p_low, p_high = rows["p"].min(), rows["p"].max()
        low, high = (sorted(rows.loc[rows["p"] == p, "n"]) for p in (p_low, p_high))
        middle = math.sqrt(low[0] * low[-1])
        nearest = min(low, key=lambda n: abs(math.log(n / middle)))
        found += [(str(variant), int(n), int(p)) for n, p in ((low[0], p_low), (nearest, p_low), (high[-1], p_high))]
    return found


def measured(table: pd.DataFrame) -> list[Measured]:
    """Return the rows of a table of benchmarks.analysis.table, all of them ok, as advice and calibration take them."""
    columns = ["variant", "n", "p", "d", "median_epoch_s"]
    return [Measured(*row) for row in table[columns].itertuples(index=False, name=None)]


def predicted(known: Card, gib: float) -> pd.DataFrame:
    """Return the table of such a card with `gib` GiB: PAPER_IMPLEMENTATIONS over the published grid, d as published.

    variant, n, p, d; status, outcome ('ok', or 'oom' where the model of memory exceeds the card); runtime_s of the
    published epochs (NaN where it does not fit); extrapolated, which no row is; basis, 'predicted' in every row.
    """
    rates = known.rates()
    ns, ps = published.grid()
    rows = []
    for name, p, n in itertools.product(PAPER_IMPLEMENTATIONS, ps, ns):
        models = mmdma_core.variant(known.modelled(name))
        fits = models.needs_bytes(n, p, published.D, device="cuda") <= gib * GIB
        seconds = published.EPOCHS * models.cost_model(n, p, published.D).seconds(rates)
        status = "ok" if fits else "oom"
        rows.append((name, n, p, published.D, status, status, seconds if fits else math.nan, False, "predicted"))
    columns = ["variant", "n", "p", "d", "status", "outcome", "runtime_s", "extrapolated", "basis"]
    return pd.DataFrame(rows, columns=columns)


def winners(table: pd.DataFrame) -> pd.DataFrame:
    """Return every point of the grid: n, p, here (predicted), there (published), verdict.

    verdict  'agree'; 'equal': another variant, which was published with at most NEARLY times the time of the winner;
             'differ'
    """
    times = published.runtimes().set_index(["variant", "n", "p"])["runtime_s"].to_dict()
    found = winners_over(table, *published.grid(), PAPER_VARIANTS)
    rows = []
    for there in published.published_winners().itertuples():
        n, p = there.n, there.p
        (here,) = found[n, p]
        ratio = times.get((here, n, p), math.nan) / times.get((there.winner, n, p), math.nan)
        verdict = "agree" if here == there.winner else "equal" if ratio <= NEARLY else "differ"
        rows.append((n, p, here, there.winner, verdict))
    return pd.DataFrame(rows, columns=["n", "p", "here", "there", "verdict"])


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Return every published runtime: variant, n, p, source, shown (to the calibration), ratio = predicted / published.

    A reading of a dual variant stands for several p: one that is shown is taken as shown at every p of that value. A
    point that is predicted not to fit has no ratio, and is left out.
    """
    read = published.runtimes().dropna()
    shown = set(calibration_points(read))
    times = read.set_index(["variant", "n", "p"])["runtime_s"]
    values = {(variant, n, times[variant, n, p]) for variant, n, p in shown if variant.startswith("dual")}
    both = read.merge(table[["variant", "n", "p", "runtime_s"]], on=["variant", "n", "p"], suffixes=("_there", ""))
    both["ratio"] = both["runtime_s"] / both["runtime_s_there"]
    both["shown"] = [
        (row.variant, row.n, row.p) in shown or (row.variant, row.n, row.runtime_s_there) in values
        for row in both.itertuples()
    ]
    return both.dropna(subset=["ratio"])[["variant", "n", "p", "source", "shown", "ratio"]].reset_index(drop=True)


def right(found: pd.Series) -> pd.Series:
    """Return which ratios are within a factor of WITHIN."""
    return found.between(1 / WITHIN, WITHIN)


def write(table: pd.DataFrame, against: pd.DataFrame | None, folder: Path) -> Path:
    """Write the table of `predicted` as predicted.csv; if given, `there` and `verdict` of `winners` beside each."""
    if against is not None:
        table = table.merge(against.drop(columns="here"), on=["n", "p"])
    with atomically(folder / "predicted.csv") as part:
        table.to_csv(part, index=False)
    return folder / "predicted.csv"


def describe(known: Card, gib: float, table: pd.DataFrame) -> str:
    """Say the rates, who is predicted to win where, and for the published card how far that is from the published."""
    rates = known.rates()
    found = winners(table)
    counts = found["here"].value_counts()
    lines = [
        f"predicted, nothing is measured: a card of {gib:g} GiB like {known.name}, d = {published.D}, "
        f"{published.EPOCHS} epochs",
        f"calibrated on {len(known.shown)} measurements; in a second "
        + ", ".join(f"{rate:.2g} {unit}" for rate, unit in zip(rates[:3], _UNITS, strict=True)),
        f"and {1000 * rates.epoch_s:.2g} ms an epoch at any size; {rates.filled_by:,.0f} cells fill the card",
        f"fastest of the paper's variants at {len(found)} points (n, p): "
        + ", ".join(f"{what} {count}" for what, count in counts.items()),
    ]
    return "\n".join([*lines, *(_against_published(found, ratios(table)) if known.is_published(gib) else ())])


def _against_published(found: pd.DataFrame, runtimes: pd.DataFrame) -> Iterator[str]:
    counts = found["verdict"].value_counts()
    good = (found["verdict"] != "differ").mean()
    yield (
        f"of {len(found)} published points it names the winner at {counts.get('agree', 0)}, one within "
        f"{100 * (NEARLY - 1):.0f} % of it at {counts.get('equal', 0)}: {100 * good:.0f} %"
    )
    hidden = runtimes[~runtimes["shown"]]
    share = right(hidden["ratio"]).mean()
    yield f"of {len(hidden)} runtimes that it was not shown {100 * share:.0f} % are within a factor of {WITHIN:g}"
    for variant, off in hidden[~right(hidden["ratio"])].groupby("variant"):
        yield f"off, {len(off)} runtimes of {variant}: n = {off['n'].min():,} to {off['n'].max():,}"
    for (there, here), off in found[found["verdict"] == "differ"].groupby(["there", "here"]):
        yield f"off, {len(off)} winners: {here} for {there}"
    yield "what is missing in the models: docs/reading.md, predict"


def ends(gib: float) -> pd.DataFrame:
    """Return where a card of `gib` GiB ends every variant that the paper timed: variant, p, ours, package, published.

    The last n that fits by this project's model, by that of the published package's code, and as published; NaN: none.
    """
    ns, ps = published.grid()
    known, limit = published.published_ends(), gib * GIB
    rows = []
    for name in PAPER_VARIANTS:
        own = partial(mmdma_core.variant(name).needs_bytes, device="cuda")
        model = mmdma_core.variant(f"{_PACKAGE}{name}").memory_model
        rows += [(name, p, *(last_fit(of, ns, p, limit) for of in (own, model)), known.get((name, p))) for p in ps]
    for name, last in ORIGINALS_PUBLISHED.items():
        model = mmdma_core.variant(name).memory_model
        rows += [(name, p, last_fit(model, _THOUSANDS, p, limit), None, last) for p in ps]
    table = pd.DataFrame(rows, columns=["variant", "p", "ours", "package", "published"])
    return table.astype({"ours": float, "package": float, "published": float})


def last_fit(model: MemoryModel, ns: Sequence[int], p: int, limit: float) -> int | None:
    """Return the largest n of ns (ascending) up to which a model stays within `limit` bytes; None where none does."""
    return max(itertools.takewhile(lambda n: model(n, p, published.D) <= limit, ns), default=None)


def describe_ends(gib: float) -> str:
    """Return the table of `ends` in words; neighbours in p with the same numbers share a line."""
    lines = [
        f"the last n that fits in {gib:g} GiB, d = {published.D}",
        f"  {'':<22}{'':<18}{'this project':>14}{'the package':>14}{'published':>12}",
    ]
    for name, rows in ends(gib).groupby("variant", sort=False):
        values = {p: tuple(numbers) for p, *numbers in rows.drop(columns="variant").fillna(0).itertuples(index=False)}
        for where, numbers in ranges(values, list(values)):
            ours, package, there = (f"{n:,.0f}" if n else "-" for n in numbers)
            lines.append(f"  {name:<22}{where:<18}{ours:>14}{package:>14}{there:>12}")
    return "\n".join([*lines, "what is counted, and why it differs from the published: docs/reading.md, frontier"])


def calibrate(known: Sequence[Measured], start: Rates = GPU) -> Rates:
    """Return the rates that bring the models of cost nearest to what was measured.

    That is, to least squares of log(predicted / measured). Every rate is pulled to `start` a little, so that one that
    nothing tells stays.

    known  of one machine, of any variants that state a cost; a few of each kind of work and of small and large n
    start  rates of a machine like it

    Raises ValueError where none is of a variant that states a cost.
    """
    models = {name: mmdma_core.variant(name).cost_model for name in mmdma_core.variants()}
    costs = [(models[one.variant](one.n, one.p, one.d), one.epoch_s) for one in known if models.get(one.variant)]
    if not costs:
        raise ValueError("no measurement of a variant that states a cost: rates cannot be calibrated")
    measured = np.log([seconds for _, seconds in costs])

    def off(logs: np.ndarray) -> np.ndarray:
        rates = Rates(*np.exp(logs))
        predicted = np.log([cost.seconds(rates) for cost, _ in costs])
        return np.concatenate([predicted - measured, _PULL * (logs - np.log(start))])

    return Rates(*map(float, np.exp(least_squares(off, np.log(start)).x)))
