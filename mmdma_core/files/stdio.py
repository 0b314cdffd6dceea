"""Standard input, output and error of a command: closed, without a reader, on a full disk, in a poor encoding."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

NO_READER = 141  # as of a command that SIGPIPE ends


def run(command: Callable[[], int | None], cannot_write: int = 1) -> int:
    """Run a command to its exit status, whatever becomes of its streams; say in one line what it cannot write.

    Where the reader of stdout has gone (`| head`) nothing is said. What stderr cannot take is dropped, so that a fit
    goes on when nobody looks at its progress. A warning is one line, without its place in the source.

    Parameters
    ----------
    command : callable
        It returns its exit status, None for 0, and may raise OSError.
    cannot_write : int
        The status where it could not write.

    Returns
    -------
    int
        That of the command, `cannot_write`, or 141 where the reader of stdout has gone.
    """
    with _open_streams(), _warnings_of_one_line():
        try:
            try:
                return command() or 0
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            _drop(sys.stdout)
            return NO_READER
        except OSError as error:
            print(f"error: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
            _drop(sys.stdout)
            return cannot_write
        finally:
            sys.stderr.flush()


class _Dropping:
    """A text stream that drops what can no longer be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        self.flush()
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, work: Callable[..., object], *text: str) -> None:
        try:
            work(*text)
        except BlockingIOError:  # a pipe that is full now takes more later
            pass
        except (OSError, ValueError):
            _drop(self._stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def _open_streams() -> Iterator[None]:
    """Open a closed stream, so that no file takes its place: stdout refuses what is written, stderr drops it."""
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = _opened(os.O_RDONLY, "r")
    if sys.stdout is None:
        sys.stdout = _opened(os.O_RDONLY, "w")
    sys.stderr = _Dropping(_opened(os.O_WRONLY, "w") if sys.stderr is None else sys.stderr)
    if getattr(sys.stdout, "errors", None) == "strict":  # stderr escapes letters by itself
        with suppress(AttributeError):  # where Python calls the command, the stream may be an object of its own
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if None not in before:
            sys.stdin, sys.stdout, sys.stderr = before


def _opened(flags: int, mode: str) -> TextIO:
    return os.fdopen(os.open(os.devnull, flags), mode, closefd=False)  # of the lowest number that is free


def _drop(stream: TextIO) -> None:
    """Lead a stream nowhere, so that Python finds nothing to complain of when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


@contextmanager
def _warnings_of_one_line() -> Iterator[None]:
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
