"""Which cells are measured now, told in the folder of results, so that any node can read it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine, records
from benchmarks.study import Study
from mmdma_core.files.atomic import is_partial

_LATE_S = 60.0  # beyond its time limit a cell that is still told has died with its node


@contextmanager
def told(study: Study, variant: str, p: int, n: int) -> Iterator[None]:
    """Tell that this process measures a cell, for as long as it does."""
    path = _folder(study) / f"{machine.node()}-{os.getpid()}.json"
    cell = {"variant": variant, "p": p, "n": n, "node": machine.node(), "job": os.environ.get("SLURM_JOB_ID")}
    records.write_atomically(path, json.dumps(cell))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def cells(study: Study) -> tuple[list[dict[str, Any]], list[Path]]:
    """What is measured now: variant, p, n, node, job, and `seconds` since it began; and files that do not tell that.

    These are of nodes that have died, or the harness has not written them.
    """
    found, others = [], []
    for path in sorted(_folder(study).glob("*")):
        if is_partial(path):
            continue
        try:
            seconds = time.time() - path.stat().st_mtime
            cell = json.loads(path.read_text(encoding="utf-8"))
            told = re.fullmatch(re.escape(cell["node"]) + r"-\d+\.json", path.name) and path.is_file()
            what = {name: cell[name] for name in ("variant", "p", "n", "node", "job")} | {"seconds": seconds}
        except FileNotFoundError:  # it has just ended
            continue
        except (OSError, ValueError, TypeError, KeyError):
            told = False
        if told and seconds < study.cell_timeout_s + _LATE_S:
            found.append(what)
        else:
            others.append(path)
    return found, others


def _folder(study: Study) -> Path:
    return study.root / "running"
