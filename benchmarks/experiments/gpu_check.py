"""All that a GPU alone can show, in one command and within a budget: python -m benchmarks gpu-check.

Step by step, the most telling first. Every result is written as it comes, and what is known is not done again, so that
a second call goes on where the first has ended or was cut. What the steps say lies in results/MACHINE/gpu-check/; the
records of cells lie where every sweep leaves them. `--device cpu --small` runs the same steps on small sizes, into
results/MACHINE-small/.
"""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import study as studies
from benchmarks.config import ConfigError
from benchmarks.experiments import gpu_check_steps as steps
from benchmarks.experiments.gpu_check_steps import FULL, SMALL, Outcome, Visit
from benchmarks.measuring import records
from benchmarks.measuring.device import alone
from benchmarks.plan import duration
from benchmarks.study import Study
from mmdma_core.files.atomic import atomically

# name -> (the part of the budget by whose end it has to be done, what it does, what it is in words). What a step does
# not take is left to those after it. Most of CITE-seq's time makes the data.
STEPS: dict[str, tuple[float, Callable[[Visit], Outcome], str]] = {
    "machine": (0.08, steps.machine_and_what_is_missing, "the machine, and what is missing"),
    "correctness": (0.27, steps.correctness, "every variant against float64"),
    "keops": (0.29, steps.keops, "KeOps"),
    "table": (0.47, steps.rows_of_readme, "the rows of README's table"),
    "citeseq": (0.81, steps.shape_of_citeseq, "the shape of CITE-seq"),
    "kernels": (0.86, steps.kernels, "the pass over pairs: tiles, and kinds of blocks"),
    "survey": (0.93, steps.overview, "the study of all variants"),
    "report": (1.00, steps.table_figures_report, "table, figures, report"),
}


def load(config: dict[str, Any], small: bool, retry: bool, write_report: Callable[[Study], Path]) -> Visit:
    """What a configuration asks for. Raises ConfigError where it lacks a study or the experiment."""
    sizes = SMALL if small else FULL
    if "citeseq" not in config:
        raise ConfigError("citeseq: the configuration has no such key; the project's config.yaml shows it")
    table, overview = (studies.load(config | {"study": name}) for name in ("table", sizes.overview))
    if small:  # no small cell takes the place of one of a study
        root = table.root.with_name(f"{table.root.name}-small")
        table, overview = replace(table, root=root, cell_budget_s=0.2, cell_timeout_s=60), replace(overview, root=root)
    return Visit(config, sizes, retry, table, overview, write_report)


def run(visit: Visit, budget_s: float, out: Path | None = None) -> None:
    """Take every step that the budget reaches, say what each came to, and what to do next; pack it all into `out`.

    Raises ValueError for a budget or a name of the archive that cannot be, WrongDevice where the device is not there.
    """
    if not budget_s > 0:
        raise ValueError(f"--budget-s {budget_s:g}: more than 0 seconds are needed")
    if out and not out.name.endswith((".tar.gz", ".tgz")):
        raise ValueError(f"--out {out}: the archive's name must end in .tar.gz or .tgz")
    with alone(
        visit.table.device, visit.table.root, visit.table.devices
    ):  # who measures now is waited for, before the clock starts
        begin = time.monotonic()
    visit.steps = _steps_before(visit)
    for k, (name, (part, step, title)) in enumerate(STEPS.items(), 1):
        start = time.monotonic()
        visit.end = begin + part * budget_s
        outcome, how = _taken(step, visit)
        seconds = time.monotonic() - start
        print(f"== {k} of {len(STEPS)}, {title}: {how} in {duration(seconds)}: {outcome.words}")
        print(*(f"   {line}\n" for line in outcome.lines), sep="", end="", flush=True)
        told = {"title": title, "done": outcome.done, "how": how, "seconds": round(seconds, 3)}
        told |= {"study": visit.overview.name, "words": outcome.words, "lines": list(outcome.lines)}
        visit.steps[name] = told
        records.write_atomically(visit.folder / "steps.json", json.dumps(visit.steps, indent=1) + "\n")
    print(*_end(visit, out), sep="\n")
    if out:
        _pack(visit.table.root, out)


def _taken(step: Callable[[Visit], Outcome], visit: Visit) -> tuple[Outcome, str]:
    """What the step came to. Whatever it raises is told, and the steps after it are taken all the same."""
    try:
        outcome = step(visit)
    except Exception as error:
        return Outcome(False, f"{type(error).__name__}: {' '.join(str(error).split())}"), "failed"
    return outcome, "done" if outcome.done else "ran out of time"


def _steps_before(visit: Visit) -> dict[str, dict[str, Any]]:
    """What an earlier call has said."""
    try:
        said = json.loads((visit.folder / "steps.json").read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _end(visit: Visit, out: Path | None) -> Iterator[str]:
    for how in ("done", "ran out of time", "failed"):
        names = [told["title"] for name in STEPS if (told := visit.steps[name])["how"] == how]
        if names:
            yield f"{how}: {'; '.join(names)}"
    if not all(visit.steps[name]["done"] for name in STEPS):
        yield "the same command again goes on from here: what is known is not done again"
    root = visit.table.root
    packed = f", or {out}, which holds the same" if out else ", or pack it with --out FILE.tar.gz"
    yield f"it is all in {root}: carry that folder away{packed}; in the results/ of any checkout every command reads it"


def _pack(root: Path, out: Path) -> None:
    with atomically(out) as part, tarfile.open(part, "w:gz") as archive:
        own = (out.name, part.name)  # which may lie in the folder
        archive.add(root, root.name, filter=lambda member: None if Path(member.name).name in own else member)
