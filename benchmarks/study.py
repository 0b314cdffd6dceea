"""The study that a configuration asks for: a grid of points, how each is measured, and which records answer that."""

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
from benchmarks.config import Config, ConfigError, Further, check, closest
from benchmarks.measuring import machine, records
from benchmarks.measuring.device import why_no_gpu
from benchmarks.measuring.fingerprint import variant_fingerprint
from benchmarks.measuring.measurement import DataSource, Limits, Measurement
from benchmarks.measuring.memory import GIB, within_reach
from benchmarks.measuring.records import Record
from mmdma_core import Settings, host
from mmdma_core.models import in_words

ENDS_A_SWEEP = ("oom", "timeout")  # after one of these, larger n are skipped
_AROUND_A_SWEEP_S = 300.0
_MARGIN = 1.1  # so much more memory than ran out is worth another try; less is the coming and going of others


@dataclass(frozen=True)
class Study:
    """A grid of variants, n and p, and how each point is measured; see config.yaml for the meaning of each field.

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
        """The n of the grid, and those beyond it that are asked of some variants."""
        return tuple(sorted({*self.n, *(n for more in self.further for n in more.n)}))

    def ns(self, variant: str, p: int) -> tuple[int, ...]:
        """Return the n of a sweep."""
        return tuple(n for n in self.every_n if n in self.n or self._beyond(variant, n, p))

    def _beyond(self, variant: str, n: int, p: int) -> Further | None:
        asked = (more for more in self.further if variant in more.variants and p in more.p and n in more.n)
        return None if n in self.n else next(asked, None)

    def host_limit_gib(self, variant: str, n: int, p: int) -> float | None:
        """Return the host memory that a measurement may add; None: what the guard finds free."""
        beyond = self._beyond(variant, n, p)
        return (beyond and beyond.host_memory_gib) or self.host_gib

    def points(self) -> Iterator[tuple[str, int, int]]:
        """Yield (variant, p, n) of each point, in the order in which they are measured."""
        for variant, p in self.sweeps():
            for n in self.ns(variant, p):
                yield variant, p, n

    def sweeps(self) -> Iterator[tuple[str, int]]:
        """Return (variant, p) of each sweep."""
        return itertools.product(self.variants, self.p)

    def measurement(self, variant: str, n: int, p: int) -> Measurement:
        """Return what is asked at one point of the grid."""
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
        """Return the file of a record."""
        return records.record_path(self.root, variant, p, n)

    def known(self, variant: str, n: int, p: int) -> Record | None:
        """Return the record that answers what is asked at this point now, None if none does."""
        record = records.find(self.path(variant, n, p))
        if record is None:
            return None
        asked = self.measurement(variant, n, p)
        if record.status == "skipped":
            return record if record.key == asked.key and self._still_skipped(record) else None
        return record if answers(record, asked) else None

    def asked_again(self, variant: str, n: int, p: int) -> str | None:
        """Say why a point is measured again that has a record of the same question; None where it is not."""
        record = records.find(self.path(variant, n, p))
        return record and asked_again(record, self.measurement(variant, n, p))

    def _still_skipped(self, record: Record) -> bool:
        if record.implied_by is None:
            return self.sweep_budget_s <= record.limits["sweep_budget_s"]
        reason = self.known(record.variant, record.implied_by, record.p)
        return self.stop_after_failure and reason is not None and reason.status in ENDS_A_SWEEP

    @property
    def minutes_of_a_sweep(self) -> int:
        """What to ask of a cluster for a sweep: its budget, and what imports and KeOps' compiler may take."""
        return math.ceil((self.sweep_budget_s + _AROUND_A_SWEEP_S) / 60)

    def done_marker(self, variant: str, p: int | str, turn: int | str) -> Path:
        """Return the done marker, the file that says that a sweep has run to its end for the turn-th time."""
        return self.root / "sweeps" / str(variant) / f"p{p}.{turn}.done"

    def wanted_markers(self, variant: str, *ps: int) -> list[Path]:
        """Return the last done markers of a variant's sweeps; the next, which are not there, if a point is not known.

        A point is not known if it is deleted, unreadable, or asked for differently now.
        """
        turns = ([self.done_marker(variant, p, turn) for p in ps] for turn in itertools.count())
        there = list(itertools.takewhile(lambda markers: all(marker.exists() for marker in markers), turns))
        if there and all(self.known(variant, n, p) for p in ps for n in self.ns(variant, p)):
            return there[-1]
        return [self.done_marker(variant, p, len(there)) for p in ps]


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
        further=tuple(_chosen(more, f"studies.{name}.further.{k}", config) for k, more in enumerate(grid.further)),
        notes=(*_notes(config.device, device), *plugins.notes()),
    )


def on_this_machine(study: Study, config: Mapping[str, Any]) -> Study:
    """Return the study with the configuration's limits of memory alone: one of its own emulates a smaller machine."""
    gpu_gib = gpu_limit_gib(study.device, config.get("gpu_memory_gib"))
    return dataclasses.replace(study, gpu_gib=gpu_gib, host_gib=config.get("host_memory_gib"))


def gpu_limit_gib(device: str, asked: float | None) -> float | None:
    """Return the device memory that a measurement may take, None for all. Under WSL2 all is a limit, too."""
    total = machine.gpu()["memory_bytes"] if device == "cuda" and machine.wsl() and machine.gpu() else None
    return asked or (total / GIB if total else None)


def chosen_variants(key: str, names: list[str]) -> tuple[str, ...]:
    """Return those named, or `all`, but for those that match a pattern behind `!`.

    Raises ConfigError that names the key.
    """
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


def answers(record: Record, asked: Measurement) -> bool:
    """Return whether a record is one of this measurement, and would come out the same under the limits set now."""
    now, then = asked.limits, Limits(**{f.name: record.limits.get(f.name) for f in dataclasses.fields(Limits)})
    if record.key != asked.key or asked_again(record, asked):
        return False
    if record.status == "ok":
        on_cuda = record.device == "cuda"
        limit = now.gpu_gib if on_cuda else now.host_gib
        held = record.peak_device_bytes if on_cuda else record.peak_host_bytes
        fits = limit is None or held is None or held <= limit * GIB
        return fits and (not record.extrapolated or now.budget_s <= then.budget_s)
    if record.status == "oom":
        return (now.host_gib, now.gpu_gib) == (then.host_gib, then.gpu_gib)
    if record.status == "timeout":
        return now.timeout_s <= then.timeout_s
    if record.status == "missing_dependency":
        return bool(asked.absent or record.missing)
    return True


def known_at(path: Path, asked: Measurement, retry: Collection[str] = ()) -> tuple[Record | None, str | None]:
    """Return the record in a file, if it answers what is asked; else None, and why it is asked again, if it is.

    retry  statuses that are no answer. A record that cannot be read is set aside, one that was skipped is no answer.
    """
    records.set_aside_if_unreadable(path)
    record = records.find(path)
    if record is None:
        return None, None
    if record.status in ("skipped", *retry) or not answers(record, asked):
        return None, asked_again(record, asked)
    return record, None


def asked_again(record: Record, asked: Measurement) -> str | None:
    """Say why a question is worth asking again on this machine: more memory, modules, compilers; None if it is not.

    A record that does not say what ran out or was missing is not asked again for it. That of a job on a cluster is
    asked again in a job alone.
    """
    if record.key != asked.key:
        return None
    if bool(record.machine.get("job")) != ("SLURM_JOB_ID" in os.environ):  # what a login node has, its jobs may lack
        return None
    where = f"{record.variant} n = {record.n} p = {record.p}: asked again"
    limits = {"host": asked.limits.host_gib, "device": asked.limits.gpu_gib}
    for kind, then in record.ran_out_of.items() if record.status == "oom" else ():
        now = within_reach(kind, limits[kind], asked.devices)
        if now is not None and now > _MARGIN * then:
            return f"{where}, {in_words(then)} of {kind} memory ran out, {in_words(now)} are within reach now"
    there = [name for name in record.missing if machine.is_here(name)]
    return f"{where}, {', '.join(there)} was missing and is here now" if there else None


def _notes(asked: str, device: str) -> Iterator[str]:
    """Say what is to be known of the GPU before anything is measured."""
    if asked == "auto" and device == "cpu" and (machine.gpu() is not None or machine.trouble()):
        yield f"device: 'auto' takes the CPU here: {why_no_gpu()}"
    if device == "cuda" and machine.wsl():
        yield (
            "WSL2: the driver may move memory of the GPU into the host's, and a measurement then gets slow where it "
            "would be out of memory; gpu_memory_gib limits PyTorch, without it the memory of the card does"
        )


def _chosen(further: Further, key: str, config: Config) -> Further:
    """Put its variants in their places; one limit of memory for all is before one of its own."""
    host_gib = None if config.host_memory_gib else further.host_memory_gib
    chosen = chosen_variants(f"{key}.variants", further.variants)
    return further.model_copy(update={"variants": [*chosen], "host_memory_gib": host_gib})


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
