"""A disk that is full: model and embeddings come first, the file that is not there is named, and none is half there."""

import errno
import json
import resource
import shutil
from contextlib import contextmanager

import anndata
import numpy as np
import pytest
from embeddings import PLAIN_OPTIONS

from mmdma_core import MMDMA
from mmdma_core.files import io
from mmdma_core.files.atomic import Unwritten, atomically
from mmdma_core.matching.command_line import main

N = 40
FIT = "fit --variant primal --n-epochs 2 --n-starts 1 --loss-every 1 --random-state 0 --same-cells --quiet --out out "
FIT += " ".join(PLAIN_OPTIONS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate("xy"):
        view = np.random.default_rng(k).normal(size=(N, (40, 6)[k]))
        np.save(f"{name}.npy", view)
        anndata.AnnData(view).write_h5ad(f"{name}.h5ad")
    return tmp_path


@contextmanager
def files_of_at_most(size):
    """No file may be larger: what is beyond is refused by the system, as by a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def filled(monkeypatch):
    """A disk that fills during the fit: from its begin on no file may be larger."""
    before, fit = resource.getrlimit(resource.RLIMIT_FSIZE), MMDMA.fit

    def fill(size):
        def fit_and_fill(model, *views):
            fit(model, *views)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

        monkeypatch.setattr(MMDMA, "fit", fit_and_fill)

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_error_names_the_file_that_was_to_be(tmp_path):
    path = tmp_path / "a" / "x.txt"

    def write():
        with atomically(path) as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device", "the input")

    with pytest.raises(Unwritten) as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert names(path.parent) == []


def test_a_folder_that_vanishes_is_named_too(tmp_path):
    def write():
        with atomically(tmp_path / "a" / "x.txt") as part:
            part.write_text("half")
            shutil.rmtree(part.parent)

    with pytest.raises(Unwritten, match=r"No such file or directory.*a/x.txt"):
        write()


@pytest.mark.parametrize("write", [io.write_array, lambda array, path: io.write_embedding(view(), array, path, {})])
def test_an_array_says_why_it_is_not_written(tmp_path, write):
    with files_of_at_most(1000), pytest.raises(Unwritten, match=r"File too large.*e.npy"):
        write(np.zeros((N, 6)), tmp_path / "e.npy")
    assert names(tmp_path) == []


def view():
    return io.View(np.zeros((N, 6)), None, None, None, "x.npy")


def test_a_copy_whose_source_has_gone_says_so(folder):
    read = io.read_view("x.h5ad")
    (folder / "x.h5ad").unlink()
    with pytest.raises(Unwritten, match=r"x.h5ad, which it is a copy of, is no longer there.*e.h5ad"):
        io.write_embedding(read, np.zeros((N, 2)), "e.h5ad", {})


@pytest.mark.slow
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # a traceback on stderr
@pytest.mark.parametrize("suffix", ["npy", "h5ad"])
def test_model_and_embeddings_are_there_where_the_rest_is_not(folder, capsys, suffix, filled):
    filled(20_000)
    assert main([*FIT.split(), "--x", f"x.{suffix}", "--y", f"y.{suffix}"]) == 1
    lost = ["out/loss.png", "out/embedding.png"]
    saved = ["model.npz", "starts.csv", "loss.csv", "metrics.json", "overlap.csv", "matches.csv", "matches_y.csv"]
    if suffix == "h5ad":
        lost += ["out/y.h5ad", "out/x.h5ad"]  # the smaller one first
    else:
        saved = ["embedding_x.npy", "embedding_y.npy", *saved]
    said = f"File too large; saved: {', '.join(saved)}; model.npz has both embeddings\n"
    assert capsys.readouterr().err.splitlines(keepends=True)[-1] == f"error: {', '.join(lost)}: {said}"
    assert names(folder / "out") == sorted(saved)
    assert MMDMA.load(folder / "out" / "model.npz").embedding_x_.shape == (N, 5)


@pytest.mark.slow
def test_small_files_are_kept_where_the_model_is_too_large_and_stale_ones_go(folder, capsys, filled):
    assert main([*FIT.split(), "--x", "x.npy", "--y", "y.npy"]) == 0
    capsys.readouterr()
    filled(2000)
    assert main([*FIT.split(), "--x", "x.npy", "--y", "y.npy", "--overwrite"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: out/model.npz, out/")
    assert "saved: embedding_x.npy, embedding_y.npy, starts.csv" in error
    assert "has both embeddings" not in error
    assert not {"model.npz", "loss.png", "embedding.png"} & set(names(folder / "out"))


@pytest.mark.slow
def test_metrics_that_cannot_be_written_are_printed(folder, capsys):
    shutil.copy("x.npy", "other.npy")
    with files_of_at_most(10):
        assert main(["evaluate", "--x", "x.npy", "--y", "other.npy", "--same-cells", "--out", "found.json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["values"]["foscttm"] == 0
    assert printed.err.splitlines()[-1] == "error: found.json: File too large"
    assert not {"found.json", "found_overlap.csv"} & set(names(folder))
