"""The command line: mmdma COMMAND, or python -m mmdma_core COMMAND. Matching two modalities, from files to files."""
# On argparse: click or typer would take as many lines for the options, and exit and wrap errors in ways of their own.

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

from mmdma_core import host

host.wait_passively()  # before PyTorch is loaded

from mmdma_core.files import stdio  # noqa: E402
from mmdma_core.matching import commands, joined  # noqa: E402
from mmdma_core.matching.estimator import MMDMA  # noqa: E402

_VIEWS = ("x", "y")
_TEXTS = ("variant", "device", "checkpoint")
_FLAGS = ("l2_normalize",)  # which may stand without a value: True


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 (cannot write), 2 (bad input), 130 (interrupted) or 141 (no reader)."""
    return stdio.run(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return getattr(commands, options.command)(options)
    except (ValueError, TypeError, RuntimeError, ImportError, FloatingPointError, MemoryError) as error:
        print(f"error: {_where()}{error}", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        print(f"error: {_where()}{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _where() -> str:
    rank, size = joined.rank_and_size()
    return "" if size == 1 else f"rank {rank} of {size}: "


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmdma", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    fit = commands.add_parser("fit", help="learn both embeddings", description="Learn both embeddings.")
    _add_views(fit, required=False)
    fit.add_argument("--simulate", choices=("branch", "triangle"), help="simulated views in place of --x and --y")
    _add_sizes(fit)
    _add_truth(fit)
    fit.add_argument("--kernel", action="store_true", help="the files hold kernel matrices (n, n), for a dual variant")
    _add_parameters(fit.add_argument_group("parameters of mmdma_core.MMDMA"))
    group = fit.add_argument_group(
        "which cell is which, and what is carried over; labels that one view alone has, always"
    )
    nearest = "nearest cells of each in matches.csv (of x) and matches_y.csv; default: 5; 0: no such files"
    group.add_argument("--matches", type=int, default=5, metavar="K", help=nearest)
    over = "carry the other view's features over to the cells of this one: features_x.npy, features_y.npy"
    group.add_argument("--features", choices=(*_VIEWS, "both"), help=over)
    fit.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_output(fit, "folder of the results")

    transform = commands.add_parser("transform", help="embed new cells", description="Embed new cells with a model.")
    transform.add_argument("--model", type=Path, required=True, help="model.npz of `mmdma fit`")
    transform.add_argument("--view", choices=_VIEWS, default="x", help="which view the cells are of; default: x")
    _add_view(transform, "cells", "", required=True)
    _add_output(transform, "file, .npy or as the input (.h5ad, .h5mu)")

    evaluate = commands.add_parser("evaluate", help="metrics of two embeddings", description="Metrics, as JSON.")
    _add_views(evaluate, required=True)
    _add_truth(evaluate)
    _add_output(evaluate, "file for the JSON; default: standard output", required=False)

    simulate = commands.add_parser("simulate", help="write simulated views", description="Write x, y and match (.npy).")
    simulate.add_argument("shape", choices=("branch", "triangle"))
    _add_sizes(simulate)
    simulate.add_argument("--seed", type=int, default=4, help="default: 4, the paper's")
    _add_output(simulate, "folder")
    return parser


def _add_views(parser: argparse.ArgumentParser, required: bool) -> None:
    for name in _VIEWS:
        _add_view(parser, name, f"{name}-", required and name == "x")
    parser.add_argument("--layer", help="layer of both AnnData files")
    parser.add_argument("--obsm", help="entry of obsm of both AnnData files, such as X_pca")
    _add_layout(parser, "", "both files have")


def _add_view(parser: argparse.ArgumentParser, name: str, prefix: str, required: bool) -> None:
    formats = "a 10x folder or .h5, .h5ad .h5mu .zarr .npy .npz .csv .tsv .txt .mtx (also .gz) .pt"
    fallback = "; default: the file of --x" if name == "y" else ""
    parser.add_argument(f"--{name}", type=Path, required=required, help=f"{formats}{fallback}")
    group = parser.add_argument_group(f"what to read of --{name}")
    group.add_argument(f"--{prefix}layer", help="layer of an AnnData file")
    group.add_argument(f"--{prefix}obsm", help="entry of obsm of an AnnData file")
    group.add_argument(f"--{prefix}modality", help="modality of a MuData file")
    group.add_argument(f"--{prefix}feature-type", help="features of this type alone, such as 'Antibody Capture' of 10x")
    _add_layout(group, prefix, "the file has")


def _add_layout(group: argparse._ActionsContainer, prefix: str, has: str) -> None:
    group.add_argument(f"--{prefix}transpose", action="store_true", default=None, help=f"{has} features in rows")
    for name, what in (("header", "row"), ("index", "column")):
        text = f"{has} names in the first {what} of a table of text; default: as it looks"
        group.add_argument(f"--{prefix}{name}", action=argparse.BooleanOptionalAction, help=text)


def _add_truth(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is known, for metrics")
    group.add_argument(
        "--match", help="file: for each row of x its row of y, counted from 0, -1: unknown; names: cells of one name"
    )
    group.add_argument("--same-cells", action="store_true", help="row i of x is the same cell as row i of y")
    group.add_argument("--labels", help="file of labels, or of names and labels, or a column of obs, of both views")
    for name in _VIEWS:
        group.add_argument(f"--{name}-labels", help=f"the same of {name} alone")
    group.add_argument("--n-neighbors", type=int, default=5, help="of label transfer; default: 5")
    every = "metrics over all cells; default: beyond 50,000 over a sample, with 95 %% intervals"
    group.add_argument("--exact-metrics", action="store_true", help=every)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, default=300, help="simulated cells; default: 300")
    parser.add_argument("--p", type=int, default=1000, help="simulated features; default: 1000")
    parser.add_argument("--p-y", type=int, help="simulated features of y; default: as x")


def _add_output(parser: argparse.ArgumentParser, what: str, required: bool = True) -> None:
    parser.add_argument("--out", type=Path, required=required, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")


def _add_parameters(group: argparse._ArgumentGroup) -> None:
    """Add an option for each parameter of the estimator, with its default and what its docstring says."""
    described = _described(MMDMA.__doc__)
    for name, default in MMDMA().get_params().items():
        if name not in ("kernel", "callbacks", "verbose"):
            option, text = f"--{name.replace('_', '-')}", described[name]
            if name == "anchors":
                group.add_argument(option, type=_pair, nargs="+", metavar="X=Y", help=text)
            elif default is False:
                group.add_argument(option, action="store_true", help=text)
            elif default is True:
                group.add_argument(option, action=argparse.BooleanOptionalAction, default=True, help=text)
            else:
                shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
                kind = str if name in _TEXTS else _value
                text = f"{text} (default: {shown})"
                alone = {"nargs": "?", "const": True} if name in _FLAGS else {}
                group.add_argument(option, type=kind, default=default, metavar="VALUE", help=text, **alone)


def _described(docstring: str) -> dict[str, str]:
    """Map each parameter to what a docstring in numpydoc's sections says of it."""
    section = docstring.partition("Parameters\n")[2].partition("Attributes\n")[0]
    entries = re.findall(r"^    (\w+) : .*\n((?:        .*\n)+)", section, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".").replace("%", "%%") for name, text in entries}


def _pair(text: str) -> tuple[str, str]:
    """Read a feature of x and one of y with = between them."""
    one, equals, other = text.partition("=")
    if not (one and equals and other):
        raise argparse.ArgumentTypeError(f"{text!r} is no pair such as CD3E=CD3")
    return one, other


def _value(text: str) -> object:
    """Read a number, or several between commas with a name (uniform,0,0.1), True or False, else the text."""
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
