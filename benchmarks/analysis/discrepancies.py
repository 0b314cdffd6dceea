"""What does not reproduce, each with its likely cause in words that follow from the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

import mmdma_core
from benchmarks.analysis import against_paper, frontier, published
from benchmarks.analysis.frontier import PAPER_GIB
from benchmarks.analysis.published import PUBLISHED
from benchmarks.plan import ranges

COLUMNS = ("kind", "n", "p", "here", "there", "here_ratio", "there_ratio", "cause", "sentence")


def not_reproduced(table: pd.DataFrame) -> pd.DataFrame:
    """All that differs from the published study in the table of one machine, one row each, with COLUMNS.

    kind         'fastest' (one row a cell), 'memory' (one row a variant and range of p), 'jump' (one row a p)
    here, there  the fastest variant; the last n that fits, as text; the growth of the runtime, as text
    *_ratio      of a fastest variant: how many times longer the other side's fastest one takes
    cause        in a few words, the same for all rows of that cause
    """
    rows = [*_fastest(table), *_memory(table), *_jumps(table)]
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


def _fastest(table: pd.DataFrame) -> Iterator[tuple]:
    found = against_paper.winners(table)
    rows, _ = against_paper.comparable(table)
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
    cells = against_paper.frontier(table)
    _, ps = published.grid()
    read = pd.read_csv(PUBLISHED)
    for variant, rows in cells.groupby("variant", sort=False):
        ends = {p: _ends(variant, group) for p, group in rows.groupby("p") if (group["verdict"] == "differ").any()}
        for where, (basis, here, there, first) in ranges(ends, ps):
            word = "further" if here > there else "less far"
            verb = "is predicted to go" if basis == "predicted" else "goes"
            cause = " ".join(sentence.strip() for sentence in frontier.why(variant, word, read)) or "not known"
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
    there = frontier.ORIGINALS_PUBLISHED.get(variant, there)
    return (differ["basis"].iloc[0], here, there, int(differ["n"].iloc[0]))


def _last_fit(rows: pd.DataFrame, side: str) -> int:
    """The last n before the first that does not fit; what is not known (None) decides nothing."""
    fits = dict(zip(rows["n"], rows[side], strict=True))
    end = min((n for n, fit in fits.items() if fit is False), default=math.inf)
    return max((int(n) for n, fit in fits.items() if fit is True and n < end), default=0)


def _jumps(table: pd.DataFrame) -> Iterator[tuple]:
    first, second = against_paper.JUMP
    for row in against_paper.jumps(table).itertuples():
        if row.verdict not in ("not found", "only here"):
            continue
        cause = "not known: the work grows smoothly"
        sentence = (
            f"the jump of LSMMD-MA between n = {first:,} and {second:,} at p = {row.p:,} is {row.verdict}: "
            f"{row.here:.2g} x here, {row.there:.2g} x there, the work grows {row.work:.2g} x: {cause}"
        )
        yield ("jump", second, row.p, f"{row.here:.2g}", f"{row.there:.2g}", math.nan, math.nan, cause, sentence)
