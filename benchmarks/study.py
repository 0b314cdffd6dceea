"""Whether a record answers what is asked of a cell now, and in words why one is asked again that once did.

From config.yaml to cells: the configuration, the study that it asks for, its sweeps, and the plan of what is left.

A new key goes into config.yaml with its comment, into the models of config.py, and into `study.load`.

From a checked configuration to a study: its grid, its sweeps, and what is asked of each cell.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mmdma_core
from benchmarks import plugins
from benchmarks.config import Config, ConfigError, check, closest
from benchmarks.measuring import machine, records
from benchmarks.measuring.device import why_no_gpu
from benchmarks.measuring.fingerprint import variant_fingerprint
from benchmarks.measuring.machine import is_here
from benchmarks.measuring.measurement import DataSource, Limits, Measurement
from benchmarks.measuring.memory import GIB, within_reach
from benchmarks.measuring.records import Record, UnreadableRecord
from mmdma_core import Settings, host
from mmdma_core.models import in_words

_MARGIN = 1.1  # so much more memory than ran out is worth another try; less is the coming and going of others


def answers(record: Record, cell: Measurement) -> bool:
    """Whether a record is one of this cell, and would come out the same under the limits that are set now."""
    now, then = cell.limits, Limits(**{f.name: record.limits.get(f.name) for f in dataclasses.fields(Limits)})
    if record.key != cell.key or asked_again(record, cell):
        return False
    if record.status == "ok":
        return _fits(record, now) and (not record.extrapolated or now.budget_s <= then.budget_s)
    if record.status == "oom":
        return (now.host_gib, now.gpu_gib) == (then.host_gib, then.gpu_gib)
    if record.status == "timeout":
        return now.timeout_s <= then.timeout_s
    if record.status == "missing_dependency":
        return bool(cell.absent or record.missing)
    return True


def known_at(path: Path, cell: Measurement, retry: Collection[str] = ()) -> tuple[Record | None, str | None]:
    """The record at a path, if it answers what is asked of the cell; else None, and why that is asked again, if it is.

    retry  statuses that are no answer. A record that cannot be read is set aside, one that was skipped is no answer.
    """
    records.set_aside_if_unreadable(path)
    record = records.read(path) if path.exists() else None
    if record is None:
        return None, None
    if record.status in ("skipped", *retry) or not answers(record, cell):
        return None, asked_again(record, cell)
    return record, None


def asked_again(record: Record, cell: Measurement) -> str | None:
    """Why the same question is worth asking again on this machine, None if it is not: memory, modules, compilers.

    A record that does not say what ran out or was missing is not asked again for it. That of a job on a cluster is
    asked again in a job alone.
    """
    if record.key != cell.key:
        return None
    if bool(record.machine.get("job")) != ("SLURM_JOB_ID" in os.environ):  # what a login node has, its jobs may lack
        return None
    where = f"{record.variant} n = {record.n} p = {record.p}: asked again"
    limits = {"host": cell.limits.host_gib, "device": cell.limits.gpu_gib}
    for kind, then in record.ran_out_of.items() if record.status == "oom" else ():
        now = within_reach(kind, limits[kind], cell.devices)
        if now is not None and now > _MARGIN * then:
            return f"{where}, {in_words(then)} of {kind} memory ran out, {in_words(now)} are within reach now"
    there = [name for name in record.missing if is_here(name)]
    return f"{where}, {', '.join(there)} was missing and is here now" if there else None


def _fits(record: Record, limits: Limits) -> bool:
    """Whether what an ok cell held stays within the limits."""
    held = ((record.peak_device_bytes, limits.gpu_gib), (record.peak_host_bytes, limits.host_gib))
    used, limit = held[0] if record.device == "cuda" else held[1]
    return limit is None or used is None or used <= limit * GIB


ENDS_A_SWEEP = ("oom", "timeout")  # after one of these, larger n are skipped
_AROUND_A_SWEEP_S = 300.0


@dataclass(frozen=True)
class Further:
    """What some variants are asked beyond the grid of a study: n, at some p; host_gib in the place of the study's."""

    variants: tuple[str, ...]
    n: tuple[int, ...]
    p: tuple[int, ...]
    host_gib: float | None


@dataclass(frozen=True)
class Study:
    """A grid of variants, n and p, and how each cell is measured; see config.yaml for the meaning of each field.

    notes  what is to be known of this machine's GPU, a sentence each
    """

    name: str
    root: Path
    n: tuple[int, ...]
    p: tuple[int, ...]
    variants: tuple[str, ...]
    epochs: int
    cell_budget_s: float
    cell_timeout_s: float
    sweep_budget_s: float
    device: str
    threads: int
    gpu_gib: float | None
    host_gib: float | None
    stop_after_failure: bool
    shape: str
    seed: int
    exact_data_below: float
    settings: Settings
    figure_1b_p: tuple[int, ...]
    published: bool
    data: DataSource | None = None
    further: tuple[Further, ...] = ()
    devices: int = 1
    notes: tuple[str, ...] = ()

    @property
    def every_n(self) -> tuple[int, ...]:
        """The n of the grid, and those beyond it that some variants are asked."""
        return tuple(sorted({*self.n, *(n for more in self.further for n in more.n)}))

    def ns(self, variant: str, p: int) -> tuple[int, ...]:
        """The n of a sweep."""
        return tuple(n for n in self.every_n if n in self.n or self._beyond(variant, n, p))

    def _beyond(self, variant: str, n: int, p: int) -> Further | None:
        asked = (more for more in self.further if variant in more.variants and p in more.p and n in more.n)
        return None if n in self.n else next(asked, None)

    def host_limit_gib(self, variant: str, n: int, p: int) -> float | None:
        """Host memory that a cell may add; None: what the guard finds free."""
        beyond = self._beyond(variant, n, p)
        return (beyond and beyond.host_gib) or self.host_gib

    def points(self) -> Iterator[tuple[str, int, int]]:
        """(variant, p, n) of each cell, in the order in which they run."""
        for variant, p in self.sweeps():
            for n in self.ns(variant, p):
                yield variant, p, n

    def sweeps(self) -> Iterator[tuple[str, int]]:
        """(variant, p) of each sweep."""
        for variant in self.variants:
            for p in self.p:
                yield variant, p

    def measurement(self, variant: str, n: int, p: int) -> Measurement:
        """What is asked at one point of the grid."""
        registered = mmdma_core.variant(variant)
        host_gib = self.host_limit_gib(variant, n, p)
        return Measurement(
            variant=variant,
            n=n,
            p=p,
            source=variant_fingerprint(registered),
            absent=registered.absent(),
            settings=self.settings,
            shape=self.shape,
            seed=self.seed,
            data_mode=self.data.name if self.data else "exact" if n * p <= self.exact_data_below else "fast",
            epochs=self.epochs,
            device=self.device,
            threads=self.threads,
            limits=Limits(self.cell_budget_s, self.cell_timeout_s, host_gib, self.gpu_gib),
            data=self.data,
            devices=self.devices,
        )

    def path(self, variant: str, n: int, p: int) -> Path:
        """The file of a cell's record."""
        return records.record_path(self.root, variant, p, n)

    def known(self, variant: str, n: int, p: int) -> Record | None:
        """The record that answers what is asked at this point now, if there is one; an unreadable one does not."""
        record = self._record(variant, n, p)
        if record is None:
            return None
        if record.status == "skipped":
            cell = self.measurement(variant, n, p)
            return record if record.key == cell.key and self._still_skipped(record) else None
        return record if answers(record, self.measurement(variant, n, p)) else None

    def asked_again(self, variant: str, n: int, p: int) -> str | None:
        """Why a cell is measured again that has a record for the same question, in words; None where it is not."""
        record = self._record(variant, n, p)
        return record and asked_again(record, self.measurement(variant, n, p))

    def _record(self, variant: str, n: int, p: int) -> Record | None:
        path = self.path(variant, n, p)
        try:
            return records.read(path) if path.exists() else None
        except UnreadableRecord:
            return None

    def _still_skipped(self, record: Record) -> bool:
        if record.implied_by is None:
            return self.sweep_budget_s <= record.limits["sweep_budget_s"]
        reason = self.known(record.variant, record.implied_by, record.p)
        return self.stop_after_failure and reason is not None and reason.status in ENDS_A_SWEEP

    @property
    def minutes_of_a_sweep(self) -> int:
        """What to ask of a cluster for a sweep: its budget, and as much as imports and KeOps' compiler may take."""
        return math.ceil((self.sweep_budget_s + _AROUND_A_SWEEP_S) / 60)

    def stamp(self, variant: str, p: int | str, turn: int | str) -> Path:
        """The file that says that a sweep has run to its end, for the turn-th time."""
        return self.root / "sweeps" / str(variant) / f"p{p}.{turn}.done"

    def wanted_stamp(self, variant: str, p: int) -> Path:
        """The last stamp of a sweep; the next, which is not there, if a cell of it is not known.

        A cell is not known if it is deleted, unreadable, or asked for differently now.
        """
        turns = itertools.count()
        absent = next(turn for turn in turns if not self.stamp(variant, p, turn).exists())
        known = all(self.known(variant, n, p) for n in self.ns(variant, p))
        return self.stamp(variant, p, max(0, absent - 1) if known else absent)


def load(keys: dict[str, Any]) -> Study:
    """Load the study that a configuration asks for.

    Raises ConfigError for what is not allowed, an absent GPU included.
    """
    config = check(keys)
    plugins.take(config.plugins)
    device = _device(config.device, config.machine)
    name = config.study
    if name == "auto":
        name = "paper" if device == "cuda" else "laptop"
    if name not in config.studies:
        raise ConfigError(f"study: unknown study {name!r}; {closest(name, ['auto', *config.studies])}")
    grid = config.studies[name]
    if device == "cuda" and grid.devices > 1:
        _device("cuda", config.machine, grid.devices)
    return Study(
        name=name,
        root=_root(config, device, grid.devices),
        devices=grid.devices,
        n=tuple(sorted(grid.n)),
        p=tuple(sorted(grid.p)),
        variants=chosen_variants(f"studies.{name}.variants", grid.variants),
        epochs=grid.epochs,
        cell_budget_s=grid.cell_budget_s,
        cell_timeout_s=grid.cell_timeout_s,
        sweep_budget_s=grid.sweep_budget_s,
        device=device,
        threads=host.cores() if config.cpu_threads == "auto" else config.cpu_threads,
        gpu_gib=gpu_limit_gib(device, config.gpu_memory_gib or grid.gpu_memory_gib),
        host_gib=config.host_memory_gib or grid.host_memory_gib,
        stop_after_failure=config.stop_after_failure,
        shape=config.shape,
        seed=config.seed,
        exact_data_below=config.exact_data_below,
        settings=config.settings,
        figure_1b_p=tuple(config.figures.figure_1b_p or grid.p),
        published=config.figures.published,
        further=tuple(
            Further(
                chosen_variants(f"studies.{name}.further.{k}.variants", more.variants),
                tuple(more.n),
                tuple(more.p),
                None if config.host_memory_gib else more.host_memory_gib,
            )
            for k, more in enumerate(grid.further)
        ),
        notes=(*_notes(config.device, device), *plugins.notes()),
    )


def on_this_machine(study: Study, config: Mapping[str, Any]) -> Study:
    """The study with the configuration's limits of memory alone: one of its own emulates a smaller machine."""
    gpu_gib = gpu_limit_gib(study.device, config.get("gpu_memory_gib"))
    return dataclasses.replace(study, gpu_gib=gpu_gib, host_gib=config.get("host_memory_gib"))


def gpu_limit_gib(device: str, asked: float | None) -> float | None:
    """Device memory that a cell may take: what is asked for; None: all. Under WSL2 all is a limit, too."""
    total = machine.gpu()["memory_bytes"] if device == "cuda" and machine.wsl() and machine.gpu() else None
    return asked or (total / GIB if total else None)


def _notes(asked: str, device: str) -> Iterator[str]:
    """What is to be known of the GPU before anything is measured."""
    if asked == "auto" and device == "cpu" and (machine.gpu() is not None or machine.trouble()):
        yield f"device: 'auto' takes the CPU here: {why_no_gpu()}"
    if device == "cuda" and machine.wsl():
        yield (
            "WSL2: the driver may move memory of the GPU into the host's, and a cell then gets slow where it would be "
            "out of memory; gpu_memory_gib limits PyTorch to what it says, without it to the memory of the card"
        )


def _root(config: Config, device: str, devices: int) -> Path:
    """results/MACHINE; of studies on several devices a folder below it, so that no figure mixes them with others."""
    name = machine.default_name(device) if config.machine == "auto" else config.machine
    root = Path(config.results, name)
    return root if devices == 1 else root / f"devices{devices}"


def _device(device: str, folder: str = "auto", devices: int = 1) -> str:
    """'cuda' if it is asked for, or 'auto' where a GPU computes.

    'cuda' on a host without one, such as a login node, needs the name of the folder. A GPU that does not compute with
    a PyTorch for CUDA is an error, and not a CPU in silence.
    """
    if device == "cpu":
        return "cpu"
    try:
        why_not = why_no_gpu(devices)
    except ValueError as error:
        raise ConfigError(f"device: {device!r}, but {error}") from None
    if device == "cuda" and why_not and folder == "auto":
        raise ConfigError(
            f"device: 'cuda' is asked for, but {why_not}; allowed: auto, cpu, or a name in `machine` where other "
            "nodes measure"
        )
    if device == "auto" and why_not and machine.gpu() is not None and torch.version.cuda:
        raise ConfigError(f"device: 'auto', but {why_not}; to measure on the CPU, set device to cpu")
    return "cuda" if device == "cuda" or not why_not else "cpu"


def chosen_variants(key: str, names: list[str]) -> tuple[str, ...]:
    """Those named, or `all`; a pattern behind `!` takes some out again. Raises ConfigError that names the key."""
    left_out = [name[1:] for name in names if name.startswith("!")]
    named = [name for name in names if not name.startswith("!")]
    try:
        chosen = mmdma_core.variants() if "all" in named else [mmdma_core.variant(name).name for name in named]
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
    for pattern in left_out:
        if not fnmatch.filter(mmdma_core.variants(), pattern):
            raise ConfigError(f"{key}: no variant matches {pattern!r}")
    kept = tuple(name for name in chosen if not any(fnmatch.fnmatch(name, pattern) for pattern in left_out))
    if not kept:
        raise ConfigError(f"{key}: {names!r} leaves no variant")
    return kept
