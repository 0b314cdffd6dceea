"""Two results folders, point by point: which is faster, for `python -m benchmarks compare A B`.

The rule, on the epochs that each record holds: the ratio is the median epoch of B over that of A, and it lies between
the least and the most that the 95 % intervals of the two medians allow (benchmarks.analysis.table; order statistics, so
that no distribution is assumed). With a threshold of 1.1, B is

    slower    if all of that is above 1.1,
    faster    if all of it is below 1 / 1.1,
    same      if all of it is within 1 / 1.1 and 1.1,
    noisy     otherwise, and where a side has one epoch: too noisy to say.

A measurement that came to an end in A and in B ran out of memory or time or raised an error is `lost`, and counts as
slower; `gained` is the other way round. Epochs of one measurement follow each other within seconds: what drifts between
two runs (other load, another clock) is in the ratio and not in the intervals, so the threshold should not be below what
a repeated run of the same code gives.

Measurements that answer another question in B than in A are left out and named: another seed, number of epochs or
components, other data, or settings that show in the losses.

Beside the measurements the maps of the fastest are compared. At a point (n, p) the fastest variants of A and of B
(benchmarks.analysis.published.winners: several where the intervals of their medians overlap) are

    same      one variant, and on both sides the same,
    equal     several on a side, with one in common; or two that differ by no more than the threshold on both sides,
    differ    otherwise.

Only variants that both sides told something about compete there. Approximate ones, and those of another objective, are
in neither map; what they are worth shows in whole fits, whose matches are judged with their time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

import mmdma_core
from benchmarks.analysis import agreement
from benchmarks.analysis.published import PAPER_VARIANTS, PUBLISHED, winners
from benchmarks.analysis.table import ENOUGH, machine_name, measurements, one_machine, to_full_frame
from benchmarks.measuring.others import NOISY
from benchmarks.measuring.records import read_folder

VERDICTS = ("slower", "lost", "faster", "gained", "same", "noisy")
WORDS = {"noisy": "too noisy to say", "lost": "lost (ended in A, not in B)", "gained": "gained (ended in B, not in A)"}
POINT = ["variant", "p", "n"]
AMONG = ("the paper's variants", "all exact variants")  # who competes in a map
MAP_VERDICTS = ("same", "equal", "differ")
_UNTOLD = ("budget", "missing_dependency")  # outcomes that say nothing about how fast a variant is
_QUESTION = ("d", "epochs", "seed", "data_mode", "devices")
_FAILED = ("oom", "timeout", "error")
_CLOCK = 0.03  # GPU clocks come in steps of 15 MHz; more than this fraction is another clock
_CLOCKS = ("gpu.sm_clock_mhz", "gpu.memory_clock_mhz")  # differ between measurements: their medians are compared
_MOST = 3  # values of one thing that a sentence names


@dataclass(frozen=True)
class Comparison:
    """Two folders compared.

    machines    who measured A and B
    found       one row for each point that both tried: variant, p, n, a_s, b_s (median epochs in seconds), their ratio
                B / A, its range low to high, a_epochs, b_epochs, verdict, b_outcome, and beside: what others took of
                the machine meanwhile, in words where it may be the reason, else ''
    points      the maps of the fastest, see compare_maps
    fits        lines about whole fits: quality against time
    warnings    a sentence for each thing other than the code that differs between A and B
    left_out    a sentence for each kind of record that is not compared
    threshold   see the module's docstring
    """

    a: str
    b: str
    machines: tuple[str, str]
    found: pd.DataFrame
    points: pd.DataFrame
    fits: list[str]
    warnings: list[str]
    left_out: list[str]
    threshold: float

    @property
    def slower(self) -> bool:
        """Whether B is slower at some point, or lost one."""
        return bool(self.found["verdict"].isin(["slower", "lost"]).any())


def compare(a: Path, b: Path, threshold: float = 1.1) -> Comparison:
    """Compare results folder b with a. Raises ValueError for a bad threshold, no readable record, no common point."""
    if not threshold > 1:
        raise ValueError(f"--threshold must be above 1, got {threshold:g}")
    left_out: list[str] = []
    sides = [_read(folder, letter, left_out) for folder, letter in ((a, "A"), (b, "B"))]
    machines = tuple(machine_name(next(side.itertuples())) for side in sides)
    both = pd.merge(*sides, on=POINT, how="outer", suffixes=("_a", "_b"), indicator="side")
    both["why"] = [another_question(row) if row.side == "both" else "" for row in both.itertuples()]
    other = [
        f"{measurements(count)} of {variant}, which answer{'s' * (count == 1)} another question: {why}"
        for (variant, why), count in both[both["why"] != ""].groupby(["variant", "why"]).size().items()
    ]
    both = both[both["why"] == ""].drop(columns="why")
    found = _judged(both, threshold)
    left_out += [*other, *_not_compared(found)]
    compared = found[found["verdict"] != ""]
    if compared.empty:
        why = f"; {other[0]}" if other else ""
        raise ValueError(f"{a} and {b} have no point that ended in one of them and was tried in the other{why}")
    common = both.loc[both["side"] == "both", POINT]
    points = compare_maps(*(side.merge(common, on=POINT) for side in sides), threshold)
    shown = compared[[*POINT, "a_s", "b_s", "ratio", "low", "high", "a_epochs", "b_epochs", "verdict"]].assign(
        b_outcome=compared["status_b"], beside=[_beside(row) for row in compared.itertuples()]
    )
    fits = list(_quality_against_time(a, b))
    warnings = list(_warnings(compared))
    return Comparison(str(a), str(b), machines, shown, points, fits, warnings, left_out, threshold)


def _read(folder: Path, letter: str, left_out: list[str]) -> pd.DataFrame:
    """Return the table of the machine that measured most of a folder; what is left out is added to `left_out`."""
    held = read_folder(folder)
    left_out += [f"{letter}: {sentence}" for sentence in held.left_out]
    if not held.records:
        reason = f"; {held.left_out[0]}" if held.left_out else ""
        if folder.resolve() == PUBLISHED.parent:
            reason = (
                ", but the published runtimes: figures/against_paper and the report of a folder set it against them "
                "(python -m benchmarks figures, python -m benchmarks report)"
            )
        raise ValueError(f"{folder / 'records'} holds no readable record{reason}")
    table, said = one_machine(to_full_frame(held.records).astype(dict.fromkeys(_QUESTION, object)))
    left_out += [f"{letter}: {sentence}" for sentence in said]
    return table


def another_question(row: Any) -> str:
    """Say what makes the two times of a row no answers to the same question; '' where they can be.

    The keys of the records also differ with the code of the variant. What is not in a record, such as sigma, shows in
    the losses after the same few epochs.
    """
    for name in _QUESTION:
        values = getattr(row, f"{name}_a"), getattr(row, f"{name}_b")
        if values[0] != values[1] and not any(map(pd.isna, values)):
            return f"{name} is {values[0]} in A, {values[1]} in B"
    if row.key_a != row.key_b and not agreement.same_question(row):
        return "their losses after the same epochs differ: other settings or data, or code that computes something else"
    return ""


def _judged(both: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return the rows with what Comparison.found has; verdict is '' where neither ended, or one was not tried."""
    ok = [both[f"status_{side}"] == "ok" for side in "ab"]
    failed = [
        both[f"status_{side}"].isin(_FAILED)
        | ((both[f"status_{side}"] == "skipped") & both[f"implied_by_{side}"].notna())
        for side in "ab"
    ]
    seconds = [both[f"median_epoch_s_{side}"].astype(float).where(ended) for side, ended in zip("ab", ok, strict=True)]
    epochs = [both[f"epoch_s_{side}"].str.len() for side in "ab"]
    low = both["median_low_s_b"].astype(float) / both["median_high_s_a"]
    high = both["median_high_s_b"].astype(float) / both["median_low_s_a"]
    rules = {
        "lost": ok[0] & failed[1],
        "gained": failed[0] & ok[1],
        "": ~(ok[0] & ok[1]),
        "noisy": np.minimum(*epochs) < 2,
        "slower": low > threshold,
        "faster": high < 1 / threshold,
        "same": (low >= 1 / threshold) & (high <= threshold),
    }
    return both.assign(
        a_s=seconds[0],
        b_s=seconds[1],
        ratio=seconds[1] / seconds[0],
        low=low,
        high=high,
        a_epochs=epochs[0],
        b_epochs=epochs[1],
        verdict=np.select(list(rules.values()), list(rules), "noisy"),
    )


def _beside(row: Any) -> str:
    """Say what others took of the machine meanwhile; '' where that was little or is not known."""
    said = [
        f"{getattr(row, f'others_in_words_{side}')} in {side.upper()}"
        for side in "ab"
        if getattr(row, f"others_{side}") > NOISY
    ]
    return f"others took {' and '.join(said)}" if said else ""


def _not_compared(found: pd.DataFrame) -> Iterator[str]:
    """Say how many have no verdict: those that ended on one side, by variant and reason, and those on neither."""
    rest = found[found["verdict"] == ""]
    for mine, other in ("ab", "ba"):
        states = rest[f"status_{other}"].fillna("not there")[rest[f"status_{mine}"] == "ok"]
        for (variant, state), count in states.groupby([rest["variant"], states]).size().items():
            yield f"{mine.upper()}: {measurements(count)} of {variant}, in {other.upper()}: {state}"
    neither = (rest["side"] == "both") & (rest["status_a"] != "ok") & (rest["status_b"] != "ok")
    if neither.any():
        yield f"{measurements(neither.sum())} that ended neither in A nor in B"


def _warnings(rows: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each part of the machine, version or setting that differs, and about code and others."""
    told = [[row | more for row, more in zip(rows[f"facts_{side}"], _asked(rows, side), strict=True)] for side in "ab"]
    for name in sorted({name for row in told[0] + told[1] for name in row}):
        values = [[row.get(name) for row in side] for side in told]
        if any(isinstance(value, list | dict) for side in values for value in side):
            continue
        if name in _CLOCKS:
            yield from _clocks(name, *values)
        elif set(values[0]) != set(values[1]):
            yield f"{name} differs: {_named(values[0])} in A, {_named(values[1])} in B"
    other = (rows["key_a"] != rows["key_b"]).sum()
    if other:
        yield f"{other} of {len(rows)} were measured with other code of the variant, or other packages for it"
    known = rows[["others_a", "others_b"]].notna().any(axis=None)
    for side in "ab":
        noisy = (rows[f"others_{side}"] > NOISY).sum()
        unknown = (rows[f"others_{side}"].isna() & (rows[f"status_{side}"] != "skipped")).sum()
        if noisy:
            took = f"others took more than {100 * NOISY:.0f} % of the cores or of the GPU"
            yield f"{took} beside {noisy} of {measurements(len(rows))} in {side.upper()}"
        if known and unknown:
            of = f"{unknown} of {measurements(len(rows))} in {side.upper()}"
            yield f"what others took of the machine is not known of {of}"


def _asked(rows: pd.DataFrame, side: str) -> list[dict[str, Any]]:
    names = ["device", "d", "epochs", "seed", "data_mode"]
    return rows[[f"{name}_{side}" for name in names]].set_axis(names, axis=1).to_dict("records")


def _clocks(name: str, a: list, b: list) -> Iterator[str]:
    known = [[value for value in side if value] for side in (a, b)]
    if all(known):
        first, second = map(median, known)
        if abs(second / first - 1) > _CLOCK:
            yield f"{name} differs: {first:g} MHz in A, {second:g} MHz in B (medians)"


def _named(values: Iterable[Any]) -> str:
    each = sorted({str(value) for value in values})
    return " or ".join(each[:_MOST]) + (f" or {len(each) - _MOST} more" if len(each) > _MOST else "")


def compare_maps(a: pd.DataFrame, b: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return one row for each map and point where something ended: among, n, p, verdict, and the winners a and b.

    The tables of both have the same measurements in the same order.
    """
    told = ~a["outcome"].isin(_UNTOLD) & ~b["outcome"].isin(_UNTOLD)
    exact = [name for name in mmdma_core.variants() if mmdma_core.variant(name).exact]
    rows = []
    for among, variants in zip(AMONG, (PAPER_VARIANTS, exact), strict=True):
        kept = told & a["variant"].isin(variants)
        sides = [dict(iter(side[kept].groupby(["n", "p"]))) for side in (a, b)]
        for n, p in sides[0]:
            pair = [side[n, p] for side in sides]
            best = [winners(each, len(each)) for each in pair]
            if any((each["status"] == "ok").any() for each in pair):
                rows.append((among, n, p, *best, _verdict_of_map(*best, *pair, threshold)))
    return pd.DataFrame(rows, columns=["among", "n", "p", "a", "b", "verdict"])


def _verdict_of_map(
    a: tuple[str, ...], b: tuple[str, ...], rows_a: pd.DataFrame, rows_b: pd.DataFrame, threshold: float
) -> str:
    if set(a) & set(b):
        return "same" if len(a) == len(b) == 1 else "equal"
    for rows, best, other in ((rows_a, a, b), (rows_b, b, a)):
        runtime = rows[rows["status"] == "ok"].set_index("variant")["runtime_s"].to_dict()
        if not {best[0], other[0]} <= runtime.keys() or runtime[other[0]] > threshold * runtime[best[0]]:
            return "differ"
    return "equal"


def _quality_against_time(a: Path, b: Path) -> Iterator[str]:
    """Say median seconds and FOSCTTM at the lowest loss of each method and n that `scale` fitted in both folders."""
    tables = [_fits(folder / "scale" / "scale.csv") for folder in (a, b)]
    both = [fit for fit in tables[0] if fit in tables[1]]
    if both:
        yield "Quality against time, whole fits: seconds a start, FOSCTTM at the lowest loss (0 is best):"
    for n, method in both:
        (a_s, a_foscttm), (b_s, b_foscttm) = (table[n, method] for table in tables)
        name = method + remark(method.split(" ")[0])
        yield f"    {name:<40} n = {n:<8} {a_s:.3g} -> {b_s:.3g} s, {a_foscttm:.3f} -> {b_foscttm:.3f}"


def _fits(path: Path) -> dict[tuple[int, str], tuple[float, float]]:
    if not path.exists():
        return {}
    starts = pd.read_csv(path)
    if not {"n", "method", "status", "seconds", "loss", "foscttm"} <= set(starts):
        return {}  # of another version
    ended = starts[starts["status"] == "ok"].groupby(["n", "method"], sort=False)
    return {fit: (rows["seconds"].median(), rows.loc[rows["loss"].idxmin(), "foscttm"]) for fit, rows in ended}


def remark(variant: str) -> str:
    """Return ' (approximate)' or the like to stand behind the name of a variant; '' of an exact or unknown one."""
    said = mmdma_core.variant(variant).remark if variant in mmdma_core.variants() else ""
    return f" ({said})" if said else ""


def describe(found: Comparison) -> str:
    """Say what is compared, the counts, the rule, what else differs; then the lists of points."""
    rows, (a, b) = found.found, found.machines
    counts = rows["verdict"].value_counts()
    few = int((rows[["a_epochs", "b_epochs"]].min(axis=1) < ENOUGH).sum())
    variants = rows["variant"].nunique()
    lines = [
        f"B against A: seconds per epoch of {variants} variant{'s' * (variants > 1)} at {len(rows)} "
        f"point{'s' * (len(rows) > 1)} that both tried{f', on {a}' if a == b else f'; A on {a}, B on {b}'}",
        f"A  {found.a}",
        f"B  {found.b}",
    ]
    lines += [f"  {WORDS.get(verdict, verdict):<32} {counts.get(verdict, 0):>5}" for verdict in VERDICTS]
    lines += [*_describe_maps(found.points), *found.fits]
    lines.append(
        f"Slower: the whole range of B / A is above {found.threshold:g}; faster: below 1 / {found.threshold:g}; same: "
        "within; else too noisy to say. The range is what the 95 % intervals of the two medians allow (order "
        "statistics). Of the fastest: equal where the intervals of several overlap and A and B share one, or within "
        "the threshold."
    )
    if few:
        lines.append(
            f"At {few} of these points a side has fewer than {ENOUGH} epochs: there the range is all there is."
        )
    lines += [f"warning: {sentence}" for sentence in found.warnings]
    for among, points in found.points[found.points["verdict"] == "differ"].groupby("among", sort=False):
        lines.append(f"the fastest of {among} differ:")
        for point in points.itertuples():
            lines.append(f"    n = {point.n:<8} p = {point.p:<6} {' = '.join(point.a)} -> {' = '.join(point.b)}")
    for verdict, listed in rows.groupby(pd.Categorical(rows["verdict"], VERDICTS[:4]), observed=True):
        lines += [f"{WORDS.get(verdict, verdict)}:", *map(_line, listed.itertuples())]
    lines += [f"left out: {sentence}" for sentence in found.left_out]
    return "\n".join(lines)


def _describe_maps(points: pd.DataFrame) -> Iterator[str]:
    for among, rows in points.groupby("among", sort=False):
        counts = rows["verdict"].value_counts()
        said = ", ".join(f"{verdict} {counts.get(verdict, 0)}" for verdict in MAP_VERDICTS)
        yield f"The fastest of {among} at {len(rows)} points (n, p): {said}"


def _line(row: Any) -> str:
    name = row.variant + remark(row.variant)
    where = f"    {name:<24} n = {row.n:<8} p = {row.p:<6}"
    beside = f"; {row.beside}" if row.beside else ""
    if row.verdict == "lost":
        return f"{where} {row.a_s:.3e} -> {row.b_outcome}{beside}"
    if row.verdict == "gained":
        return f"{where} -> {row.b_s:.3e}{beside}"
    return f"{where} {row.a_s:.3e} -> {row.b_s:.3e}  x {row.ratio:.3g} ({row.low:.3g} to {row.high:.3g}){beside}"
