"""Which variant to take for a problem: the fastest exact one that runs here and fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from mmdma_core.registry import MissingDependency, Unsupported, Variant, variant, variants


@dataclass(frozen=True)
class Choice:
    """A variant, the bytes that it needs by its model (or None), and why those of less work were passed over."""

    variant: str
    needs_bytes: int | None
    passed_over: dict[str, str]

    def __str__(self) -> str:
        memory = "" if self.needs_bytes is None else f", about {self.needs_bytes / 2**30:.2g} GiB"
        return f"{self.variant}, the least work of the exact variants that run here and fit{memory}"


def choose(
    n: int,
    p: int,
    d: int,
    device: torch.device,
    memory_bytes: int | None = None,
    form: Literal["dense", "sparse", "kernel"] = "dense",
) -> Choice:
    """The exact variant with the least work per epoch (mmdma_core.costs) for n cells, p features, d components.

    memory_bytes  what it may take; by default what is free on the device. Its model of memory decides whether it
                  fits; the models are of dense views, so that for others nothing is left out for memory
    form          of the views

    Raises MissingDependency if no variant is left, with the reason for each.
    """
    free = free_bytes(device) if memory_bytes is None else memory_bytes
    costs = {name: variant(name).cost_model(n, p, d).seconds() for name in variants() if variant(name).cost_model}
    passed_over = {}
    for name in sorted(costs, key=costs.__getitem__):
        known = variant(name)
        reason = _why_not(known, n, p, d, device, free, form)
        if reason is None:
            fits = known.memory_model if form == "dense" else None
            return Choice(name, fits(n, p, d) if fits else None, passed_over)
        passed_over[name] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise MissingDependency(f"no exact variant is left for n = {n}, p = {p} on {device}: {reasons}")


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device, or on the host for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _why_not(known: Variant, n: int, p: int, d: int, device: torch.device, free: int, form: str) -> str | None:
    """The reason to pass over a variant, or None."""
    if not known.exact:
        return "approximate"
    if known.estimator is not None:
        return f"{known.estimator} MMD alone"
    if form not in known.accepts:
        return f"takes no {form} views"
    try:
        missing = known.missing(device)
    except Unsupported as error:
        return str(error)
    if missing is None and form == "dense" and known.memory_model is not None:
        needs = known.memory_model(n, p, d)
        if needs > free:
            return f"needs {needs / 2**30:.3g} GiB, {free / 2**30:.3g} GiB are free"
    return missing
