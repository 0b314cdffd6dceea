"""Writing a file so that a reader sees the whole of it or none, even after a crash."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = re.compile(r"\.\d+\.part\..+", re.ASCII)


class Unwritten(OSError):
    """A file could not be written; filename is the file that was to be."""


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
    Unwritten
        An OSError that names the file: for a full disk, a folder that is not writable.
    """
    part = path.with_name(f".{os.getpid()}.part.{path.name}")  # as _PARTIAL has it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()) or "it cannot be written"
        raise Unwritten(error.errno, reason, str(path)) from error
    finally:
        with suppress(OSError):  # its folder may be gone
            part.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Whether a file is one that `atomically` has begun and a crash has left.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    bool
        By its name.
    """
    return _PARTIAL.fullmatch(path.name) is not None
