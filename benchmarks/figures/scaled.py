"""Speed-up and memory against the number of devices that share a cell, from records of several such numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.measuring.records import Record, read_all

_COLUMNS = ["kind", "variant", "p", "n", "devices", "speed_up", "memory_of_each"]


def read_scaling(root: Path) -> pd.DataFrame:
    """That of results/MACHINE and of its folders devices2, devices3 and so on."""
    folders = [root, *sorted(folder for folder in root.glob("devices*") if folder.name[7:].isdecimal())]
    return scaled([record for folder in folders for record in read_all(folder)])


def scaled(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each cell on several devices and the cell on one that it is set against.

    kind            'strong': the same n; 'weak': the same n of each device
    n               of the cell on one device
    speed_up        cells an epoch and second, over that of one device: of strong scaling at most about `devices`; of
                    weak scaling that of each device, at most about 1
    memory_of_each  bytes: the largest peak of a rank, on a GPU of PyTorch's allocator
    """
    ok = {(r.variant, r.p, r.n, r.devices): r for r in records if r.status == "ok"}
    rows = []
    for (variant, p, n, devices), record in ok.items():
        for kind, of_one in (("strong", n), ("weak", n // devices)):
            one = ok.get((variant, p, of_one, 1))
            if one is None or (kind == "weak" and n % devices):
                continue
            speed_up = one.median_epoch_s / record.median_epoch_s
            rows.append((kind, variant, p, of_one, devices, speed_up, _of_each(record)))
    table = pd.DataFrame(rows, columns=_COLUMNS)
    several = table.groupby(["kind", "variant", "p", "n"])["devices"].transform("nunique") > 1
    return table[several].sort_values(_COLUMNS[:5], ignore_index=True)


def _of_each(record: Record) -> float | None:
    name = "peak_torch_bytes" if record.device == "cuda" else "peak_host_bytes"
    held = [rank[name] for rank in record.ranks if rank.get(name) is not None]
    return max(held) if held else getattr(record, name)
