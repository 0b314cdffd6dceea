"""Writing a file so that a reader sees the whole of it or none, even after a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Write a file in one step: a reader sees the whole of it or none.

    Parameters
    ----------
    path : Path
        The file; its folder is made.

    Yields
    ------
    Path
        A temporary path beside it, with its suffix, that takes its place if the block ends without an error.

    Raises
    ------
    OSError
        For a full disk, a folder that is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
