"""What differs between the machines and settings of two sets of records, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.measuring.others import NOISY
from benchmarks.measuring.records import Record
from benchmarks.analysis import agreement

_CLOCK = 0.03  # GPU clocks come in steps of 15 MHz; more than this fraction is another clock
_NOISE = ("gpu.sm_clock_mhz", "gpu.memory_clock_mhz")  # differ from cell to cell: their medians are compared
_MOST = 3  # values of one thing that a sentence names


def one_machine(found: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The records of the machine that measured the most, and a sentence about every other one."""
    counts = Counter(map(machine_name, found))
    (most, _), *others = counts.most_common()
    said = [f"{count} records of {name}, another machine than {most}, which has the most" for name, count in others]
    return [record for record in found if machine_name(record) == most], said


def machine_name(record: Record) -> str:
    """The GPU, or the CPU and its threads, that measured."""
    if record.device == "cuda":
        return str((record.machine.get("gpu") or {}).get("name", "an unnamed GPU"))
    return f"{record.machine.get('cpu', 'an unnamed CPU')} with {record.machine.get('cpu_threads', '?')} threads"


def warnings(a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    """A sentence for each part of the machine, version or setting that differs; a and b are of the same cells."""
    said = []
    facts_a, facts_b = ([_facts(record) for record in side] for side in (a, b))
    for name in sorted({name for facts in facts_a + facts_b for name in facts}):
        values = [[facts.get(name) for facts in side] for side in (facts_a, facts_b)]
        if name in _NOISE:
            said += _clocks(name, *values)
        elif set(values[0]) != set(values[1]):
            said.append(f"{name} differs: {_named(values[0])} in A, {_named(values[1])} in B")
    other = sum(first.key != second.key for first, second in zip(a, b, strict=True))
    if other:
        said.append(f"{other} of {len(a)} cells were measured with other code of the variant, or other packages for it")
    return said + _others(a, b)


def beside(a: Record, b: Record) -> str:
    """What others took of the machine while a cell was measured, in words; '' where that was little or is not known."""
    sides = [(record.others_in_words, side) for record, side in ((a, "A"), (b, "B")) if (record.others or 0.0) > NOISY]
    return f"others took {' and '.join(f'{share} in {side}' for share, side in sides)}" if sides else ""


def _others(a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    """Of how many cells others may be the reason; and of how many nobody knows, where of some it is known."""
    said, known = [], any(record.others is not None for record in (*a, *b))
    for letter, side in (("A", a), ("B", b)):
        noisy = sum((record.others or 0.0) > NOISY for record in side)
        unknown = sum(record.others is None and record.status != "skipped" for record in side)
        if noisy:
            took = f"others took more than {100 * NOISY:.0f} % of the cores or of the GPU"
            said.append(f"{took} beside {noisy} of {len(side)} cells in {letter}")
        if known and unknown:
            said.append(f"what others took of the machine is not known of {unknown} of {len(side)} cells in {letter}")
    return said


def another_question(a: Record, b: Record) -> str | None:
    """What makes the times of two records of one cell no answers to the same question, in words; None: they can be.

    Their keys also differ with the code of the variant. What is not in a record, such as sigma, shows in the losses
    after the same few epochs.
    """
    for name in ("d", "epochs", "seed", "data_mode", "devices"):
        values = getattr(a, name), getattr(b, name)
        if values[0] != values[1] and None not in values:
            return f"{name} is {values[0]} in A, {values[1]} in B"
    losses = [record.losses.get("early") for record in (a, b)]
    if a.key != b.key and all(losses) and not agreement.same_question(a.variant, a.n, *losses):
        return "their losses after the same epochs differ: other settings or data, or code that computes something else"
    return None


def _facts(record: Record) -> dict[str, Any]:
    """Everything of a record that may explain a difference, flat: 'gpu.name', 'versions.torch', 'epochs'."""
    facts = {name: getattr(record, name) for name in ("device", "d", "epochs", "seed", "data_mode")}
    for name, value in record.machine.items():
        facts |= (
            {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    return {name: value for name, value in facts.items() if isinstance(value, str | int | float | None)}


def _named(values: Iterable[Any]) -> str:
    each = sorted({str(value) for value in values})
    return " or ".join(each[:_MOST]) + (f" or {len(each) - _MOST} more" if len(each) > _MOST else "")


def _clocks(name: str, a: list, b: list) -> list[str]:
    known = [[value for value in side if value] for side in (a, b)]
    if not all(known):
        return []
    first, second = map(median, known)
    differ = abs(second / first - 1) > _CLOCK
    return [f"{name} differs: {first:g} MHz in A, {second:g} MHz in B (medians)"] if differ else []
