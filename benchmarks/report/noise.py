"""How far the times can be trusted: their spread within a cell, others beside it, clocks that fell, extrapolation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from benchmarks.measuring import others
from benchmarks.measuring.records import Record
from benchmarks.report.evidence import Evidence
from benchmarks.report.page import Section, cells, number, paragraph, percent, table

MIN_EPOCHS = 4  # timed epochs from which on quartiles say something
NOISY = 0.25  # spread above which a cell counts as noisy
SLOWED = 1.2  # median of the last third of the epochs over that of the first
THROTTLED = 0.9  # of the GPU's highest clock
WORST = 10


def section(evidence: Evidence) -> Section | None:
    """Spread by variant, the worst cells, what others took, throttling; None without a measured cell."""
    found = spreads(evidence)
    if found.empty:
        return None
    told = found[found["epochs"] >= MIN_EPOCHS]
    said = paragraph(*_in_words(found, told)) + paragraph(*beside(evidence.in_study), *_noisy(found))
    said += paragraph(*clocks(_ok(evidence)), *_slowed(found))
    worst = found[(found["epochs"] >= MIN_EPOCHS) | (found["others"] > others.NOISY)]
    return Section("Noise", said + _by_variant(found) + (_worst(worst) if len(worst) else Markup()))


def spreads(evidence: Evidence) -> pd.DataFrame:
    """`spread` of every cell of the study that came to an end."""
    ended = evidence.grid.to_dict("records")
    return pd.DataFrame([spread(row) for row in ended if row["status"] == "ok"])


def _ok(evidence: Evidence) -> list[Record]:
    return [record for record in evidence.in_study if record.status == "ok"]


def spread(row: Mapping) -> dict:
    """Of a row's timed epochs: interquartile range over median, and the last third's median over the first third's.

    others is the share of the cores or of the GPU that others took, NaN where that is not known.
    """
    times = np.asarray(row["epoch_s"])
    shares = (row["others_cpu"], row["others_gpu"])
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    third = len(times) // 3
    return {
        "variant": row["variant"],
        "n": row["n"],
        "p": row["p"],
        "epochs": len(times),
        "median_s": middle,
        "spread": (high - low) / middle,
        "drift": np.median(times[-third:]) / np.median(times[:third]) if third else np.nan,
        "extrapolated": row["extrapolated"],
        "others": max((share for share in shares if pd.notna(share)), default=np.nan),
    }


def beside(found: Sequence[Record]) -> Iterator[str]:
    """Beside how many of these cells, those without an end included, others took much of the machine."""
    tried = [record for record in found if record.status in ("ok", "oom", "timeout")]
    known = [record for record in tried if record.others is not None]
    noisy = [record for record in known if record.others > others.NOISY]
    if not known:
        yield "The records do not say what other processes took of the machine meanwhile."
        return
    most = max(known, key=lambda record: record.others)
    where = f"{most.others_in_words} beside `{most.variant}` at n = {most.n:,}, p = {most.p:,}"
    limit = percent(others.NOISY)
    if noisy:
        yield f"**Others:** they took more than {limit} of the cores or of the GPU beside {_of(noisy, known)}; {where}."
    else:
        yield f"In none of {cells(len(known))} did others take more than {limit} of the cores or of the GPU; {where}."
    if len(known) < len(tried):
        yield f"Of {cells(len(tried) - len(known))} it is not known."
    twice = [record for record in known if record.repeated]
    if twice:
        yield f"{cells(len(twice))} measured twice for it: the better one stays."


def _of(some: Sequence, all_of_them: Sequence) -> str:
    return f"{len(some):,} of {cells(len(all_of_them))}"


def _noisy(spreads: pd.DataFrame) -> Iterator[str]:
    wide = (spreads["spread"] > NOISY) & (spreads["epochs"] >= MIN_EPOCHS)
    noisy = spreads[wide | (spreads["others"] > others.NOISY)]
    yield f"For this or their spread {_of(noisy, spreads)} count as noisy."


def clocks(ok: Sequence[Record]) -> Iterator[str]:
    """Whether the records say that the GPU throttled: the highest clock seen in a cell against the GPU's highest."""
    told = [(record, gpu) for record in ok if _has_clocks(gpu := record.machine.get("gpu"))]
    shares = {
        i: gpu["sm_clock_mhz"] / gpu["max_sm_clock_mhz"] for i, (_, gpu) in enumerate(told) if gpu["sm_clock_mhz"]
    }
    low = [i for i, share in shares.items() if share < THROTTLED]
    if not shares:
        yield "The records hold no clocks (a CPU's are not recorded), so throttling shows in the times alone."
    elif low:
        least = min(low, key=shares.get)
        record = told[least][0]
        yield (
            f"**Throttled:** in {cells(len(low))} of {len(shares)} the GPU never reached {percent(THROTTLED)} of its "
            f"highest clock; least in `{record.variant}` at n = {record.n:,}, p = {record.p:,}: "
            f"{percent(shares[least])}."
        )
    else:
        least = percent(min(shares.values()))
        yield f"No throttling: in every cell the GPU reached {least} or more of its highest clock."


def _has_clocks(gpu: Mapping | None) -> bool:
    return bool(gpu and gpu.get("sm_clock_mhz") and gpu.get("max_sm_clock_mhz"))


def _in_words(spreads: pd.DataFrame, told: pd.DataFrame) -> Iterator[str]:
    yield "The spread of a cell is the interquartile range of its timed epochs over their median."
    few = len(spreads) - len(told)
    if few:
        yield f"{few:,} of {cells(len(spreads))} timed fewer than {MIN_EPOCHS} epochs, which tell no spread."
    if len(told):
        noisy = int((told["spread"] > NOISY).sum())
        middle, which = percent(told["spread"].median()), "the other" if few else "all"
        yield f"In {which} {len(told):,} it is {middle} in the median, and above {percent(NOISY)} in {noisy:,}."
    extrapolated = int(spreads["extrapolated"].sum())
    yield f"{extrapolated:,} of {len(spreads):,} runtimes are extrapolated from the median epoch."


def _slowed(spreads: pd.DataFrame) -> Iterator[str]:
    long = spreads[spreads["epochs"] >= 3 * MIN_EPOCHS]
    if len(long):
        yield (
            f"In {int((long['drift'] > SLOWED).sum())} of {cells(len(long))} with at least {3 * MIN_EPOCHS} epochs, "
            f"the last third of them took more than {SLOWED:g} times as long as the first."
        )


def _by_variant(spreads: pd.DataFrame) -> Markup:
    rows = []
    for variant, group in spreads.groupby("variant", sort=False):
        told = group[group["epochs"] >= MIN_EPOCHS]["spread"]
        epochs, extrapolated = number(group["epochs"].median()), int(group["extrapolated"].sum())
        rows.append((variant, len(group), extrapolated, epochs, percent(told.median()), percent(told.max())))
    head = ("variant", "cells", "extrapolated", "epochs timed, median", "spread, median", "spread, largest")
    return table("Spread and extrapolation by variant", head, rows, range(1, 6))


def _worst(found: pd.DataFrame) -> Markup:
    """The cells furthest above what counts as noisy, for their spread or for others."""
    found = found.assign(spread=found["spread"].where(found["epochs"] >= MIN_EPOCHS))
    above = np.fmax(found["spread"] / NOISY, found["others"] / others.NOISY)
    rows = []
    for r in found.loc[above.sort_values(ascending=False).index].head(WORST).itertuples():
        shares = percent(r.spread), percent(r.others)
        rows.append((r.variant, f"{r.n:,}", f"{r.p:,}", r.epochs, number(r.median_s), *shares, number(r.drift)))
    head = ("variant", "n", "p", "epochs timed", "median epoch, s", "spread", "others", "last third / first third")
    return table(f"The {len(rows)} noisiest cells", head, rows, range(1, 8))
