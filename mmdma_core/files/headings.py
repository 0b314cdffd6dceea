"""What a table of text takes for names: its first row, its first column, both or neither.

A field is a name if it is neither a number, in whatever notation, nor missing. Names that are numbers are known by what
stands around them: the corner, quotes, a count. What may be read in two ways is refused with what to write.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

MISSING = ("", "na", "n/a", "nan", "<na>", "none", "null")  # a field like this is no name, and no label

# What stands above a column of names, whole.
_CORNER = re.compile(
    r"unnamed: 0|(?=.)(cell|gene|feature|sample|protein|peak|spot|marker|antibody|transcript|ensembl|entrez|ncbi|hgnc"
    r"|obs|observation|var|variable|row)?s?[ ._-]*(id|name|index|symbol|barcode|label)?s?",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'(?:"[^"]*")+')
# A number in another notation than is read: 1,5; 1.234,5; 1 234; 5 %; a typographic minus.
_NOTATION = re.compile(
    r"[-+\u2212]?[$€£]?(?=[.,]?\d)(\d{1,3}([., '\u00a0]\d{3})+|\d*)([.,]\d+)?(e[-+\u2212]?\d+)?\s*%?", re.IGNORECASE
)
_BARCODE = re.compile("[ACGTN]{6,}")
_COUNTED_FROM = 5  # so many fields that count 0, 1, 2, ... are no measurement


class Layout(NamedTuple):
    """Whether the first row holds names, and whether the first column does."""

    header: bool
    named: bool


def is_number(field: str) -> bool:
    """Whether it is a number in decimals, or infinite."""
    try:
        return not math.isnan(float(field)) and field.isascii() and "_" not in field
    except ValueError:
        return False


def is_name(field: str) -> bool:
    """Whether it is neither a number, in whatever notation, nor missing."""
    return not is_number(field) and not is_notation(field) and field.lower() not in MISSING


def is_notation(field: str) -> bool:
    """Whether it is a number in a notation that is not read."""
    return not is_number(field) and bool(_NOTATION.fullmatch(field))


def counts(fields: list[str]) -> bool:
    """Whether they go 0, 1, 2, ... or 1, 2, 3, ..."""
    return any(fields == [str(i) for i in range(begin, begin + len(fields))] for begin in (0, 1))


def is_corner(field: str) -> bool:
    """Whether it is a usual heading of a column of names."""
    return bool(_CORNER.fullmatch(field))


def layout(path: Path, rows: list[list[str]], lines: list[str], above: bool = False) -> Layout:
    """What the first rows of a table say.

    Parameters
    ----------
    path : Path
        The file, for errors.
    rows : list of list of str
        The fields of its first rows.
    lines : list of str
        The same as they are written, with quotes.
    above : bool
        It is known that the first row holds names.

    Returns
    -------
    Layout
        Where the names are.

    Raises
    ------
    ValueError
        For a first row or column that may be names or numbers, and for two first rows that do not fit.
    """
    first, below = rows[0], rows[1:]
    second = below[0] if below else []
    corner, others = first[0], first[1:]
    shorter = len(second) == len(first) + 1  # R leaves the corner out
    if above or _is_worded(first):
        header = True
    elif shorter:
        header = all(map(is_number, first)) and (is_name(second[0]) or _quotes_name(lines[1]))
    else:
        header = _is_numbered(path, first, below, lines)
    if below and len(second) != len(first) + (header and shorter):
        raise ValueError(f"{path}: the first row has {len(first)} fields and the second {len(second)}")
    if header:
        return Layout(True, corner == "" or shorter or _has_names_below(path, corner, below, lines))
    _check_no_count(path, rows)
    return Layout(False, is_name(corner) or (_quotes_name(lines[0]) and bool(others)))


def _is_worded(first: list[str]) -> bool:
    return (first[0] == "" or is_name(first[0])) and all(map(is_name, first[1:]))


def _is_numbered(path: Path, first: list[str], below: list[list[str]], lines: list[str]) -> bool:
    """Whether a first row that has numbers is one of names all the same."""
    corner, others = first[0], first[1:]
    column = [row[0] for row in below if row]
    if not others or not below:
        return False
    quoted = _is_quoted(lines[0]) and not _is_quoted(lines[1])
    distinct = _are_distinct(others)
    if corner == "":
        counted = others == [str(i) for i in range(len(others))]
        if quoted or counted or is_name(column[0]) or (counts(column) and len(column) > 1):
            return True
        if not distinct:
            return False
        raise _ambiguous(path, "row", first, "write 'id' into its empty field", "fill that")
    if not is_name(corner) or not all(map(is_number, others)):
        return False
    if quoted:
        return True
    if any(_shape(corner) == _shape(name) for name in column):
        return False
    if not (distinct or is_corner(corner) or _are_sorted(others)):
        return False
    if distinct and is_corner(corner):
        return True
    names = f"leave {corner!r} empty" if is_name(column[0]) else f"write 'id' for {corner!r}"
    raise _ambiguous(path, "row", first, names, "put a row of names above it")


def _has_names_below(path: Path, corner: str, below: list[list[str]], lines: list[str]) -> bool:
    """Whether the first column is one of names, under a heading that is a name."""
    column = [row[0] for row in below if row]
    if not column or is_name(column[0]) or _quotes_name(lines[1]):
        return bool(column)
    if is_corner(corner) and _are_distinct(column):
        return True
    if is_corner(corner) or (len(column) >= _COUNTED_FROM and counts(column) and len(below[0]) > 1):
        otherwise = "write another heading or leave the column out"
        raise _ambiguous(path, "column", [corner, *column], f"leave {corner!r} empty", otherwise)
    return False


def _check_no_count(path: Path, rows: list[list[str]]) -> None:
    """Raises ValueError where numbers alone have a first row or column that counts the others."""
    first, column = rows[0], [row[0] for row in rows if row]
    going_on = len(rows) < 2 or counts([*first, *rows[1]])
    for what, fields, counted in (
        ("row", first, not going_on and len(first) >= _COUNTED_FROM and counts(first)),
        ("column", column, len(first) > 1 and len(column) >= _COUNTED_FROM and counts(column)),
    ):
        if counted:
            other = "columns" if what == "row" else "rows"
            raise ValueError(f"{path}: the first {what}, {_listed(fields)}, only counts the {other}: leave it out")


def _ambiguous(path: Path, what: str, fields: list[str], names: str, otherwise: str) -> ValueError:
    return ValueError(
        f"{path}: the first {what}, {_listed(fields)}, may be names or numbers: for names {names}, else {otherwise}"
    )


def _are_distinct(fields: list[str]) -> bool:
    """Whether they are whole numbers, no two the same."""
    return all(field.isdecimal() for field in fields) and len(set(fields)) == len(fields)


def _are_sorted(fields: list[str]) -> bool:
    """Whether they rise, as measurements hardly do."""
    values = [float(field) for field in fields]
    return len(values) > 2 and values == sorted(values) and values[0] < values[-1]


def _shape(name: str) -> str:
    """What names of one kind have in common."""
    return re.sub(r"\d+", "0", _BARCODE.sub("A", name))


def _is_quoted(line: str) -> bool:
    """Whether nothing but separators stands outside quotes."""
    return not re.search(r"[^\t;, ]", _QUOTED.sub("", line))


def _quotes_name(line: str) -> bool:
    """Whether the first field alone is in quotes."""
    first = _QUOTED.match(line)
    return bool(first) and '"' not in line[first.end() :]


def _listed(fields: list[str]) -> str:
    return ", ".join(map(repr, fields[:3])) + (", ..." if len(fields) > 3 else "")
