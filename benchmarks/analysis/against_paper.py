"""One machine against the published V100, cell by cell: runtimes, the fastest variant, where memory ends.

Each function takes the table of one machine (benchmarks.analysis.table and selection) and returns another table;
benchmarks.analysis.against_paper puts into words what does not reproduce.

What does not reproduce, each with its likely cause in words that follow from the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

import mmdma_core
from benchmarks.analysis import published
from benchmarks.analysis.frontier import ORIGINALS_PUBLISHED, PAPER_GIB, why
from benchmarks.analysis.published import NOTHING_FITS, PAPER_VARIANTS, PUBLISHED
from benchmarks.analysis.published import winners as winners_of
from benchmarks.measuring.memory import GIB
from benchmarks.plan import ranges

_TRIED = ("ok", "oom", "timeout", "unsupported")  # what tells that a variant is not the fastest, or that it is
_PACKAGE_PREFIX = "published-"  # the package itself, measured here, is set against the published runtimes, too
LSMMD_MA = "primal-keops"
JUMP = (30_000, 40_000)
EXCESS = 1.5  # two readings of one curve are off by up to 1.15 against each other


def comparable(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows with the published d on the published grid, and a sentence about the others."""
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


def seconds(table: pd.DataFrame) -> pd.Series:
    """The time of 500 epochs as the published clock has it: without what is formed once before them."""
    return (table["runtime_s"] - table["prepare_s"]) * published.EPOCHS / table["epochs"]


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell measured in both: variant, n, p, here_s, there_s, source, extrapolated, ratio = here_s / there_s.

    The published package's own variants are set against the runtimes published for them. there_s is good to 7 %;
    `source` is that of benchmarks.analysis.published.runtimes.
    """
    rows, _ = comparable(table)
    rows = rows[rows["status"] == "ok"]
    rows = rows.assign(here_s=seconds(rows), of=rows["variant"].str.removeprefix(_PACKAGE_PREFIX))
    there = published.runtimes().dropna().rename(columns={"variant": "of", "runtime_s": "there_s"})
    both = rows.merge(there, on=["of", "n", "p"])
    both["ratio"] = both["here_s"] / both["there_s"]
    columns = ["variant", "n", "p", "here_s", "there_s", "source", "extrapolated", "ratio"]
    return both[columns].sort_values(["variant", "p", "n"], ignore_index=True)


def ratio_summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Of the cells of `ratios`, one row a variant: cells, lowest, lower quartile, median, upper quartile, highest."""
    names = {"count": "cells", "min": "lowest", "25%": "lower_quartile", "50%": "median", "75%": "upper_quartile"}
    names["max"] = "highest"
    cells = cells.astype({"ratio": float})  # of no cells at all, pandas would describe objects
    found = cells.groupby("variant")["ratio"].describe().rename(columns=names)[list(names.values())]
    return found.astype({"cells": int}).reset_index()


def winners(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell of the published grid: n, p, here, there, verdict, why.

    here, there  the fastest of the paper's four variants, or NOTHING_FITS; `here` is None where that is not known, and
                 the other one where the published one is as fast here (benchmarks.analysis.published.winners)
    verdict      'agree'; 'equal': the two may be as fast there or here; 'differ'; 'untestable': not measured here,
                 hidden there, or decided by memory that was not limited to the paper's 16 GiB
    why          in words, where the verdict is not 'agree'
    """
    rows, _ = comparable(table)
    rows = rows[rows["variant"].isin(PAPER_VARIANTS)]
    cells = {point: cell for point, cell in rows.groupby(["n", "p"])}
    ends = published.published_ends(pd.read_csv(published.PUBLISHED))
    found = []
    for there in published.published_winners().itertuples():
        cell = cells.get((there.n, there.p))
        here, why = _fastest(cell)
        verdict = "untestable"
        if here:
            verdict, why = _verdict(here, there, cell, ends)
        others = [variant for variant in here if variant != there.winner]
        shown = next(iter((*others, *here)), None)
        found.append((there.n, there.p, shown, there.winner, verdict, why))
    return pd.DataFrame(found, columns=["n", "p", "here", "there", "verdict", "why"])


def _fastest(cell: pd.DataFrame | None) -> tuple[tuple[str, ...], str]:
    """The winners of a cell, or NOTHING_FITS alone; none and the reason where that cannot be said."""
    if cell is None:
        return (), "not measured here"
    outcomes = dict(zip(cell["variant"], cell["outcome"], strict=True))
    unknown = [f"{v} ({outcomes.get(v, 'not tried')})" for v in PAPER_VARIANTS if outcomes.get(v) not in _TRIED]
    if unknown:
        return (), f"not measured here: {', '.join(unknown)}"
    best = winners_of(cell, len(PAPER_VARIANTS))
    known = best[0] in (*PAPER_VARIANTS, NOTHING_FITS)
    return (best, "") if known else ((), "no variant came to an end here")


def _verdict(
    winners_here: tuple[str, ...], there: object, cell: pd.DataFrame, ends: dict[tuple[str, int], int]
) -> tuple[str, str]:
    if there.winner in winners_here:
        return ("equal", "within the spread of the epochs here") if len(winners_here) > 1 else ("agree", "")
    here = winners_here[0]
    outcomes = dict(zip(cell["variant"], cell["outcome"], strict=True))
    memory = None
    if here == NOTHING_FITS or outcomes.get(there.winner) == "oom":
        memory = f"{there.winner} ran out of memory here, not there"
    elif there.winner == NOTHING_FITS or there.n > ends[here, there.p]:
        memory = f"{here} ran out of memory there, not here"
    if memory and not _paper_memory(cell).all():
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
    """Which rows were measured on a GPU that was limited to the memory of the paper's."""
    limit = rows.get("limit_gpu_gib")  # None where no record states limits
    return (rows["device"] == "cuda") & (limit == PAPER_GIB)


def frontier(table: pd.DataFrame) -> pd.DataFrame:
    """Whether each cell fits 16 GiB, here and there: variant, n, p, here, there, basis, verdict.

    basis    'measured' where the cell was run on a GPU with gpu_memory_gib = 16, else 'predicted' by the variant's
             model of memory, which has all of the 16 GiB and is therefore an upper bound
    here     None where a measured cell ended for another reason than memory
    verdict  'agree', 'differ' or 'untestable' (here is None)

    The paper's variants on the published grid, and the original implementations up to twice their published end.
    """
    rows, _ = comparable(table)
    rows = rows[_paper_memory(rows)]
    outcomes = dict(zip(zip(rows["variant"], rows["n"], rows["p"], strict=True), rows["outcome"], strict=True))
    found = []
    for variant, n, p, there in _published_fits():
        outcome = outcomes.get((variant, n, p))
        basis = "predicted" if outcome is None else "measured"
        here = {"ok": True, "oom": False}.get(outcome)
        if outcome is None:
            here = mmdma_core.variant(variant).needs_bytes(n, p, published.D, device="cuda") <= PAPER_GIB * GIB
        verdict = "untestable" if here is None else "agree" if here == there else "differ"
        found.append((variant, n, p, here, there, basis, verdict))
    return pd.DataFrame(found, columns=["variant", "n", "p", "here", "there", "basis", "verdict"])


def _published_fits() -> Iterator[tuple[str, int, int, bool]]:
    ns, ps = published.grid()
    for (variant, p), end in published.published_ends(pd.read_csv(published.PUBLISHED)).items():
        yield from ((variant, n, p, n <= end) for n in ns)
    for variant, end in ORIGINALS_PUBLISHED.items():
        yield from ((variant, n, p, n <= end) for p in ps for n in ns if n <= 2 * end)


def jumps(table: pd.DataFrame) -> pd.DataFrame:
    """The published jump of LSMMD-MA between 30,000 and 40,000 cells, looked for at every p of the published grid.

    p, work, there, here, verdict: how many times longer 40,000 cells take than 30,000, by the model of cost, as
    published, and here (NaN where not measured). A growth above EXCESS x that of the work is a jump.
    verdict  'found', 'not found', 'not tested here'; where none was published: 'none there', or 'only here'
    """
    rows, _ = comparable(table)
    here = rows[rows["status"] == "ok"].assign(runtime_s=seconds(rows))
    found = []
    for p in published.grid()[1]:
        first, second = (mmdma_core.variant(LSMMD_MA).cost_model(n, p, published.D).seconds() for n in JUMP)
        grown = (_growth(published.runtimes(), p), _growth(here, p))
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


COLUMNS = ("kind", "n", "p", "here", "there", "here_ratio", "there_ratio", "cause", "sentence")


def not_reproduced(table: pd.DataFrame) -> pd.DataFrame:
    """All that differs from the published study in the table of one machine, one row each, with COLUMNS.

    kind         'fastest' (one row a cell), 'memory' (one row a variant and range of p), 'jump' (one row a p)
    here, there  the fastest variant; the last n that fits, as text; the growth of the runtime, as text
    *_ratio      of a fastest variant: how many times longer the other side's fastest one takes
    cause        in a few words, the same for all rows of that cause
    """
    rows = [*_fastest_in_words(table), *_memory(table), *_jumps(table)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def in_short(found: pd.DataFrame) -> list[str]:
    """Sentences for the rows of `not_reproduced`: rows of one kind with one cause share one."""
    fastest, memory = (found[found["kind"] == kind] for kind in ("fastest", "memory"))
    cells = sorted(fastest.groupby(["cause", "here", "there"]), key=lambda group: -len(group[1]))
    said = [_fastest_in_short(here, there, cause, rows) for (cause, here, there), rows in cells]
    parts = memory["sentence"].str.split(", ", n=1)  # what happens, and where
    for (head, cause), rows in parts.groupby([parts.str[0], memory["cause"]], sort=False):
        said.append(f"{head}, {'; '.join(rows.str[1])}. Likely cause: {cause}")
    return said + found.loc[found["kind"] == "jump", "sentence"].tolist()


def _fastest_in_short(here: str, there: str, cause: str, rows: pd.DataFrame) -> str:
    ratios = [
        f"{rows[f'{side}_ratio'].median():.3g} x apart {side}"
        for side in ("there", "here")
        if rows[f"{side}_ratio"].notna().any()
    ]
    count = f"{len(rows)} cell{'s' if len(rows) != 1 else ''} ({_span('n', rows)}, {_span('p', rows)})"
    apart = f" ({' and '.join(ratios)}, the median)" if ratios else ""
    return f"{here} is the fastest here, {there} there in {count}: {cause}{apart}"


def _span(name: str, cells: pd.DataFrame) -> str:
    low, high = cells[name].min(), cells[name].max()
    return f"{name} = {low:,}" + (f" to {high:,}" if high > low else "")


def _fastest_in_words(table: pd.DataFrame) -> Iterator[tuple]:
    found = winners(table)
    rows, _ = comparable(table)
    rows = rows[rows["status"] == "ok"]
    here = rows.set_index(["variant", "n", "p"])["runtime_s"].to_dict()
    there = published.runtimes().set_index(["variant", "n", "p"])["runtime_s"].to_dict()
    machine = "a GPU" if (rows["device"] == "cuda").any() else "a CPU"
    for cell in found[found["verdict"] == "differ"].itertuples():
        point = (cell.n, cell.p)
        here_ratio = here.get((cell.there, *point), math.nan) / here.get((cell.here, *point), math.nan)
        there_ratio = there.get((cell.here, *point), math.nan) / there.get((cell.there, *point), math.nan)
        cause, more = cell.why, ""
        if not math.isnan(here_ratio * there_ratio):
            more = f"; the two are {there_ratio:.3g} x apart there, {here_ratio:.3g} x here"
            cause, numbers = _why_the_order_differs(cell, here, there, machine)
            more += numbers
        sentence = f"n = {cell.n:,}, p = {cell.p:,}: {cell.here} is the fastest here, {cell.there} there: {cause}{more}"
        yield ("fastest", *point, cell.here, cell.there, here_ratio, there_ratio, cause, sentence)


def _why_the_order_differs(cell: object, here: dict, there: dict, machine: str) -> tuple[str, str]:
    """Why the order of two variants differs: what each takes more or less here, and overhead in the published times."""
    pair = (cell.there, cell.here)
    factors = (here[v, cell.n, cell.p] / there[v, cell.n, cell.p] for v in pair)
    numbers = "; ".join(f"{v} takes {factor:.2g} x its published time" for v, factor in zip(pair, factors, strict=True))
    flat = {v: grown for v in pair if (grown := _grows_less_than_the_work(v, cell.n, cell.p, there))}
    if not flat:
        return f"{machine} that weighs the two differently from the V100", f"; {numbers}"
    growth = "; ".join(f"there {v} grows {words}" for v, words in flat.items())
    cause = f"the published time of {' and '.join(flat)} grows much less than the work: overhead, not arithmetic"
    return cause, f"; {growth}; {numbers}"


def _grows_less_than_the_work(variant: str, n: int, p: int, there: dict) -> str | None:
    """How the published runtime grows around n, in words, if that is less than half (in exponents) of what work does.

    Taken over the narrowest spans around n in which n doubles: over less, two reading errors would decide.
    """
    known = sorted(m for v, m, q in there if v == variant and q == p and not math.isnan(there[v, m, q]))
    spans = [(low, high) for low in known for high in known if low <= n <= high and high >= 2 * low]
    narrowest = min((high / low for low, high in spans), default=None)
    cost = mmdma_core.variant(variant).cost_model
    words = None
    for low, high in (span for span in spans if span[1] / span[0] == narrowest):
        work = math.log(cost(high, p, published.D).seconds() / cost(low, p, published.D).seconds())
        grown = math.log(there[variant, high, p] / there[variant, low, p])
        if grown >= work / 2:
            return None
        words = f"as n^{max(grown, 0) / math.log(high / low):.1f} from {low:,} to {high:,}"
    return words


def _memory(table: pd.DataFrame) -> Iterator[tuple]:
    """Where the last n that fits is another one; ranges of p with the same numbers share a row."""
    cells = frontier(table)
    _, ps = published.grid()
    read = pd.read_csv(PUBLISHED)
    for variant, rows in cells.groupby("variant", sort=False):
        ends = {p: _ends(variant, group) for p, group in rows.groupby("p") if (group["verdict"] == "differ").any()}
        for where, (basis, here, there, first) in ranges(ends, ps):
            word = "further" if here > there else "less far"
            verb = "is predicted to go" if basis == "predicted" else "goes"
            cause = " ".join(sentence.strip() for sentence in why(variant, word, read)) or "not known"
            sentence = (
                f"{variant} {verb} {word} on {PAPER_GIB:g} GiB than was published, at {where} to n = {here:,} of the "
                f"grid (there {there:,})"
            )
            p = next(p for p in ps if ends.get(p) == (basis, here, there, first))
            yield ("memory", first, p, f"{here:,}", f"{there:,}", math.nan, math.nan, cause, sentence)


def _ends(variant: str, rows: pd.DataFrame) -> tuple[str, int, int, int]:
    """Of one p: the basis where it differs, the last n that fits here and there, the first n that differs."""
    differ = rows[rows["verdict"] == "differ"]
    here, there = (_last_fit(rows, side) for side in ("here", "there"))
    there = ORIGINALS_PUBLISHED.get(variant, there)
    return (differ["basis"].iloc[0], here, there, int(differ["n"].iloc[0]))


def _last_fit(rows: pd.DataFrame, side: str) -> int:
    """The last n before the first that does not fit; what is not known (None) decides nothing."""
    fits = dict(zip(rows["n"], rows[side], strict=True))
    end = min((n for n, fit in fits.items() if fit is False), default=math.inf)
    return max((int(n) for n, fit in fits.items() if fit is True and n < end), default=0)


def _jumps(table: pd.DataFrame) -> Iterator[tuple]:
    first, second = JUMP
    for row in jumps(table).itertuples():
        if row.verdict not in ("not found", "only here"):
            continue
        cause = "not known: the work grows smoothly"
        sentence = (
            f"the jump of LSMMD-MA between n = {first:,} and {second:,} at p = {row.p:,} is {row.verdict}: "
            f"{row.here:.2g} x here, {row.there:.2g} x there, the work grows {row.work:.2g} x: {cause}"
        )
        yield ("jump", second, row.p, f"{row.here:.2g}", f"{row.there:.2g}", math.nan, math.nan, cause, sentence)
