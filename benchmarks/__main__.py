"""The command line: python -m benchmarks COMMAND; every step of the workflow without it, and what to expect."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import config as configuration
from benchmarks.measuring import machine
from mmdma_core import host

if TYPE_CHECKING:
    from benchmarks.study import Study
    from mmdma_core.models import Rates

_Option = tuple[tuple[str, ...], dict[str, Any]]  # the arguments of add_argument
_COMMANDS: dict[str, tuple[str, Callable[..., Any], tuple[_Option, ...]]] = {}  # name -> help, what it runs, options


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 (cannot write), 2 (bad input), 130 (interrupted) or 141 (no reader).

    `compare` has 1 for slower measurements, and 2 also where it cannot write.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.run is not _compare:
            # All of it, since an experiment has keys of its own.
            options.values = configuration.read(options.config, options.set, options.profile)
            if options.run is _gpu_check:
                options.values["device"] = options.device
            _set_environment(options.values.get("cpu_threads", "auto"))
    except ValueError as error:
        return _refuse(error)
    from mmdma_core.files import stdio  # imports PyTorch, which reads the number of threads

    return stdio.run(lambda: _run(options), 2 if options.run is _compare else 1)


def _run(options: Namespace) -> int:
    try:
        if options.run is _compare:
            return _compare(options)
        from benchmarks import plugins, study

        with closing(plugins):
            asked = study.load(options.values)
            if options.run in (_check, _plan, _sweep, _gpu_check):
                print(*(f"note: {note}\n" for note in asked.notes), sep="", end="", file=sys.stderr)
            options.run(asked, options)
    except (ValueError, RuntimeError, ImportError) as error:
        return _refuse(error)
    except KeyboardInterrupt:
        print("interrupted: every finished measurement is on disk", file=sys.stderr)
        return 130
    return 0


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _option(*names: str, **how: Any) -> _Option:
    return names, how


def _command(text: str, *options: _Option) -> Callable[[Callable], Callable]:
    """Make a function, _NAME, the command NAME with these options."""

    def register(run: Callable) -> Callable:
        _COMMANDS[run.__name__[1:].replace("_", "-")] = text, run, options
        return run

    return register


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


_RETRY = _option("--retry", action="store_true", help="measure again what ended in an error")
_CARD_GIB = _option("--gpu-memory-gib", type=_number, default=16.0, help="of the card; default: 16, the paper's")
_LIKE = _option(
    "--like",
    default="v100",
    metavar="CARD",
    help="whose rates a GPU is taken to have: v100, the published one, or results/MACHINE; default: v100",
)


@_command("check the configuration, and what lies in the folder of results")
def _check(study: Study, options: Namespace) -> None:
    from benchmarks.analysis import table

    print(f"{options.config} is valid; it asks for the study {study.name!r} on {study.device}")
    print(*table.describe_contents(study), sep="\n")


@_command(
    "what would run, what is known, about how long it takes",
    _LIKE,
    _option("--gpus", type=int, default=1, help="that measure at once, on a cluster; default: 1"),
)
def _plan(study: Study, options: Namespace) -> None:
    from benchmarks import plan
    from benchmarks.analysis import table

    if options.gpus < 1:
        raise ValueError(f"--gpus must be at least 1, got {options.gpus}")
    print(plan.describe(study, options.gpus, _rates(study, options.like)))
    for sentence in table.left_out(study):
        print(f"left out: {sentence}", file=sys.stderr)


def _rates(study: Study, like: str) -> Rates:
    from benchmarks.analysis import predict
    from mmdma_core.models import NOMINAL

    if study.device != "cuda" and like != predict.V100:
        raise ValueError(f"--like is about a GPU, and the study runs on {study.device}")
    return predict.card(like).rates() if study.device == "cuda" else NOMINAL


@_command(
    "measure the points that are not known (all sweeps of the study, or some)",
    _option("--variant", nargs="+", help="default: all of the study"),
    _option("--p", nargs="+", type=int, help="default: all of the study"),
    _option("--n", nargs="+", type=int, help="default: all of the study"),
    _option("--budget-s", type=_number, default=float("inf"), help="seconds after which it ends"),
    _RETRY,
)
def _sweep(study: Study, options: Namespace) -> None:
    from benchmarks import sweep

    sweep.run_sweeps(study, options.variant, options.p, options.n, options.budget_s, options.retry)


@_command("write summary.csv, summary.parquet and losses.csv, count the statuses")
def _table(study: Study, options: Namespace) -> None:
    from benchmarks.analysis import agreement, table

    summary = table.write_summary(study.root)
    print(table.count_statuses(summary))
    for sentence in table.of_study(summary, study)[1]:
        print(f"in the table, but in no figure: {sentence}", file=sys.stderr)
    print(f"which variants agree in their loss, cell by cell: {agreement.write_losses(summary, study.root)}")


@_command("draw the figures from the table")
def _figures(study: Study, options: Namespace) -> None:
    from benchmarks import figures

    for path in figures.draw_all(study):
        print(path)


@_command(
    "which variant to take for n cells and p features, how long, how much memory",
    _option("--n", type=int, required=True, help="cells"),
    _option("--p", type=int, required=True, help="features"),
    _option("--gpu-memory-gib", type=_number, help="for a GPU of this memory, wherever it is"),
    _option("--devices", type=int, default=1, help="that share the cells; default: 1"),
    _LIKE,
)
def _advise(study: Study, options: Namespace) -> None:
    from benchmarks.analysis import advise
    from benchmarks.study import on_this_machine

    study = on_this_machine(study, options.values)
    print(advise.describe(study, options.n, options.p, options.gpu_memory_gib, options.devices, options.like))


@_command("the real-data experiment: CITE-seq, or a placeholder of its shape", _RETRY)
def _citeseq(study: Study, options: Namespace) -> None:
    from benchmarks.experiments import citeseq

    citeseq.run(citeseq.load(study, options.values), options.retry)


@_command("whole fits up to a million cells, beside other matchings: quality against time", _RETRY)
def _scale(study: Study, options: Namespace) -> None:
    from benchmarks.experiments import scale

    print(scale.run(study, options.values, options.retry))


@_command("matching quality on SNARE-seq and scGEM, beside the published values", _RETRY)
def _quality(study: Study, options: Namespace) -> None:
    from benchmarks.experiments import quality

    print(quality.run(study, options.values, options.retry))


@_command(
    "what a pass over pairs could reach on this machine, and the fraction that it does",
    _option("--n", type=int, default=5000, help="cells of each view; default: %(default)s"),
    _option("--d", type=int, default=10, help="dimensions; default: %(default)s"),
    _option("--runs", type=int, default=5, help="on the CPU; default: %(default)s"),
)
def _roofline(study: Study, options: Namespace) -> None:
    from benchmarks import roofline

    roofline.run(study.device, options.n, options.d, options.runs)


@_command("write report.html: verdict, figures, tables, in one page")
def _report(study: Study, options: Namespace) -> None:
    from benchmarks import report

    print(report.write(study))


@_command("where memory ends each variant, predicted and published", _CARD_GIB)
def _frontier(study: Study, options: Namespace) -> None:
    from benchmarks.analysis import predict

    print(predict.describe_ends(options.gpu_memory_gib))


@_command(
    "Figure 1A and A1 of a card that is not here, from the models and a card that was measured",
    _CARD_GIB,
    _LIKE,
    _option("--out", type=Path, help="a folder for table and pictures; default: beside the results"),
)
def _predict(study: Study, options: Namespace) -> None:
    from benchmarks import figures
    from benchmarks.analysis import predict

    known, gib = predict.card(options.like), options.gpu_memory_gib
    table = predict.predicted(known, gib)
    print(predict.describe(known, gib, table))
    folder = options.out or study.root.parent / f"predicted-{Path(options.like).name}-{gib:g}-gib"
    against = predict.winners(table) if known.is_published(gib) else None
    print(predict.write(table, against, folder))
    for path in figures.draw_predicted(table, f"{gib:g} GiB, like {known.name}", folder, against):
        print(path)


@_command(
    "all that a GPU alone can show, step by step, within minutes; again: it goes on",
    _option("--device", default="cuda", help="cuda, or cpu to try the command; default: %(default)s"),
    _option("--small", action="store_true", help="small sizes, to try the command"),
    _option("--budget-s", type=float, default=540.0, help="seconds; default: %(default)g"),
    _option("--out", type=Path, help="pack results/MACHINE into this .tar.gz at the end"),
    _RETRY,
)
def _gpu_check(study: Study, options: Namespace) -> None:
    from benchmarks import report
    from benchmarks.experiments import gpu_check

    visit = gpu_check.load(options.values, options.small, options.retry, report.write)
    gpu_check.run(visit, options.budget_s, options.out)


def _compare(options: Namespace) -> int:
    """Compare two folders; it takes no study and no configuration."""
    from benchmarks.analysis import compare

    found = compare.compare(options.a, options.b, options.threshold)
    if options.out:
        from benchmarks.figures import comparison

        comparison.write(found, options.out)
    print(compare.describe(found))
    return int(found.slower)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, default=configuration.DEFAULT_CONFIG, help="default: %(default)s")
    shared.add_argument("--profile", type=Path, help="a profile of Snakemake, whose machine.yaml overrides keys")
    override = "override a key: study=survey, citeseq.path=FILE"
    shared.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=override)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (text, run, options) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, parents=[shared])
        command.set_defaults(run=run)
        for names, how in options:
            command.add_argument(*names, **how)
    text = "two results folders compared; status 0: none slower, 1: some slower, 2: bad input"
    command = commands.add_parser("compare", help=text, description=text)
    command.set_defaults(run=_compare)
    command.add_argument("a", type=Path, metavar="A", help="results/MACHINE of before, or of one machine")
    command.add_argument("b", type=Path, metavar="B", help="of after, or of the other one")
    command.add_argument("--threshold", type=float, default=1.1, help="a ratio that matters; default: %(default)s")
    command.add_argument("--out", type=Path, help="a picture of it, .png, .svg or .pdf")
    return parser


def _set_environment(threads: int | str) -> None:
    """Set what OpenMP, Numba and CUDA read when they are loaded; Snakemake exports 1 thread under --cores 1."""
    given = isinstance(threads, int) and threads > 0  # the configuration is not checked yet
    os.environ.update(machine.threads_environment(threads if given else host.cores()))
    host.wait_passively()
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as the driver counts


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    if sys.stdout is None:  # closed: what is written must fail, and no file may take its place
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    try:
        status = main()
    except SystemExit as end:  # of the parser, which prints its help
        status = end.code
    with suppress(OSError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
    host.discard_caches()
    os._exit(status)  # PyTorch would take half a second to be torn down, in each of a study's many sweeps
