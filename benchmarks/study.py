"""From a checked configuration to a study: its grid, its sweeps, and what is asked of each cell."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdma_core
from benchmarks import machine, records
from benchmarks.cell import Cell
from benchmarks.config import ConfigError, check, closest
from benchmarks.records import Record
from benchmarks.sources import source_digest
from mmdma_core import Settings


@dataclass(frozen=True)
class Study:
    """A grid of variants, n and p, and how each cell is measured; see config.yaml for the meaning of each field."""

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

    def sweeps(self) -> Iterator[tuple[str, int]]:
        """(variant, p) of each sweep."""
        for variant in self.variants:
            for p in self.p:
                yield variant, p

    def cell(self, variant: str, n: int, p: int) -> Cell:
        """What is asked at one point of the grid."""
        registered = mmdma_core.variant(variant)
        return Cell(
            variant=variant,
            n=n,
            p=p,
            source=source_digest(registered.module),
            absent=registered.absent(),
            settings=self.settings,
            shape=self.shape,
            seed=self.seed,
            data_mode="exact" if n * p <= self.exact_data_below else "fast",
            epochs=self.epochs,
            budget_s=self.cell_budget_s,
            timeout_s=self.cell_timeout_s,
            device=self.device,
            threads=self.threads,
            host_gib=self.host_gib,
            gpu_gib=self.gpu_gib,
        )

    def path(self, variant: str, n: int, p: int) -> Path:
        """The file of a cell's record."""
        return records.record_path(self.root, variant, p, n)

    def known(self, variant: str, n: int, p: int) -> Record | None:
        """The record that answers what is asked at this point now, if there is one."""
        record = records.read_or_set_aside(self.path(variant, n, p))
        return record if record is not None and record.key == self.cell(variant, n, p).key else None

    def stamp(self, variant: str, p: int | str) -> Path:
        """The file that says that every cell of a sweep is known."""
        return self.root / "sweeps" / str(variant) / f"p{p}.done"

    def withdraw_stamps(self) -> None:
        """Remove each stamp whose sweep has a cell that is not known: deleted, unreadable, or asked for differently."""
        for variant, p in self.sweeps():
            stamp = self.stamp(variant, p)
            if stamp.exists() and not all(self.known(variant, n, p) for n in self.n):
                stamp.unlink()


def load(config: dict[str, Any]) -> Study:
    """The study that a configuration asks for. Raises ConfigError for what is not allowed, an absent GPU included."""
    check(config)
    _import_plugins(config.get("plugins", []))
    device = _device(config.get("device", "auto"))
    name = config["study"]
    if name == "auto":
        name = "paper" if device == "cuda" else "laptop"
    if name not in config["studies"]:
        raise ConfigError(f"study: unknown study {name!r}; {closest(name, ['auto', *config['studies']])}")
    study = config["studies"][name]
    threads = config.get("cpu_threads", "auto")
    folder = config.get("machine", "auto")
    figures = config.get("figures", {})
    return Study(
        name=name,
        root=Path(config.get("results", "results")) / (machine.default_name() if folder == "auto" else folder),
        n=tuple(sorted(study["n"])),
        p=tuple(sorted(study["p"])),
        variants=_variants(name, study["variants"]),
        epochs=study["epochs"],
        cell_budget_s=study["cell_budget_s"],
        cell_timeout_s=study["cell_timeout_s"],
        sweep_budget_s=study["sweep_budget_s"],
        device=device,
        threads=machine.available_threads() if threads == "auto" else threads,
        gpu_gib=config.get("gpu_memory_gib") or study.get("gpu_memory_gib"),
        host_gib=config.get("host_memory_gib") or study.get("host_memory_gib"),
        stop_after_failure=config.get("stop_after_failure", True),
        shape=config.get("shape", "branch"),
        seed=config.get("seed", 4),
        exact_data_below=config.get("exact_data_below", 2e7),
        settings=_settings(config.get("settings", {})),
        figure_1b_p=tuple(figures.get("figure_1b_p", study["p"])),
        published=figures.get("published", True),
    )


def _import_plugins(modules: list[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"plugins: {module!r} cannot be imported: {error}") from None


def _device(device: str) -> str:
    found = machine.gpu() is not None
    if device == "cuda" and not found:
        raise ConfigError("device: 'cuda' is asked for, but the driver knows no GPU here; allowed: auto, cpu")
    return "cuda" if found and device == "auto" else device.replace("auto", "cpu")


def _variants(study: str, names: list[str]) -> tuple[str, ...]:
    allowed = mmdma_core.variants()
    for name in names:
        if name not in ("all", *allowed):
            raise ConfigError(f"studies.{study}.variants: unknown variant {name!r}; {closest(name, ['all', *allowed])}")
    return tuple(allowed) if "all" in names else tuple(names)


def _settings(changed: dict[str, Any]) -> Settings:
    try:
        return Settings(**changed)
    except ValueError as error:
        raise ConfigError(f"settings: {error}") from None
