"""What a table of text takes for names: its first row, its first column, both or neither.

A field is a name if it is neither a number, in whatever notation, nor missing. Names that are numbers are known by what
stands around them: the corner, quotes, a count. What may be read in two ways is refused with what to write.

Tables of text: numbers between separators, with an optional row and an optional column of names.

What is taken for names is said in headings.py. NumPy parses the numbers, a block of lines at a time into one matrix.
"""

from __future__ import annotations

import csv
import math
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from mmdma_core.files.formats import Table, opened, place

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


_SAMPLE = 10  # rows from which the layout is read
_BLOCK = 2**22  # entries that are parsed at once
_COMMENT = re.compile("#|sep=.$", re.IGNORECASE)  # Excel takes the separator from a line like sep=;

Line = tuple[int, str]  # counted from 1, and the text without its end


class _Form(NamedTuple):
    """How the lines are to be read.

    separator  a character, or " " for white space
    begin      the line of the first numbers
    width      fields a line, those of the names included
    named      whether the first is a name
    columns    names or None
    trailing   whether every line ends with a separator
    """

    separator: str
    begin: int
    width: int
    named: bool
    columns: tuple[str, ...] | None
    trailing: bool


def read_table(path: Path) -> Table:
    """A table of numbers, float64, with the names that it has.

    Separator: of tab, semicolon and comma the first that divides the first two lines alike, else white space. Lines
    above the table that begin with # are left out, but the last of them may hold the names, as numpy.savetxt writes
    them. The text is UTF-8, or UTF-16 with its mark. Raises ValueError of one line that names the place.
    """
    with opened(path, "a table of text") as file:
        form = _form(path, file)
        n = sum(number >= form.begin for number, _ in _lines(file))
        if n == 0:
            raise ValueError(f"{path} cannot be read as a table of text: there are no numbers below the names")
        matrix, names, done = np.empty((n, form.width - form.named)), [], 0
        lines = (line for line in _lines(file) if line[0] >= form.begin)
        while block := list(islice(lines, max(1, _BLOCK // form.width))):
            rows, values = _parsed(path, block, form, done)
            matrix[done : done + len(block)] = values
            names += rows
            done += len(block)
    return Table(matrix, tuple(names) if form.named else None, form.columns)


def _lines(file: TextIO) -> Iterator[Line]:
    """The lines from the beginning on that are not empty."""
    file.seek(0)
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _split(line: str, separator: str) -> list[str]:
    row = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    return [field.strip() for field in row if separator != " " or field.strip()]


def _form(path: Path, file: TextIO) -> _Form:
    """The form of the table, from its first lines."""
    comments, lines = deque(maxlen=_SAMPLE), []
    for number, line in _lines(file):
        (comments if _COMMENT.match(line) and not lines else lines).append((number, line))
        if len(lines) == _SAMPLE:
            break
    if not lines:
        lines, comments = list(comments), []
    if not lines:
        raise ValueError(f"{path} is empty")
    for line in lines:
        _check_quotes(path, line)
    separator = _separator([line for _, line in lines[:2]])
    rows = [_split(line, separator) for _, line in lines]
    while comments and _continues(_split(comments[-1][1], separator), rows[0]):  # cells may be called #1, #2, ...
        lines.insert(0, comments.pop())
        rows.insert(0, _split(lines[0][1], separator))
    above = _split(comments[-1][1].lstrip("# "), separator) if comments else []
    is_above = len(above) > 1 and len(rows[0]) - len(above) in (0, 1) and all(map(is_name, above))
    is_above &= not all(map(is_name, rows[0][1:]))
    if is_above:
        rows.insert(0, above)
        lines.insert(0, comments[-1])
    trailing = separator != " " and all(len(row) > 1 and row[-1] == "" for row in rows[is_above:])
    if trailing:
        rows = [row[:-1] if k >= is_above else row for k, row in enumerate(rows)]
    header, named = layout(path, rows, [line for _, line in lines], is_above)
    width = len(rows[1] if header and len(rows) > 1 else rows[0])
    columns = tuple(rows[0][len(rows[0]) - (width - named) :]) if header else None
    return _Form(separator, lines[0][0] + header, width, named, columns, trailing)


def _separator(lines: list[str]) -> str:
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines]
    marks = [mark for mark in "\t;," if mark in bare[0]]
    for mark in marks:
        counts = [len(_split(line, mark)) for line in lines]
        if counts[-1] - counts[0] in (0, 1):
            return mark
    return marks[0] if marks else " "


def _continues(row: list[str], following: list[str]) -> bool:
    return len(row) == len(following) > 1 and all(map(is_number, row[1:]))


def _parsed(path: Path, block: list[Line], form: _Form, done: int) -> tuple[list[str], np.ndarray]:
    """The names and the numbers of some lines, the first of which is row `done` of the table."""
    names = []

    def kept(name: str) -> float:
        names.append(name.strip())
        return 0.0

    lines = [_without_end(path, line, form) if form.trailing else line[1] for line in block]
    try:
        values = np.loadtxt(
            lines,
            delimiter=None if form.separator == " " else form.separator,
            quotechar='"',
            comments=None,
            ndmin=2,
            encoding=None,
            converters={0: kept} if form.named else None,
        )
    except ValueError:
        return _parsed_slowly(path, block, form, done)
    if values.shape != (len(block), form.width) or np.isnan(values).any() or "" in names:
        return _parsed_slowly(path, block, form, done)
    return names, values[:, form.named :]


def _without_end(path: Path, line: Line, form: _Form) -> str:
    text = line[1].rstrip(" ")
    if not text.endswith(form.separator):
        raise ValueError(f"{path}: line {line[0]} does not end with {form.separator!r}, as the first lines do")
    return text[:-1]


def _parsed_slowly(path: Path, block: list[Line], form: _Form, done: int) -> tuple[list[str], np.ndarray]:
    """The same, field by field. Raises ValueError that names the first place where something else stands."""
    names, values = [], []
    for row, (number, line) in enumerate(block, done):
        _check_quotes(path, (number, line))
        fields = _split(_without_end(path, (number, line), form) if form.trailing else line, form.separator)
        if len(fields) != form.width:
            hint = ": comments may stand above the table alone" if line.startswith("#") else ""
            wrong = f"line {number} has fields: {len(fields)}, those before it: {form.width}"
            raise ValueError(f"{path} cannot be read as a table of text: {wrong}{hint}")
        if form.named and not fields[0]:
            raise ValueError(f"{path}: in line {number} the name is empty: fill it, or leave the column of names out")
        names += fields[:1] if form.named else []
        numbers = fields[form.named :]
        for column, field in enumerate(numbers):
            if not is_number(field):
                where = place({row: fields[0]} if form.named else None, row, form.columns, column)
                first = row == 0 and form.columns is None
                raise ValueError(f"{path} must hold numbers, {where} holds {field!r}{_hint(field, first)}")
        values.append([float(field) for field in numbers])
    return names, np.array(values).reshape(len(block), -1)


def _check_quotes(path: Path, line: Line) -> None:
    if line[1].count('"') % 2:
        raise ValueError(f"{path}: line {line[0]} ends within quotation marks: close them on that line")


def _hint(field: str, first: bool) -> str:
    """What to do about a field that is no number; first: it stands in a first row that is not one of names."""
    if is_notation(field):
        return ": write numbers like -1234.5, with a point for decimals"
    if field.lower() in MISSING or not any(char.isalnum() for char in field) or field.startswith("#"):
        return ": fill it, or leave out its row or its column"
    if first:
        return ": if this row holds names, leave its first field empty"
    return ": names stand in the first row and the first column alone"


READERS = {f"{kind}{packed}": read_table for packed in ("", ".gz") for kind in (".csv", ".tsv", ".txt")}
