"""Tables of text: numbers between separators, with an optional row and an optional column of names.

NumPy parses the numbers, a block of lines at a time into one matrix; pandas.read_csv loses digits of small numbers, or
takes twice the time with float_precision="round_trip". A field is a name if it is neither a number, in whatever
notation, nor missing. Names that are numbers are known by what stands around them: the corner, quotes, a count. Where
both readings are possible the table is refused, unless `header` and `index` say which is meant.
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

from mmdma_core.files.formats import View, opened, place

MISSING = ("", "na", "n/a", "nan", "<na>", "none", "null")  # a field like this is no name, and no label

_SAMPLE = 10  # rows from which the layout is read
_BLOCK = 2**22  # entries that are parsed at once
_COUNTED_FROM = 5  # so many fields that count 0, 1, 2, ... are no measurement
_COMMENT = re.compile("#|sep=.$", re.IGNORECASE)  # Excel takes the separator from a line like sep=;
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


Line = tuple[int, str]  # counted from 1, and the text without its end


class _Form(NamedTuple):
    """How the lines are to be read.

    separator  a character, or " " for white space
    begin      the line of the first numbers
    width      fields of a line, those of the names included
    index      whether the first is a name
    columns    names or None
    trailing   whether every line ends with a separator
    """

    separator: str
    begin: int
    width: int
    index: bool
    columns: tuple[str, ...] | None
    trailing: bool


def read_table(path: Path, header: bool | None = None, index: bool | None = None) -> View:
    """Read a table of numbers, float64, with the names that it has.

    The separator is the first of tab, semicolon and comma that divides the first two lines alike, else white space.
    Lines above the table that begin with # are left out, but the last of them may hold the names, as numpy.savetxt
    writes them. The text is UTF-8, or UTF-16 with its mark.

    Parameters
    ----------
    path : Path
        The file.
    header : bool, optional
        Whether the first row holds names; None: as it looks.
    index : bool, optional
        Whether the first column does.

    Returns
    -------
    View
        The matrix as it is stored, with its names.

    Raises
    ------
    ValueError
        Of one line that names the place, for a field that is no number, and for names that may be numbers.
    """
    with opened(path, "a table of text") as file:
        form = _form(path, file, header, index)
        n = sum(1 for _ in _lines(file, form.begin))
        if n == 0:
            raise ValueError(f"{path} cannot be read as a table of text: there are no numbers below the names")
        matrix, names, done = np.empty((n, form.width - form.index)), [], 0
        lines = _lines(file, form.begin)
        while block := list(islice(lines, max(1, _BLOCK // form.width))):
            rows, matrix[done : done + len(block)] = _parse(path, block, form, done)
            names += rows
            done += len(block)
    return View(matrix, tuple(names) if form.index else None, form.columns)


READERS = {f"{kind}{packed}": read_table for packed in ("", ".gz") for kind in (".csv", ".tsv", ".txt")}


def _form(path: Path, file: TextIO, header: bool | None, index: bool | None) -> _Form:
    """Find the form of the table, from its first lines."""
    comments, lines = deque(maxlen=_SAMPLE), []
    for line in _lines(file):
        (comments if _COMMENT.match(line[1]) and not lines else lines).append(line)
        if len(lines) == _SAMPLE:
            break
    if not lines:
        lines, comments = list(comments), deque()
    if not lines:
        raise ValueError(f"{path} is empty")
    for line in lines:
        _check_quotes(path, line)
    separator = _separator([line for _, line in lines[:2]])
    while comments and _continues(split(comments[-1][1], separator), split(lines[0][1], separator)):
        lines.insert(0, comments.pop())  # cells may be called #1, #2, ...
    rows = [split(line, separator) for _, line in lines]
    trailing = separator != " " and all(len(row) > 1 and row[-1] == "" for row in rows)
    if trailing:
        rows = [row[:-1] for row in rows]
    above = split(comments[-1][1].lstrip("# "), separator) if comments else []
    named_above = len(above) > 1 and len(rows[0]) - len(above) in (0, 1) and all(map(is_name, above))
    if named_above and header is not False and not all(map(is_name, rows[0][1:])):
        lines.insert(0, comments[-1])
        rows.insert(0, above)
        header = True
    header, index = _layout(path, rows, [line for _, line in lines], header, index)
    width = len(rows[1] if header and len(rows) > 1 else rows[0])
    columns = tuple(rows[0][len(rows[0]) - (width - index) :]) if header else None
    return _Form(separator, lines[0][0] + header, width, index, columns, trailing)


def _separator(lines: list[str]) -> str:
    bare = re.sub(r'"[^"]*"', "", lines[0])
    marks = [mark for mark in "\t;," if mark in bare]
    for mark in marks:
        fields = [len(split(line, mark)) for line in lines]
        if fields[-1] - fields[0] in (0, 1):
            return mark
    return marks[0] if marks else " "


def split(line: str, separator: str) -> list[str]:
    """Return the fields of a line, without blanks around them."""
    row = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    return [field.strip() for field in row if separator != " " or field.strip()]


def _continues(row: list[str], following: list[str]) -> bool:
    return len(row) == len(following) > 1 and all(map(is_number, row[1:]))


def _lines(file: TextIO, begin: int = 0) -> Iterator[Line]:
    """Give the lines from one on that are not empty."""
    file.seek(0)
    for number, line in enumerate(file, 1):
        if number >= begin and line.strip():
            yield number, line.rstrip("\r\n")


def _check_quotes(path: Path, line: Line) -> None:
    if line[1].count('"') % 2:
        raise ValueError(f"{path}: line {line[0]} ends within quotation marks: close them on that line")


def _parse(path: Path, block: list[Line], form: _Form, done: int) -> tuple[list[str], np.ndarray]:
    """Parse the names and the numbers of some lines, the first of which is row `done` of the table."""
    names = []

    def keep(name: str) -> float:
        names.append(name.strip())
        return 0.0

    try:
        values = np.loadtxt(
            [line for _, line in block],
            delimiter=None if form.separator == " " else form.separator,
            quotechar='"',
            comments=None,
            ndmin=2,
            encoding=None,
            converters=({0: keep} if form.index else {}) | ({form.width: _nothing} if form.trailing else {}),
        )
    except ValueError:
        return _parse_fields(path, block, form, done)
    if values.shape != (len(block), form.width + form.trailing) or np.isnan(values).any() or "" in names:
        return _parse_fields(path, block, form, done)
    return names, values[:, int(form.index) : form.width]


def _nothing(field: str) -> float:
    if field.strip():
        raise ValueError("there is something behind the last separator")
    return 0.0


def _parse_fields(path: Path, block: list[Line], form: _Form, done: int) -> tuple[list[str], np.ndarray]:
    """Do the same field by field. Raises ValueError that names the first place where something else stands."""
    names, values = [], []
    for row, (number, line) in enumerate(block, done):
        _check_quotes(path, (number, line))
        fields = split(line, form.separator)
        if form.trailing and fields[-1] == "":
            fields.pop()
        if len(fields) != form.width:
            hint = ": comments may stand above the table alone" if line.startswith("#") else ""
            wrong = f"line {number} has fields: {len(fields)}, those before it: {form.width}"
            raise ValueError(f"{path} cannot be read as a table of text: {wrong}{hint}")
        if form.index and not fields[0]:
            raise ValueError(f"{path}: in line {number} the name is empty: fill it, or leave the column of names out")
        names += fields[: form.index]
        numbers = fields[form.index :]
        for column, field in enumerate(numbers):
            if not is_number(field):
                where = place({row: fields[0]} if form.index else None, row, form.columns, column)
                first = row == 0 and form.columns is None
                raise ValueError(f"{path} must hold numbers, {where} holds {field!r}{_hint(field, first)}")
        values.append([float(field) for field in numbers])
    return names, np.array(values).reshape(len(block), -1)


def _hint(field: str, first: bool) -> str:
    """Say what to do about a field that is no number; first: it stands in a first row that is not one of names."""
    if is_notation(field):
        return ": write numbers like -1234.5, with a point for decimals"
    if field.lower() in MISSING or not any(char.isalnum() for char in field) or field.startswith("#"):
        return ": fill it, or leave out its row or its column"
    if first:
        return ": if this row holds names, give --header"
    return ": names stand in the first row and the first column alone"


def is_number(field: str) -> bool:
    """Return whether it is a number in decimals, or infinite."""
    try:
        return not math.isnan(float(field)) and field.isascii() and "_" not in field
    except ValueError:
        return False


def is_name(field: str) -> bool:
    """Return whether it is neither a number, in whatever notation, nor missing."""
    return not is_number(field) and not is_notation(field) and field.lower() not in MISSING


def is_notation(field: str) -> bool:
    """Return whether it is a number in a notation that is not read."""
    return not is_number(field) and bool(_NOTATION.fullmatch(field))


def is_corner(field: str) -> bool:
    """Return whether it is a usual heading of a column of names."""
    return bool(_CORNER.fullmatch(field))


def counts(fields: list[str]) -> bool:
    """Return whether they go 0, 1, 2, ... or 1, 2, 3, ..."""
    return any(fields == [str(i) for i in range(begin, begin + len(fields))] for begin in (0, 1))


def _layout(
    path: Path, rows: list[list[str]], lines: list[str], header: bool | None, index: bool | None
) -> tuple[bool, bool]:
    """Find whether the first row holds names, and whether the first column does; None: by how they look."""
    first, second = rows[0], rows[1] if len(rows) > 1 else []
    shorter = len(second) == len(first) + 1  # R leaves the corner out
    if header is None:
        header = _is_header(path, rows, lines, shorter)
    if second and len(second) != len(first) + (header and shorter):
        hint = ": if the first holds names, give --header" if shorter else ""
        raise ValueError(f"{path}: the first row has {len(first)} fields and the second {len(second)}{hint}")
    if index is None:
        index = shorter or _is_index(path, rows, lines, header)
    if header and shorter and not index:
        raise ValueError(f"{path}: the first row has {len(first)} fields and the second {len(second)}: give --index")
    return header, index


def _is_header(path: Path, rows: list[list[str]], lines: list[str], shorter: bool) -> bool:
    first, column = rows[0], [row[0] for row in rows[1:]]
    corner, others = first[0], first[1:]
    if (corner == "" or is_name(corner)) and all(map(is_name, others)):
        return True
    if shorter:
        return all(map(is_number, first)) and (is_name(column[0]) or _quotes_name(lines[1]))
    if not others or not column:
        return False
    quoted = _is_quoted(lines[0]) and not _is_quoted(lines[1])
    distinct = _are_distinct(others)
    if corner == "" and (quoted or counts(others) or is_name(column[0]) or (counts(column) and len(column) > 1)):
        return True
    if is_name(corner) and all(map(is_number, others)):
        if quoted:
            return True
        if any(_shape(corner) == _shape(name) for name in column):  # both are cells
            return False
        if distinct and is_corner(corner):
            return True
        doubtful = distinct or is_corner(corner) or _are_sorted(others)
    else:
        counted = len(first) >= _COUNTED_FROM and counts(first) and not counts([*first, *rows[1]])
        doubtful = (corner == "" and distinct) or counted
    return doubtful and _refuse(path, "row", first, "header")


def _is_index(path: Path, rows: list[list[str]], lines: list[str], header: bool) -> bool:
    corner, column = rows[0][0] if header else None, [row[0] for row in rows[header:]]
    if corner == "":
        return True
    if not column:
        return False
    several = len(rows[header]) > 1
    if is_name(column[0]) or (several and _quotes_name(lines[header])):
        return True
    usual = header and is_corner(corner)
    if usual and _are_distinct(column):
        return True
    doubtful = usual or (several and len(column) >= _COUNTED_FROM and counts(column))
    return doubtful and _refuse(path, "column", [corner, *column] if header else column, "index")


def _refuse(path: Path, what: str, fields: list[str], option: str) -> bool:
    listed = ", ".join(map(repr, fields[:3])) + (", ..." if len(fields) > 3 else "")
    raise ValueError(
        f"{path}: the first {what}, {listed}, may be names or numbers: for names give --{option}, else --no-{option}"
    )


def _are_distinct(fields: list[str]) -> bool:
    """Return whether they are whole numbers, no two the same."""
    return all(field.isdecimal() for field in fields) and len(set(fields)) == len(fields)


def _are_sorted(fields: list[str]) -> bool:
    """Return whether they rise, as measurements hardly do."""
    values = [float(field) for field in fields]
    return len(values) > 2 and values == sorted(values) and values[0] < values[-1]


def _shape(name: str) -> str:
    """Return what names of one kind have in common."""
    return re.sub(r"\d+", "0", _BARCODE.sub("A", name))


def _is_quoted(line: str) -> bool:
    """Return whether nothing but separators stands outside quotes."""
    return not re.search(r"[^\t;, ]", _QUOTED.sub("", line))


def _quotes_name(line: str) -> bool:
    """Return whether the first field alone is in quotes."""
    first = _QUOTED.match(line)
    return bool(first) and '"' not in line[first.end() :]
