"""Tables of text: numbers between separators, with an optional row and an optional column of names.

What is taken for names is said in headings.py. NumPy parses the numbers, a block of lines at a time into one matrix.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from mmdma_core.files.formats import Table, place
from mmdma_core.files.headings import MISSING, is_name, is_notation, is_number, layout
from mmdma_core.files.text import opened

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
