"""How far the times can be trusted: their spread, others on the machine, clocks that fell, extrapolation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from benchmarks.analysis.table import measurements
from benchmarks.measuring import others
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, number, paragraph, percent, table

MIN_EPOCHS = 4  # timed epochs from which on quartiles say something
NOISY = 0.25  # spread above which a measurement counts as noisy
SLOWED = 1.2  # median of the last third of the epochs over that of the first
THROTTLED = 0.9  # of the GPU's highest clock
WORST = 10


def section(evidence: Evidence) -> Section | None:
    """Return spread by variant, the worst, what others took, throttling; None without a measurement."""
    if evidence.ok.empty:
        return None
    found = spreads(evidence)
    said = paragraph(*_of_spread(found)) + paragraph(*beside(evidence.grid), *_noisy(found))
    said += paragraph(*clocks(found), *_slowed(found))
    return Section("Noise", said + _by_variant(found) + _worst(found))


def spreads(evidence: Evidence) -> pd.DataFrame:
    """Return the ok rows of the study with `spread` and `drift`, see there; spread is NaN for fewer than MIN_EPOCHS."""
    found = [spread(epoch_s) for epoch_s in evidence.ok["epoch_s"]]
    told = evidence.ok["epochs_measured"] >= MIN_EPOCHS
    both = pd.DataFrame(found, columns=["spread", "drift"], index=evidence.ok.index, dtype=float)
    return evidence.ok.assign(spread=both["spread"].where(told), drift=both["drift"])


def spread(epoch_s: Sequence[float]) -> tuple[float, float]:
    """Return of timed epochs interquartile range over median, and the last third's median over the first third's."""
    times = np.asarray(epoch_s)
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    third = len(times) // 3
    return (high - low) / middle, np.median(times[-third:]) / np.median(times[:third]) if third else np.nan


def beside(rows: pd.DataFrame) -> Iterator[str]:
    """Say beside how many of these, those without an end included, others took much of the machine."""
    tried = rows[rows["status"].isin(["ok", "oom", "timeout"])]
    known = tried[tried["others"].notna()]
    if known.empty:
        yield "The records do not say what other processes took of the machine meanwhile."
        return
    noisy = (known["others"] > others.NOISY).sum()
    most = known.loc[known["others"].idxmax()]
    where = f"{most['others_in_words']} beside {_point(most)}"
    limit = percent(others.NOISY)
    if noisy:
        of = f"{noisy:,} of {measurements(len(known))}"
        yield f"**Others:** they took more than {limit} of the cores or of the GPU beside {of}; {where}."
    else:
        none = f"In none of {measurements(len(known))}"
        yield f"{none} did others take more than {limit} of the cores or of the GPU; {where}."
    if len(known) < len(tried):
        yield f"Of {measurements(len(tried) - len(known))} it is not known."
    twice = known["repeated"].sum()
    if twice:
        yield f"{measurements(twice)} made twice for it: the better one stays."


def _point(row: pd.Series) -> str:
    return f"`{row['variant']}` at n = {row['n']:,}, p = {row['p']:,}"


def _noisy(found: pd.DataFrame) -> Iterator[str]:
    noisy = (found["spread"] > NOISY) | (found["others"] > others.NOISY)
    yield f"For this or their spread {noisy.sum():,} of {measurements(len(found))} count as noisy."


def clocks(rows: pd.DataFrame) -> Iterator[str]:
    """Say whether the GPU throttled: the highest clock seen in a measurement against the GPU's highest."""
    reached, highest = (
        pd.Series([facts.get(f"gpu.{name}") for facts in rows["facts"]], index=rows.index, dtype=float)
        for name in ("sm_clock_mhz", "max_sm_clock_mhz")
    )
    shares = (reached / highest).dropna()
    if shares.empty:
        yield "The records hold no clocks (a CPU's are not recorded), so throttling shows in the times alone."
        return
    low, least = (shares < THROTTLED).sum(), percent(shares.min())
    if low:
        yield (
            f"**Throttled:** in {measurements(low)} of {len(shares)} the GPU never reached {percent(THROTTLED)} of its "
            f"highest clock; least in {_point(rows.loc[shares.idxmin()])}: {least}."
        )
    else:
        yield f"No throttling: in every measurement the GPU reached {least} or more of its highest clock."


def _of_spread(found: pd.DataFrame) -> Iterator[str]:
    told = found["spread"].dropna()
    few = len(found) - len(told)
    yield "The spread of a measurement is the interquartile range of its timed epochs over their median."
    if few:
        yield f"{few:,} of {measurements(len(found))} timed fewer than {MIN_EPOCHS} epochs, which tell no spread."
    if len(told):
        which = "the other" if few else "all"
        yield (
            f"In {which} {len(told):,} it is {percent(told.median())} in the median, and above {percent(NOISY)} in "
            f"{(told > NOISY).sum():,}."
        )
    yield f"{int(found['extrapolated'].sum()):,} of {len(found):,} runtimes are extrapolated from the median epoch."


def _slowed(found: pd.DataFrame) -> Iterator[str]:
    long = found[found["epochs_measured"] >= 3 * MIN_EPOCHS]
    if len(long):
        yield (
            f"In {(long['drift'] > SLOWED).sum()} of {measurements(len(long))} with at least {3 * MIN_EPOCHS} epochs, "
            f"the last third of them took more than {SLOWED:g} times as long as the first."
        )


def _by_variant(found: pd.DataFrame) -> Markup:
    rows = []
    for variant, group in found.groupby("variant", sort=False):
        epochs, extrapolated = number(group["epochs_measured"].median()), int(group["extrapolated"].sum())
        shares = percent(group["spread"].median()), percent(group["spread"].max())
        rows.append((variant, len(group), extrapolated, epochs, *shares))
    head = ("variant", "measurements", "extrapolated", "epochs timed, median", "spread, median", "spread, largest")
    return table("Spread and extrapolation by variant", head, rows, range(1, 6))


def _worst(found: pd.DataFrame) -> Markup:
    """Return those furthest above what counts as noisy, for their spread or for others."""
    above = np.fmax(found["spread"] / NOISY, found["others"] / others.NOISY)
    found = found[found["spread"].notna() | (found["others"] > others.NOISY)]
    if found.empty:
        return Markup()
    rows = []
    for r in found.loc[above[found.index].sort_values(ascending=False).index].head(WORST).itertuples():
        shares = percent(r.spread), percent(r.others), number(r.drift)
        rows.append((r.variant, f"{r.n:,}", f"{r.p:,}", r.epochs_measured, number(r.median_epoch_s), *shares))
    head = ("variant", "n", "p", "epochs timed", "median epoch, s", "spread", "others", "last third / first third")
    return table(f"The {len(rows)} noisiest measurements", head, rows, range(1, 8))
