"""The record of one measurement, and all records in a folder.

A record is one JSON file, written atomically: results/MACHINE/records/VARIANT/pP/nN.json. What else lies there, such as
copies that a person, an editor or a service that syncs folders has left, is no record: it is named, and not counted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mmdma_core.advice import Measured
from mmdma_core.files.atomic import atomically, is_partial

SCHEMA = 1
UNREADABLE = ".unreadable"  # the suffix of a record that is set aside
_NAME = re.compile(r"[^/]+/p[1-9]\d*/n[1-9]\d*\.json", re.ASCII)  # of a record, below records/

Status = Literal["ok", "oom", "timeout", "error", "missing_dependency", "unsupported", "skipped"]
STATUSES: tuple[str, ...] = Status.__args__


@dataclass
class Record:
    """What one measurement gave. Times in seconds, memory in bytes; None where it did not get that far.

    device            'cpu' or 'cuda'
    key               digest of what was asked for: a record is used again only for the same question
    ran_out_of        of an oom: the bytes that it could take of what ran out, {'host': bytes} or {'device': bytes}
    missing           of an error or a missing dependency: the modules and compilers that were not there
    limits            time and memory it was given, see benchmarks.measuring.measurement.Limits, and sweep_budget_s
    status, detail    how it ended, and why in words (the last lines of stderr for an error)
    implied_by        the smaller n for which it was skipped, if it was for that
    implied_end       how the measurement at that n ended: 'oom', 'timeout', ...; None: a budget did it
    deviations        of a check that is wrong: how far each result is from the reference, a sentence each
    data_mode         'exact': the published random numbers; 'fast': the counter-based ones; of an experiment, the
                      name of its data ('real', 'stand-in')
    float32_bits      of a float32 number that products of matrices kept, found by products: 24; with TF32 11, in bf16 8
    data_s            making the two views on the device
    density           fraction of the first view's entries that are stored, if it is sparse
    prepare_s         what the variant forms once (kernel matrices and the like)
    first_start_s     a small start and step before: imports, compilation (None in records of before)
    warmup_s          the first epoch
    epoch_s           each timed epoch after it
    runtime_s         prepare_s + the sum of `epochs` timed epochs; if extrapolated, prepare_s + epochs x median
    extrapolated      True if fewer than `epochs` were timed; epochs_measured says how many
    peak_device_bytes most that the process held on the GPU, read from the driver (None on a CPU)
    peak_torch_bytes  most that PyTorch's CUDA allocator had allocated (None on a CPU)
    peak_host_bytes   most that the process held in host memory beyond what it held before the data were made
    losses            'early': the loss and its terms after the first 3 epochs, 'final': after its last
    metrics           of an experiment: how well the embeddings match (mmdma_core.metrics), and after which epoch
    cell_s            wall time of the whole measurement as the guard saw it
    others_cpu        share, 0 to 1, of the core-seconds of its wall time that other processes took, of the
                      cores that it may use; None: not known, see benchmarks.measuring.others
    others_gpu        share, 0 to 1, of the GPU's time that other processes took; None: not known, or on a CPU
    repeated          True for the quieter of two measurements, the first of which was beside others
    machine           who measured, see benchmarks.measuring.machine
    devices           processes that shared the cells; then an epoch is that of the slowest, peak_host_bytes the sum
    ranks             of several: status, median epoch and peaks of each
    """

    variant: str
    n: int
    p: int
    d: int
    epochs: int
    seed: int
    device: str
    key: str
    status: Status
    detail: str = ""
    implied_by: int | None = None
    implied_end: Status | None = None
    deviations: list[str] = field(default_factory=list)
    ran_out_of: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    limits: dict[str, float | None] = field(default_factory=dict)
    data_mode: str | None = None
    float32_bits: int | None = None
    data_s: float | None = None
    density: float | None = None
    first_start_s: float | None = None
    prepare_s: float | None = None
    warmup_s: float | None = None
    epoch_s: list[float] = field(default_factory=list)
    runtime_s: float | None = None
    extrapolated: bool | None = None
    epochs_measured: int = 0
    peak_device_bytes: int | None = None
    peak_torch_bytes: int | None = None
    peak_host_bytes: int | None = None
    losses: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    cell_s: float | None = None
    others_cpu: float | None = None
    others_gpu: float | None = None
    repeated: bool = False
    machine: dict[str, Any] = field(default_factory=dict)
    devices: int = 1
    ranks: list[dict[str, Any]] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def median_epoch_s(self) -> float | None:
        """Median of the timed epochs, in seconds."""
        return median(self.epoch_s) if self.epoch_s else None

    @property
    def peak_bytes(self) -> int | None:
        """Peak of the memory that ends it: the GPU's, and on a CPU the host's."""
        return self.peak_host_bytes if self.peak_device_bytes is None else self.peak_device_bytes

    @property
    def others(self) -> float | None:
        """The larger of what others took of the cores and of the GPU; None where neither is known."""
        return max((share for share in (self.others_cpu, self.others_gpu) if share is not None), default=None)

    @property
    def others_in_words(self) -> str:
        """'73 % of the cores', '12 % of the GPU': what `others` is a share of."""
        if self.others is None:
            return "an unknown share"
        return f"{100 * self.others:.0f} % of the {'GPU' if self.others == self.others_gpu else 'cores'}"

    @property
    def last_words(self) -> str:
        """The last line of the detail, which says the most of an error."""
        return self.detail.splitlines()[-1] if self.detail else ""

    @property
    def measured(self) -> Measured:
        """The measurement as mmdma_core.advice takes it; of one that is ok."""
        return Measured(self.variant, self.n, self.p, self.d, self.median_epoch_s)

    def set_runtime(self) -> None:
        """Fill runtime_s, extrapolated and epochs_measured from prepare_s and epoch_s."""
        self.epochs_measured = len(self.epoch_s)
        self.extrapolated = self.epochs_measured < self.epochs
        all_epochs = self.epochs * self.median_epoch_s if self.extrapolated else math.fsum(self.epoch_s)
        self.runtime_s = self.prepare_s + all_epochs


class UnreadableRecord(ValueError):
    """A record file that is truncated, not JSON, or of another schema version."""


def record_path(root: Path, variant: str, p: int, n: int) -> Path:
    """Return where a record lies below results/MACHINE; a blank in the name of a method is a '-' there."""
    return root / "records" / f"{variant}".replace(" ", "-") / f"p{p}" / f"n{n}.json"


def write(record: Record, path: Path) -> None:
    """Write the record so that a reader sees the whole file or none, even after a crash."""
    write_atomically(path, json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace path's content in one step. Raises OSError (a full disk, a folder that is not writable)."""
    with atomically(path) as part:
        part.write_text(text, encoding="utf-8")


def read(path: Path) -> Record:
    """Read the record in a file. Raises UnreadableRecord."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UnreadableRecord(f"{path}: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise UnreadableRecord(f"{path}: schema version {found}, this program reads {SCHEMA}")
    if content.get("status") == "skipped" and "implied_end" not in content:  # of before: its words begin with it
        end = str(content.get("detail")).partition(" ")[0]
        content["implied_end"] = end if end in STATUSES else None
    try:
        return Record(**content)
    except TypeError as error:
        raise UnreadableRecord(f"{path}: {error}") from None


def find(path: Path) -> Record | None:
    """Read the record in a file; None if there is none, or it cannot be read."""
    try:
        return read(path) if path.exists() else None
    except UnreadableRecord:
        return None


def set_aside_if_unreadable(path: Path) -> None:
    """Rename a record file that cannot be read to *.unreadable, and say so."""
    try:
        if path.exists():
            read(path)
    except UnreadableRecord as error:
        aside = path.with_suffix(UNREADABLE)
        path.replace(aside)
        print(f"unreadable record set aside as {aside}: {error}", file=sys.stderr)


@dataclass(frozen=True)
class Folder:
    """What lies below results/MACHINE/records.

    records     those that can be read
    unreadable  a sentence for each that cannot
    foreign     files that the harness has not written there: other names, or a record of another point
    leftovers   of the harness: what a crash has left half written, and what it has set aside as unreadable
    """

    records: list[Record]
    unreadable: list[str]
    foreign: list[Path]
    leftovers: list[Path]

    @property
    def left_out(self) -> list[str]:
        """A sentence for each record that cannot be read, and one for all foreign files."""
        return [*self.unreadable, *([foreign_in_words(self.foreign)] if self.foreign else [])]


def read_folder(root: Path) -> Folder:
    """Sort what lies below results/MACHINE/records, and read the records."""
    folder, top = Folder([], [], [], []), root / "records"
    found = {*top.rglob("*"), *top.glob("*/*/*")}  # the second looks into linked folders, too
    for path in sorted(path for path in found if not path.is_dir()):
        if is_leftover(path):
            folder.leftovers.append(path)
        elif not _NAME.fullmatch(path.relative_to(top).as_posix()):
            folder.foreign.append(path)
        else:
            try:
                record = read(path)
            except UnreadableRecord as error:
                folder.unreadable.append(str(error))
                continue
            own = path == record_path(root, record.variant, record.p, record.n)
            (folder.records if own else folder.foreign).append(record if own else path)
    return folder


def is_leftover(path: Path) -> bool:
    """Return whether the harness has left a file behind, by its name."""
    return is_partial(path) or path.suffix == UNREADABLE


def foreign_in_words(paths: Sequence[Path]) -> str:
    """Name files that the harness has not written, in one sentence."""
    return f"{counted(paths)} that the harness has not written"


def counted(paths: Sequence[Path]) -> str:
    """Say how many files there are, and the first three by name."""
    more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
    return f"{len(paths):,} file{'s' * (len(paths) > 1)} ({', '.join(map(str, paths[:3]))}{more})"


def read_all(root: Path) -> list[Record]:
    """Read every readable record below results/MACHINE; say on stderr what is left out."""
    folder = read_folder(root)
    for sentence in folder.left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    return folder.records
