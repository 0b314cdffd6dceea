"""Writes into docs/variants.md what the registry knows of each variant: python docs/variants.py.

Between `<!-- registry: NAME -->` and `<!-- end -->` stands what this makes; all else on the page is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmdma_core
from benchmarks.analysis.exponents import dominating, term

PAGE = Path(__file__).with_name("variants.md")
_BLOCK = re.compile(r"(<!-- registry: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_D, _GIB = mmdma_core.Settings().n_components, 16
_WIDE = {"cells": (100_000, 100), "features": (1_000, 10_000)}  # what there are many of -> n, p


def page(text: str) -> str:
    """The page with every block as the registry has it. Raises ValueError for a variant without a block."""
    absent = set(mmdma_core.variants()) - {name for _, name, _ in _BLOCK.findall(text)}
    if absent:
        raise ValueError(f"{PAGE.name} has no section with `<!-- registry: NAME -->` of {', '.join(sorted(absent))}")
    return _BLOCK.sub(lambda block: block[1] + _facts(block[2]) + block[3], text)


def _facts(name: str) -> str:
    variant = mmdma_core.variant(name)
    modules = [r for r in variant.requires if isinstance(r, str) and not r.startswith("torch.")]
    on_gpu = variant.memory_model and partial(variant.needs_bytes, device="cuda")
    rows = {
        "in figures": variant.label,
        "result": _result(variant),
        "parameters": {"primal": "W, (p, d)", "dual": "alpha, (n, d)"}[variant.formulation],
        "MMD2": f"the {variant.estimator} one, whatever is asked" if variant.estimator else "biased and unbiased",
        "views": ", ".join(variant.accepts),
        "needs": ", ".join(modules) or "PyTorch alone",
        "an epoch grows as": _growth(variant.cost_model and (lambda *size: variant.cost_model(*size).seconds())),
        f"most cells in {_GIB} GiB of a GPU": _largest(on_gpu),
        "reference": variant.reference,
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([f"| `{name}` | |", "|---|---|", *lines, ""])


def _result(variant: mmdma_core.Variant) -> str:
    if variant.exact or variant.objective:
        return variant.remark or "exact"
    means = f"{variant.bias:g} of it stay in the mean" if variant.bias else "right on average"
    return f"an approximation, within {variant.tolerance:g} for some 50 cells, {means}: never in `fastest_of_all`"


def _growth(model: Callable[[int, int, int], float] | None) -> str:
    if model is None:
        return "not stated"
    words = {what: term(dominating(model, *size, _D)).replace("mixed", "no one term") for what, size in _WIDE.items()}
    return " / ".join(f"{growth} (many {what})" for what, growth in words.items())


def _largest(model: Callable[[int, int, int], float] | None) -> str:
    """The largest n, in two digits, for a few p, of 10 to 100 million."""
    if model is None:
        return "not stated"
    ns = [round(m * 10**e) for e in range(1, 7) for m in range(10, 100)]
    fits = {p: [n for n in ns if model(n, p, _D) <= _GIB * 2**30] for p in (100, 1_000, 10_000)}
    return ", ".join(f"{max(found):,} at p = {p:,}" if found else f"none at p = {p:,}" for p, found in fits.items())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
