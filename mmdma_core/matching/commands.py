"""The commands of mmdma: each takes the parsed options, reads and writes files, and returns the exit status.

The files of a fit are written one after the other: one that cannot be written costs none of the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from mmdma_core.files import io
from mmdma_core.files.atomic import Unwritten, atomically, check_writable
from mmdma_core.files.formats import of_share
from mmdma_core.files.names import are_numbers
from mmdma_core.fused.ranks import world
from mmdma_core.inputs import Ranks, as_device
from mmdma_core.matching import metrics, model_file, pictures
from mmdma_core.matching.estimator import MMDMA
from mmdma_core.matching.joined import joined
from mmdma_core.matching.matches import MOST
from mmdma_core.settings import is_whole, plain
from mmdma_core.simulation import simulate as simulate_views

_LOG = logging.getLogger("mmdma_core")
_INTERRUPTED = 130
_WRITTEN = ("embedding_x.npy", "embedding_y.npy", "overlap.csv", "starts.csv", "loss.csv", "metrics.json", "model.npz")
_WRITTEN += ("matches.csv", "matches_y.csv", "labels_x.csv", "labels_y.csv", "features_x.npy", "features_y.npy")
_PICTURES = ("loss.png", "embedding.png")


@dataclasses.dataclass
class Truth:
    """What is known of two views: the match of their cells and labels, each None if it is not.

    unknown  why names make no match, of views that have names
    """

    match: np.ndarray | None
    labels_x: np.ndarray | None
    labels_y: np.ndarray | None
    unknown: str | None = None


def fit(options: argparse.Namespace) -> int:
    """Write embeddings, model, losses, metrics and two pictures into a folder; of several ranks the first does."""
    with joined(options.device.startswith("cuda") or (options.device == "auto" and torch.cuda.is_available())) as ranks:
        return _fit(options, ranks)


def transform(options: argparse.Namespace) -> int:
    """Write the embedding of new cells into a file."""
    _keep_file(options.out, options.overwrite)
    view = io.read_view(options.cells, **_keys(options, ""), least=1)
    _LOG.info("cells: %s", _described(view))
    model = MMDMA.load(options.model)
    io.check_suffix(view, options.out)
    copied = options.out.suffix != ".npy"
    size = view.n_cells * getattr(model, f"weights_{options.view}_").shape[1] * 4
    check_writable({options.out: size + (view.path.stat().st_size if copied else 0)})
    embedding = model.transform(view, view=options.view)
    io.write_embedding(view, embedding, options.out, {"model": str(options.model), "view": options.view})
    print(options.out)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Print the metrics of two embeddings."""
    if options.out:
        _keep_file(options.out, options.overwrite)
        check_writable({_overlap_path(options.out): 0})
    x, y = _read_views(options)
    found = _metrics(x.matrix, y.matrix, _read_truth(options, x, y), options)
    _say_notes(found)
    text = json.dumps(_written(found), indent=1)
    print(text)
    if options.out:
        _write_text(text, options.out)
        if found.overlap is not None:
            _write_table(_overlap(found), _overlap_path(options.out))
    return 0


def simulate(options: argparse.Namespace) -> int:
    """Write x.npy, y.npy and match.npy into a folder."""
    _make_folder(options.out, options.overwrite, ("x.npy", "y.npy", "match.npy"))
    widths = options.p, options.p if options.p_y is None else options.p_y
    sizes = [max(0, 4 * options.n * width) for width in widths]  # what cannot be is refused below
    check_writable({options.out / f"{name}.npy": size for name, size in zip("xy", sizes, strict=True)})
    x, y, match = simulate_views(options.shape, options.n, options.p, options.seed, p_y=options.p_y)
    for name, array in (("x", x.numpy()), ("y", y.numpy()), ("match", match)):
        io.write_array(array, options.out / f"{name}.npy")
        print(options.out / f"{name}.npy")
    return 0


def _fit(options: argparse.Namespace, ranks: Ranks) -> int:
    """Fit as one rank."""
    first = ranks.rank == 0
    if not 0 <= options.matches <= MOST:
        raise ValueError(f"--matches must be from 0 to {MOST}, got {options.matches}")
    if options.device != "auto":
        as_device(options.device)  # what it may refuse, before the views are read
    if first:
        _make_folder(options.out, options.overwrite, _WRITTEN)
    else:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    views, truth = _given(options, (ranks.rank, ranks.size))
    parameters = {name: getattr(options, name) for name in MMDMA().get_params() if hasattr(options, name)}
    parameters |= {"kernel": "precomputed" if options.kernel else "linear", "verbose": not options.quiet and first}
    model = MMDMA(**parameters)
    _embedding_paths(options.out, views)  # before the work, what it may refuse
    if first:
        check_writable(_sizes(options, views, model))
    begin = time.perf_counter()
    model.fit(*views)
    seconds = time.perf_counter() - begin
    for name in ("embedding_x_", "embedding_y_", "lacking_x_", "lacking_y_"):
        own = getattr(model, name)
        whole = world(len(own)).gather(torch.from_numpy(own.astype(np.float32))).numpy()
        setattr(model, name, whole.astype(own.dtype))
    if first:
        _write_fit(options, model, views, truth, seconds)
    return _INTERRUPTED if model.interrupted_ else 0


def _given(options: argparse.Namespace, share: tuple[int, int]) -> tuple[list[io.View], Truth]:
    """Read both views, of several ranks the rows of this one, and on the first rank what is known of them."""
    if options.simulate:
        if options.x or options.y:
            raise ValueError("--simulate makes both views: give it, or --x and --y")
        if options.match or options.labels or options.x_labels or options.y_labels or options.same_cells:
            raise ValueError("--simulate knows the match, and there are no labels: leave --match and --labels out")
        rows = of_share(options.n, share)
        x, y, match = simulate_views(options.simulate, options.n, options.p, p_y=options.p_y, rows=rows)
        names = [(f"simulated-{name}.npy", view.numpy()) for name, view in (("x", x), ("y", y))]
        views = [io.View(view, path=Path(name), n=options.n, first=rows.start) for name, view in names]
        return views, Truth(match, None, None)
    views = _read_views(options, share)
    truth = _read_truth(options, *views) if share[0] == 0 else Truth(None, None, None)
    return views, truth


def _read_views(options: argparse.Namespace, share: tuple[int, int] = (0, 1)) -> list[io.View]:
    if options.x is None:
        raise ValueError("give --x and --y, or --simulate")
    options.y = options.y or options.x
    views = [io.read_view(getattr(options, name), **_keys(options, f"{name}_"), share=share) for name in "xy"]
    same = options.x == options.y and _keys(options, "x_") == _keys(options, "y_")
    if same:
        raise ValueError(
            f"{options.x}: x and y are the same; give --y, or --x-modality and --y-modality, "
            "or --x-feature-type and --y-feature-type"
        )
    for name, view in zip("xy", views, strict=True):
        _LOG.info("%s: %s", name, _described(view))
    return views


def _keys(options: argparse.Namespace, prefix: str) -> dict[str, Any]:
    """Say what to read of a view: its own options, else those of both."""
    keys = ("layer", "obsm", "modality", "feature_type", "transpose", "header", "index")
    own = {key: getattr(options, f"{prefix}{key}") for key in keys}
    found = {key: getattr(options, key, None) if value is None else value for key, value in own.items()}
    if getattr(options, f"{prefix}layer") or getattr(options, f"{prefix}obsm"):  # one of its own replaces both
        found |= {key: getattr(options, f"{prefix}{key}") for key in ("layer", "obsm")}
    return found | {"transpose": bool(found["transpose"])}


def _described(view: io.View) -> str:
    """Say what was read, in one line."""
    n, p = view.matrix.shape
    form = "sparse" if scipy.sparse.issparse(view.matrix) else "dense"
    names = [
        f"no {what} names" if given is None else f"first {what} {given[0]!r}"
        for what, given in (("cell", view.cells), ("feature", view.features))
    ]
    return f"{n:,} cell{'s' * (n > 1)} x {p:,} feature{'s' * (p > 1)}, {form}, {', '.join(names)}"


def _read_truth(options: argparse.Namespace, x: io.View, y: io.View) -> Truth:
    n_x, n_y = x.n_cells, y.n_cells
    if options.match and options.same_cells:
        raise ValueError("--match and --same-cells exclude each other")
    if options.n_neighbors < 1:
        raise ValueError(f"--n-neighbors must be at least 1, got {options.n_neighbors}")
    if options.same_cells and n_x != n_y:
        raise ValueError(f"--same-cells: x has {n_x} cells and y has {n_y}: is one of them transposed?")
    unknown = None
    if options.match == "names":
        match = io.align_by_name(x, y, insist=True)
        if match is None:
            raise ValueError(f"--match names: {io.compare_names(x, y) or 'a view has no names of cells'}")
        _LOG.info("match: %s of %s cells of x by name", f"{np.count_nonzero(match >= 0):,}", f"{n_x:,}")
    elif options.match:
        match = io.read_match(options.match, n_x, n_y)
    elif options.same_cells:
        match = np.arange(n_x)
    else:
        match, compared = io.align_by_name(x, y), io.compare_names(x, y)
        if compared is not None:
            _LOG.info("match: %s", compared)
            if match is None and not any(are_numbers(view.cells) for view in (x, y)):
                unknown = compared
    labels = []
    for name, view in (("x", x), ("y", y)):
        source = getattr(options, f"{name}_labels") or options.labels
        labels.append(io.read_labels(source, view.n_cells, view) if source else None)
    return Truth(match, *labels, unknown)


def _embedding_paths(out: Path, views: list[io.View]) -> list[Path]:
    """Say where the embeddings go: copies of AnnData and MuData files under their names, else embedding_x.npy and _y.

    Two modalities of one MuData file share a copy. Raises ValueError if a copy would take an input's place.
    """
    names = [view.path.name if view.copied else f"embedding_{name}.npy" for name, view in zip("xy", views, strict=True)]
    files, modalities = {view.path.resolve() for view in views}, {view.modality for view in views}
    if names[0] == names[1] and not (len(files) == 1 and len(modalities) == 2):
        names = [f"{name}_{file}" for name, file in zip("xy", names, strict=True)]
    paths = [out / name for name in names]
    for path in paths:
        if path.resolve() in files:
            raise ValueError(f"{path} is an input, it is kept: choose another --out")
    return paths


def _sizes(options: argparse.Namespace, views: list[io.View], model: MMDMA) -> dict[Path, int]:
    """Map what a fit writes to the bytes known before: of embeddings, weights, features, and the files to copy."""
    out = options.out
    components = plain(model.n_components)
    of_number = 4 * components if is_whole(components) else 0  # what else it is, is refused by the fit
    sizes = dict.fromkeys((out / name for name in (*_WRITTEN, *_PICTURES)), 0)
    for view, path in zip(views, _embedding_paths(out, views), strict=True):
        n, p = view.n_cells, view.matrix.shape[1]
        of_copy = view.path.stat().st_size if view.copied and path not in sizes else 0
        sizes[path] = sizes.get(path, of_copy) + n * of_number
        weights = n if model.kernel == "precomputed" else p
        sizes[out / "model.npz"] += (n + 2 * weights) * of_number  # as they were trained, and refined
    for name, view, other in zip("xy", views, views[::-1], strict=True):
        if options.features in (name, "both"):
            sizes[out / f"features_{name}.npy"] = 4 * view.n_cells * other.matrix.shape[1]
    return sizes


def _make_folder(out: Path, overwrite: bool, names: tuple[str, ...]) -> None:
    """Make the folder. Raises ValueError if it may not be overwritten, OSError if it takes no such files."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, --out must be a folder")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} holds results already: kept; --overwrite replaces them")
    check_writable(dict.fromkeys((out / name for name in names), 0))
    for name in names:  # what this run may not write anew
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def _keep_file(out: Path, overwrite: bool) -> None:
    """Raise ValueError for a file that is there and may not be overwritten, OSError for one that cannot be written."""
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already: kept; --overwrite replaces it")
    check_writable({out: 0})


def _write_fit(options: argparse.Namespace, model: MMDMA, views: list[io.View], truth: Truth, seconds: float) -> None:
    """Write what took the time first: embeddings and model; then tables, pictures, and copies of a person's files."""
    out, outputs = options.out, Outputs(options.out)
    embeddings = model.embedding_x_, model.embedding_y_
    about = model_file.described(model)
    of_path: dict[Path, list[tuple[io.View, np.ndarray]]] = {}
    for view, path, embedding in zip(views, _embedding_paths(out, views), embeddings, strict=True):
        of_path.setdefault(path, []).append((view, embedding))
    arrays = [path for path in of_path if path.suffix == ".npy"]
    for path in arrays:
        outputs.write(path.name, lambda path: _write_embeddings(of_path[path], path, about))
    outputs.write("model.npz", model.save)
    outputs.write("starts.csv", lambda path: _write_table(model.starts_, path))
    outputs.write("loss.csv", lambda path: _write_table(model.loss_history_, path))
    found = _metrics(*embeddings, truth, options)
    fitted = {"loss": about["loss"], "n_epochs": model.n_iter_, "seconds": round(seconds, 3)}
    fitted["lacking"] = [int(cells.sum()) for cells in (model.lacking_x_, model.lacking_y_)]
    fitted |= {"ambiguous": model.ambiguous_, "errors": model.errors_, "l2_normalize": model.l2_normalize_}
    text = json.dumps(_written(found) | {"fit": fitted | {"parameters": about["params"]}}, indent=1)
    outputs.write("metrics.json", lambda path: _write_text(text, path))
    if found.overlap is not None:
        outputs.write("overlap.csv", lambda path: _write_table(_overlap(found), path))
    outputs.draw("loss.png", lambda path: pictures.draw_loss(model.loss_history_, model.starts_, path))
    labels = truth.labels_x, truth.labels_y
    verdict = model_file.verdict(model)
    outputs.draw("embedding.png", lambda path: pictures.draw_embedding(*embeddings, *labels, path, verdict))
    _write_answers(outputs, options, model, views, labels)
    for name, pair in _further_embeddings(model):
        for of, embedding in zip("xy", pair, strict=True):
            outputs.write(f"{name}_{of}.npy", lambda path, embedding=embedding: io.write_array(embedding, path))
    sources = {path: of[0][0].path for path, of in of_path.items() if path not in arrays}
    for path in sorted(sources, key=lambda path: (sources[path].exists() and sources[path].stat().st_size, path)):
        outputs.write(path.name, lambda path: _write_embeddings(of_path[path], path, about))
    _report_fit(model, found, labels)
    outputs.check()
    print(out)


def _write_answers(
    outputs: Outputs, options: argparse.Namespace, model: MMDMA, both: list[io.View], known: tuple[Any, Any]
) -> None:
    """Write which cell is which, and what is carried over from the cells of one view to those of the other."""
    if world().size > 1:
        _LOG.info("matches are left out: load model.npz in one process")
        return
    views, labels = (dict(zip("xy", of, strict=True)) for of in (both, known))
    cells = {name: np.array(view.cells or range(view.n_cells)) for name, view in views.items()}
    for name, other, file in (("x", "y", "matches.csv"), ("y", "x", "matches_y.csv")):
        if options.matches:
            table = model.matches(name, options.matches)
            table = table.assign(cell=cells[name][table["cell"]], match=cells[other][table["match"]])
            outputs.write(file, lambda path, table=table: _write_table(table, path))
        if labels[name] is None and labels[other] is not None:
            found = model.transfer(labels[other], name)
            found.insert(0, "cell", cells[name])
            _LOG.info("labels of %s are carried over to %s: labels_%s.csv", other, name, name)
            outputs.write(f"labels_{name}.csv", lambda path, found=found: _write_table(found, path))
        if options.features in (name, "both"):
            values = model.transfer_features(views[other].matrix, name).astype(np.float32)
            outputs.write(f"features_{name}.npy", lambda path, values=values: io.write_array(values, path))


def _further_embeddings(model: MMDMA) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """The embeddings of other matches, where the data do not tell which is right, and of starts that are kept."""
    if model.ambiguous_:
        yield from ((f"alternative{k}", one.embeddings) for k, one in enumerate(model.alternatives_, 1))
    if model.keep_starts:
        yield from ((f"start{k}", pair) for k, pair in enumerate(model.start_embeddings_) if pair)


def _write_embeddings(of: list[tuple[io.View, np.ndarray]], path: Path, about: dict[str, Any]) -> None:
    """Write a second modality into the copy that holds the first, which does not stay without it."""
    for k, (view, embedding) in enumerate(of):
        try:
            io.write_embedding(dataclasses.replace(view, path=path) if k else view, embedding, path, about)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _report_fit(model: MMDMA, found: metrics.Evaluation, labels: tuple[np.ndarray | None, ...]) -> None:
    _LOG.info(model_file.summary(model))
    for doubt in model_file.doubts(model):
        _LOG.warning(doubt)
    for lacking, of_view in zip((model.lacking_x_, model.lacking_y_), labels, strict=True):
        if lacking.any() and of_view is not None:
            all_of, of_label = (pd.Series(of_view[rows]).value_counts() for rows in (slice(None), lacking))
            each = ", ".join(f"{label}: {count:,} of {all_of[label]:,}" for label, count in of_label.items())
            _LOG.warning("of them have the label %s", each)
    for name, value in found.values.items():
        _LOG.info("%s: %.4g%s", name, value, _sample(found, name))
    for name, reason in found.left_out.items():
        _LOG.info("%s: left out, %s", name, reason)
    _say_notes(found)


def _metrics(e_x: np.ndarray, e_y: np.ndarray, truth: Truth, options: argparse.Namespace) -> metrics.Evaluation:
    sample = None if options.exact_metrics else "auto"
    found = metrics.evaluate(e_x, e_y, truth.match, truth.labels_x, truth.labels_y, options.n_neighbors, sample)
    reasons = dict.fromkeys(metrics.OF_MATCH, truth.unknown) if truth.unknown else {}
    return dataclasses.replace(found, left_out=found.left_out | reasons)


def _say_notes(found: metrics.Evaluation) -> None:
    for note in found.notes:
        _LOG.warning("note: %s", note)


def _sample(found: metrics.Evaluation, name: str) -> str:
    """Say how well a sample of cells tells a metric; nothing where it is over all cells."""
    if name not in found.intervals:
        return ""
    (low, high), (of_x, of_y) = found.intervals[name], found.sampled[name]
    cells = f"{of_x:,} cells of each view" if of_x == of_y else f"{of_x:,} cells of x and {of_y:,} of y"
    return f" (95 %: {low:.4g} to {high:.4g}, from {cells})"


def _written(found: metrics.Evaluation) -> dict[str, Any]:
    """Return what goes into metrics.json: all but the curve of overlap, which is a table of its own."""
    keys = ("values", "intervals", "sampled", "left_out", "notes")
    return {key: getattr(found, key) for key in keys}


def _overlap(found: metrics.Evaluation) -> pd.DataFrame:
    """Return the table of k and overlap; of a sample also low and high, where the curve rises and at the last k."""
    table = pd.DataFrame({"k": np.arange(1, len(found.overlap) + 1), "overlap": found.overlap})
    if found.overlap_interval is None:
        return table
    table["low"], table["high"] = found.overlap_interval
    rises = np.diff(found.overlap, prepend=0) > 0
    rises[-1] = True
    return table[rises]


def _overlap_path(out: Path) -> Path:
    """Return the file of the curve that belongs to a file of metrics."""
    return out.with_name(f"{out.stem}_overlap.csv")


def _write_text(text: str, path: Path) -> None:
    with atomically(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomically(path) as part:
        table.to_csv(part, index=False)


class Outputs:
    """What has been written into a folder, and what could not be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved: list[str] = []
        self._lost: list[str] = []
        self._first: Unwritten | None = None

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file; where that fails an older one of its name, which it was to replace, goes too."""
        path = self._folder / name
        try:
            write(path)
        except Unwritten as error:
            self._first = self._first or error
            self._lost.append(str(path))
            with suppress(OSError):
                path.unlink(missing_ok=True)
        else:
            self._saved.append(name)

    def draw(self, name: str, draw: Callable[[Path], None]) -> None:
        """Write a picture; one that cannot be drawn costs a line in the log, and no more."""
        try:
            self.write(name, draw)
        except Exception as error:  # whatever Matplotlib makes of people's labels
            (self._folder / name).unlink(missing_ok=True)
            words = " ".join(str(error).split())
            _LOG.warning("%s is left out, it cannot be drawn: %s: %s", name, type(error).__name__, words)

    def check(self) -> None:
        """Raise Unwritten with all files that could not be written, the first reason, and what has been saved."""
        if self._first is None:
            return
        saved = f"saved: {', '.join(self._saved)}" if self._saved else "nothing could be saved"
        if "model.npz" in self._saved:
            saved += "; model.npz has both embeddings"
        raise Unwritten(self._first.errno, f"{self._first.strerror}; {saved}", ", ".join(self._lost)) from self._first
