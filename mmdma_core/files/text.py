"""Text in a file, packed or not: UTF-8, or UTF-16 with its mark."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO


class _Text(TextIOWrapper):
    """Text without NUL, at which pandas would end a field and drop what follows."""

    def read(self, size: int | None = -1) -> str:
        return _without_nul(super().read(size))

    def __next__(self) -> str:
        return _without_nul(super().__next__())


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise UnicodeError("it holds NUL, so it is no text; UTF-16 needs its mark")
    return text


@contextmanager
def opened(path: Path, kind: str) -> Iterator[TextIO]:
    """The text of a file of some kind, unpacked if its name ends in .gz. Raises ValueError for what is no text."""
    refused = f"{path} cannot be read as {kind}"
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            encoding = "utf-16" if file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            with _Text(file, encoding, newline="") as text:
                yield text
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x}" if error.start < len(error.object) else "its end"
        raise ValueError(f"{refused}: {byte} is not {error.encoding.upper()}, save it as UTF-8") from error
    except (UnicodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{refused}: {error}") from error
