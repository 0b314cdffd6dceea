"""Which cells are measured now, told in the folder of results, so that any node can read it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine
from benchmarks.measuring.records import write_atomically
from benchmarks.study.study import Study

_LATE_S = 60.0  # beyond its time limit a cell that is still told has died with its node


@contextmanager
def told(study: Study, variant: str, p: int, n: int) -> Iterator[None]:
    """Tell that this process measures a cell, for as long as it does."""
    path = _folder(study) / f"{machine.node()}-{os.getpid()}.json"
    cell = {"variant": variant, "p": p, "n": n, "node": machine.node(), "job": os.environ.get("SLURM_JOB_ID")}
    write_atomically(path, json.dumps(cell))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def cells(study: Study) -> list[dict[str, Any]]:
    """What is measured now: variant, p, n, node, job, and `seconds` since it began."""
    found = []
    for path in sorted(_folder(study).glob("*.json")):
        with suppress(OSError, ValueError):  # it has just ended
            seconds = time.time() - path.stat().st_mtime
            if seconds < study.cell_timeout_s + _LATE_S:
                found.append(json.loads(path.read_text()) | {"seconds": seconds})
    return found


def _folder(study: Study) -> Path:
    return study.root / "running"
