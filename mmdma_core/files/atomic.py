"""Files that are written so that a reader sees the whole of it or none, even after a crash."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_PARTIAL = re.compile(r"\.\d+\.part\..+", re.ASCII)
_LONGEST = 255  # bytes of a name


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
    with _part_of(path) as part:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)


def check_writable(sizes: Mapping[Path, int]) -> None:
    """Try whether files can be written, before the work that fills them; nothing is left of the trial.

    Parameters
    ----------
    sizes : mapping
        File -> the bytes that it is known to take at least; there must be room for all together.

    Raises
    ------
    Unwritten
        An OSError that names the first file that cannot be.
    """
    made = []
    for folder in (folder for path in sizes for folder in path.parents):
        if not os.path.lexists(folder) and folder not in made:
            made.append(folder)
    try:
        with ExitStack() as stack:
            for path, size in sizes.items():
                part = stack.enter_context(_part_of(path))
                if path.is_dir():
                    raise Unwritten(errno.EISDIR, "a folder of this name is in its place", str(path))
                with part.open("wb") as file:
                    if size:
                        os.posix_fallocate(file.fileno(), 0, size)
    finally:
        for folder in sorted(made, key=lambda folder: -len(folder.parts)):
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """Give a temporary path beside a file, with its suffix; an OSError of the block is one of the file."""
    start = f".{os.getpid()}.part."  # as _PARTIAL has it
    part = path.with_name(start + os.fsdecode(os.fsencode(path.name)[len(start) - _LONGEST :]))
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        if len(os.fsencode(path.name)) > _LONGEST:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        yield part
    except Unwritten:  # of another file
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()) or "it cannot be written"
        raise Unwritten(error.errno, reason, str(path)) from error
    finally:
        with suppress(OSError):  # its folder may be gone
            part.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Return whether a file is one that `atomically` has begun and a crash has left.

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
