"""One machine against the published V100, point by point: runtimes, the fastest variant, where memory ends.

Each function takes the table of one machine (benchmarks.analysis.table) and returns another table; `in_short` puts
into words what does not reproduce.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pandas as pd

import mmdma_core
from benchmarks.analysis import published
from benchmarks.analysis.published import NOTHING_FITS, ORIGINALS_PUBLISHED, PAPER_GIB, PAPER_VARIANTS
from benchmarks.measuring.memory import GIB
from benchmarks.plan import ranges

_TRIED = ("ok", "oom", "timeout", "unsupported")  # what tells that a variant is not the fastest, or that it is
_PACKAGE_PREFIX = "published-"  # the package itself, measured here, is set against the published runtimes, too
LSMMD_MA = "primal-keops"
JUMP = (30_000, 40_000)
EXCESS = 1.5  # two readings of one curve are off by up to 1.15 against each other
_POINT = ["variant", "n", "p"]


def comparable(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows with the published d on the published grid, and a sentence about the others."""
    ns, ps = published.grid()
    other_d = table["d"] != published.D
    off_grid = ~other_d & ~(table["n"].isin(ns) & table["p"].isin(ps))
    said = []
    if other_d.any():
        values = ", ".join(str(d) for d in sorted(table.loc[other_d, "d"].unique()))
        said.append(f"left out: {other_d.sum()} rows with d = {values}, where the published study has {published.D}")
    if off_grid.any():
        points = len(table.loc[off_grid, ["n", "p"]].drop_duplicates())
        said.append(f"left out: {points} points (n, p) measured here that are not in the published grid")
    return table[~other_d & ~off_grid], said


def _ended(table: pd.DataFrame) -> pd.DataFrame:
    """Return the comparable rows that are ok."""
    rows, _ = comparable(table)
    return rows[rows["status"] == "ok"]


def seconds(table: pd.DataFrame) -> pd.Series:
    """Return the time of 500 epochs as the published clock has it: without what is formed once before them."""
    return (table["runtime_s"] - table["prepare_s"]) * published.EPOCHS / table["epochs"]


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Return what was measured in both: variant, n, p, here_s, there_s, source, extrapolated, ratio = here_s / there_s.

    The published package's own variants are set against the runtimes published for them. there_s is good to 7 %;
    `source` is that of benchmarks.analysis.published.runtimes.
    """
    rows = _ended(table)
    rows = rows.assign(here_s=seconds(rows), of=rows["variant"].str.removeprefix(_PACKAGE_PREFIX))
    there = published.runtimes().dropna().rename(columns={"variant": "of", "runtime_s": "there_s"})
    both = rows.merge(there, on=["of", "n", "p"])
    both["ratio"] = both["here_s"] / both["there_s"]
    columns = [*_POINT, "here_s", "there_s", "source", "extrapolated", "ratio"]
    return both[columns].sort_values(["variant", "p", "n"], ignore_index=True)


def ratio_summary(found: pd.DataFrame) -> pd.DataFrame:
    """Return of `ratios` one row a variant: points, lowest, lower_quartile, median, upper_quartile, highest."""
    names = {"count": "points", "min": "lowest", "25%": "lower_quartile", "50%": "median", "75%": "upper_quartile"}
    names["max"] = "highest"
    found = found.astype({"ratio": float})  # of an empty table, pandas would describe objects
    summary = found.groupby("variant")["ratio"].describe().rename(columns=names)[list(names.values())]
    return summary.astype({"points": int}).reset_index()


def winners(table: pd.DataFrame) -> pd.DataFrame:
    """Return every point of the published grid: n, p, here, there, verdict, why.

    here, there  the fastest of the paper's four variants, or NOTHING_FITS; `here` is None where that is not known, and
                 the other one where the published one is as fast here (benchmarks.analysis.published.winners)
    verdict      'agree'; 'equal': the two may be as fast there or here; 'differ'; 'untestable': not measured here,
                 hidden there, or decided by memory that was not limited to the paper's 16 GiB
    why          in words, where the verdict is not 'agree'
    """
    rows, _ = comparable(table)
    points = dict(iter(rows[rows["variant"].isin(PAPER_VARIANTS)].groupby(["n", "p"])))
    ends = published.published_ends()
    found = []
    for there in published.published_winners().itertuples():
        own = points.get((there.n, there.p))
        here, why = _fastest(own)
        verdict = "untestable"
        if here:
            verdict, why = _verdict(here, there, own, ends)
        others = [variant for variant in here if variant != there.winner]
        shown = next(iter((*others, *here)), None)
        found.append((there.n, there.p, shown, there.winner, verdict, why))
    return pd.DataFrame(found, columns=["n", "p", "here", "there", "verdict", "why"])


def _fastest(rows: pd.DataFrame | None) -> tuple[tuple[str, ...], str]:
    """Return the winners of a point, or NOTHING_FITS alone; none and the reason where that cannot be said."""
    if rows is None:
        return (), "not measured here"
    outcomes = dict(zip(rows["variant"], rows["outcome"], strict=True))
    unknown = [f"{v} ({outcomes.get(v, 'not tried')})" for v in PAPER_VARIANTS if outcomes.get(v) not in _TRIED]
    if unknown:
        return (), f"not measured here: {', '.join(unknown)}"
    best = published.winners(rows, len(PAPER_VARIANTS))
    known = best[0] in (*PAPER_VARIANTS, NOTHING_FITS)
    return (best, "") if known else ((), "no variant came to an end here")


def _verdict(
    winners_here: tuple[str, ...], there: object, rows: pd.DataFrame, ends: dict[tuple[str, int], int]
) -> tuple[str, str]:
    if there.winner in winners_here:
        return ("equal", "within the spread of the epochs here") if len(winners_here) > 1 else ("agree", "")
    here = winners_here[0]
    outcomes = dict(zip(rows["variant"], rows["outcome"], strict=True))
    memory = None
    if here == NOTHING_FITS or outcomes.get(there.winner) == "oom":
        memory = f"{there.winner} ran out of memory here, not there"
    elif there.winner == NOTHING_FITS or there.n > ends[here, there.p]:
        memory = f"{here} ran out of memory there, not here"
    if memory and not _paper_memory(rows).all():
        return "untestable", f"{memory}, and memory here is not the {PAPER_GIB:g} GiB of the paper"
    if memory:
        return "differ", memory
    if here in there.close:
        return "equal", f"within the reading error of {100 * published.READING:g} % there"
    if outcomes[there.winner] != "ok":
        return "differ", f"{there.winner} came to no end here ({outcomes[there.winner]})"
    if here in there.hidden:
        return "untestable", f"{here} is hidden there behind another marker"
    return "differ", f"both ran in both, {there.winner} was faster there"


def _paper_memory(rows: pd.DataFrame) -> pd.Series:
    """Return which rows were measured on a GPU that was limited to the memory of the paper's."""
    limit = rows.get("limit_gpu_gib")  # None where no record states limits
    return (rows["device"] == "cuda") & (limit == PAPER_GIB)


def frontier(table: pd.DataFrame) -> pd.DataFrame:
    """Return whether each point fits 16 GiB, here and there: variant, n, p, here, there, basis, verdict.

    basis    'measured' where it was run on a GPU with gpu_memory_gib = 16, else 'predicted' by the variant's model of
             memory, which has all of the 16 GiB and is therefore an upper bound
    here     None where a measurement ended for another reason than memory
    verdict  'agree', 'differ' or 'untestable' (here is None)

    The paper's variants on the published grid, and the original implementations up to twice their published end.
    """
    rows, _ = comparable(table)
    outcomes = rows[_paper_memory(rows)].set_index(_POINT)["outcome"].to_dict()
    found = []
    for variant, n, p, there in _published_fits():
        outcome = outcomes.get((variant, n, p))
        basis = "predicted" if outcome is None else "measured"
        here = {"ok": True, "oom": False}.get(outcome)
        if outcome is None:
            here = mmdma_core.variant(variant).needs_bytes(n, p, published.D, device="cuda") <= PAPER_GIB * GIB
        verdict = "untestable" if here is None else "agree" if here == there else "differ"
        found.append((variant, n, p, here, there, basis, verdict))
    return pd.DataFrame(found, columns=[*_POINT, "here", "there", "basis", "verdict"])


def _published_fits() -> Iterator[tuple[str, int, int, bool]]:
    ns, ps = published.grid()
    for (variant, p), end in published.published_ends().items():
        yield from ((variant, n, p, n <= end) for n in ns)
    for variant, end in ORIGINALS_PUBLISHED.items():
        yield from ((variant, n, p, n <= end) for p in ps for n in ns if n <= 2 * end)


def jumps(table: pd.DataFrame) -> pd.DataFrame:
    """Return the published jump of LSMMD-MA between 30,000 and 40,000 cells, looked for at every p of the grid.

    p, work, there, here, verdict: how many times longer 40,000 cells take than 30,000, by the model of cost, as
    published, and here (NaN where not measured). A growth above EXCESS x that of the work is a jump.
    verdict  'found', 'not found', 'not tested here'; where none was published: 'none there', or 'only here'
    """
    here = _ended(table)
    here = here.assign(runtime_s=seconds(here))
    found = []
    for p in published.grid()[1]:
        first, second = (mmdma_core.variant(LSMMD_MA).cost_model(n, p, published.D).seconds() for n in JUMP)
        grown = [_growth(times, p) for times in (published.runtimes(), here)]
        found.append((p, second / first, *grown, _jump_verdict(*(growth / (second / first) for growth in grown))))
    return pd.DataFrame(found, columns=["p", "work", "there", "here", "verdict"])


def _growth(table: pd.DataFrame, p: int) -> float:
    times = table[(table["variant"] == LSMMD_MA) & (table["p"] == p)].set_index("n")["runtime_s"]
    first, second = (times.get(n, math.nan) for n in JUMP)
    return float(second / first)


def _jump_verdict(there: float, here: float) -> str:
    if there > EXCESS:
        return "not tested here" if math.isnan(here) else "found" if here > EXCESS else "not found"
    return "only here" if here > EXCESS else "none there"


def other_winners(table: pd.DataFrame) -> pd.DataFrame:
    """Return the points of `winners` that differ: n, p, here, there, here_ratio, there_ratio, cause.

    *_ratio  how many times longer the fastest variant of the other side takes on this one
    cause    in a few words, the same for all points of that cause
    """
    ended = _ended(table)
    machine = "a GPU" if (ended["device"] == "cuda").any() else "a CPU"
    found = winners(table).query("verdict == 'differ'").rename(columns={"why": "cause"}).drop(columns="verdict")
    times = {"here": ended.set_index(_POINT)["runtime_s"], "there": published.runtimes().set_index(_POINT)["runtime_s"]}
    for side, other in (("here", "there"), ("there", "here")):
        own, others = (
            times[side].reindex(pd.MultiIndex.from_frame(found[[who, "n", "p"]])).to_numpy() for who in (side, other)
        )
        found[f"{side}_ratio"] = others / own
    for row in found[found[["here_ratio", "there_ratio"]].notna().all(axis=1)].itertuples():
        flat = [v for v in (row.there, row.here) if _grows_less_than_the_work(v, row.n, row.p, times["there"])]
        cause = f"{machine} that weighs the two differently from the V100"
        if flat:
            names = " and ".join(flat)
            cause = f"the published time of {names} grows much less than the work: overhead, not arithmetic"
        found.loc[row.Index, "cause"] = cause
    return found


def _grows_less_than_the_work(variant: str, n: int, p: int, there: pd.Series) -> bool:
    """Return whether the published runtime grows around n less than half (in exponents) of what the work does.

    Taken over the narrowest spans around n in which n doubles: over less, two reading errors would decide.
    """
    times = there[variant, :, p].dropna()
    cost = mmdma_core.variant(variant).cost_model
    spans = [(m, k) for m, k in itertools.combinations(sorted(times.index), 2) if m <= n <= k and k >= 2 * m]
    narrowest = min((k / m for m, k in spans), default=None)
    slow = [
        math.log(times[k] / times[m])
        < math.log(cost(k, p, published.D).seconds() / cost(m, p, published.D).seconds()) / 2
        for m, k in spans
        if k / m == narrowest
    ]
    return bool(slow) and all(slow)


def in_short(table: pd.DataFrame) -> list[str]:
    """Return all that differs from the published study in sentences; what has one cause shares one."""
    return [*_fastest_in_words(table), *_memory_in_words(table), *_jumps_in_words(table)]


def _fastest_in_words(table: pd.DataFrame) -> Iterator[str]:
    groups = other_winners(table).groupby(["cause", "here", "there"])
    for (cause, here, there), rows in sorted(groups, key=lambda group: -len(group[1])):
        apart = [
            f"{rows[f'{side}_ratio'].median():.3g} x apart {side}"
            for side in ("there", "here")
            if rows[f"{side}_ratio"].notna().any()
        ]
        where = ", ".join(f"{axis} = {_span(rows[axis])}" for axis in "np")
        count = f"{len(rows)} point{'s' if len(rows) != 1 else ''} ({where})"
        more = f" ({' and '.join(apart)}, the median)" if apart else ""
        yield f"{here} is the fastest here, {there} there at {count}: {cause}{more}"


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:,}" + (f" to {high:,}" if high > low else "")


def _memory_in_words(table: pd.DataFrame) -> Iterator[str]:
    """Say where the last n that fits is another one; ranges of p with the same numbers share a part of a sentence."""
    _, ps = published.grid()
    parts: dict[str, list[str]] = {}
    for variant, rows in frontier(table).groupby("variant", sort=False):
        ends = {p: _ends(variant, group) for p, group in rows.groupby("p") if (group["verdict"] == "differ").any()}
        for where, (basis, here, there) in ranges(ends, ps):
            verb = "is predicted to go" if basis == "predicted" else "goes"
            what = (
                f"{variant} {verb} {'further' if here > there else 'less far'} on {PAPER_GIB:g} GiB than was published"
            )
            parts.setdefault(what, []).append(f"at {where} to n = {here:,} of the grid (there {there:,})")
    for what, where in parts.items():
        yield f"{what}, {'; '.join(where)}. For likely causes see `docs/reading.md`, frontier"


def _ends(variant: str, rows: pd.DataFrame) -> tuple[str, int, int]:
    """Return of one p the basis where it differs, and the last n that fits here and there."""
    here, there = (_last_fit(rows, side) for side in ("here", "there"))
    return rows.loc[rows["verdict"] == "differ", "basis"].iloc[0], here, ORIGINALS_PUBLISHED.get(variant, there)


def _last_fit(rows: pd.DataFrame, side: str) -> int:
    """Return the last n before the first that does not fit; what is not known (None) decides nothing."""
    fits = dict(zip(rows["n"], rows[side], strict=True))
    end = min((n for n, fit in fits.items() if fit is False), default=math.inf)
    return max((int(n) for n, fit in fits.items() if fit is True and n < end), default=0)


def _jumps_in_words(table: pd.DataFrame) -> Iterator[str]:
    first, second = JUMP
    for row in jumps(table).query("verdict in ('not found', 'only here')").itertuples():
        yield (
            f"the jump of LSMMD-MA between n = {first:,} and {second:,} at p = {row.p:,} is {row.verdict}: "
            f"{row.here:.2g} x here, {row.there:.2g} x there, the work grows {row.work:.2g} x: cause not known"
        )
