"""The files of a fit, written one after the other: one that cannot be written costs none of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmdma_core.files.atomic import Unwritten

_LOG = logging.getLogger("mmdma_core")


class Outputs:
    """What has been written into a folder, and what could not be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved: list[str] = []
        self._lost: list[str] = []
        self._first: Unwritten | None = None

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Have a file written; where that fails an older one of its name, which it was to replace, goes too."""
        path = self._folder / name
        try:
            write(path)
        except Unwritten as error:
            self._first = self._first or error
            self._lost.append(str(path))
            with suppress(OSError):
                path.unlink(missing_ok=True)
        else:
            self._saved.append(name)

    def draw(self, name: str, draw: Callable[[Path], None]) -> None:
        """Have a picture written; one that cannot be drawn is told of in a line, and costs no more than that."""
        try:
            self.write(name, draw)
        except Exception as error:  # whatever Matplotlib makes of people's labels
            (self._folder / name).unlink(missing_ok=True)
            words = " ".join(str(error).split())
            _LOG.warning("%s is left out, it cannot be drawn: %s: %s", name, type(error).__name__, words)

    def check(self) -> None:
        """Raises Unwritten with all files that could not be written, the first reason, and what has been saved."""
        if self._first is None:
            return
        saved = f"saved: {', '.join(self._saved)}" if self._saved else "nothing could be saved"
        if "model.npz" in self._saved:
            saved += "; model.npz has both embeddings"
        raise Unwritten(self._first.errno, f"{self._first.strerror}; {saved}", ", ".join(self._lost)) from self._first
