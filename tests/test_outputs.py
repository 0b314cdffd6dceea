"""What a command writes is tried before the work: a path that cannot be costs no fit, and leaves nothing."""

import errno
import os
import resource

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from embeddings import PLAIN, PLAIN_OPTIONS

from mmdma_core import MMDMA
from mmdma_core.files.atomic import Unwritten, atomically, check_writable
from mmdma_core.matching.command_line import main

N = 40
FIT = "fit --variant primal --n-epochs 2 --n-starts 1 --random-state 0 --n-components 2 --device cpu --quiet "
FIT += " ".join(PLAIN_OPTIONS)
READ = "--x x.npy --y y.npy"
LONG = "n" * 256


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate("xy"):
        np.save(f"{name}.npy", np.random.default_rng(k).normal(size=(N, (5, 4)[k])).astype(np.float32))
    (tmp_path / "file").write_text("")
    (tmp_path / "results/loss.png").mkdir(parents=True)
    (tmp_path / "taken.npy").mkdir()
    MMDMA("primal", n_components=2, n_epochs=1, n_starts=1, random_state=0, device="cpu", **PLAIN).fit(
        np.load("x.npy"), np.load("y.npy")
    ).save("model.npz")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Nothing may be trained or embedded."""
    monkeypatch.setattr(MMDMA, "transform", lambda *_, **__: pytest.fail("the work has begun"))
    for module in ("starts.train", "commands.simulate_views", "commands.metrics.evaluate"):
        monkeypatch.setattr(f"mmdma_core.matching.{module}", lambda *_, **__: pytest.fail("the work has begun"))


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def everything(folder):
    return {name: (folder / name).read_bytes() if (folder / name).is_file() else None for name in tree(folder)}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"{FIT} {READ} --out file/below", "file/below/embedding_x.npy: Not a directory"),
        (f"{FIT} {READ} --out {LONG}", "File name too long"),
        (f"{FIT} {READ} --out /sys/mmdma", "/sys/mmdma/embedding_x.npy: "),
        (f"{FIT} {READ} --out results --overwrite", "results/loss.png: a folder of this name is in its place"),
        (f"{FIT} {READ} --out new --checkpoint file/state.npz", "file/state.npz: Not a directory"),
        (f"{FIT} {READ} --out new --checkpoint taken.npy", "taken.npy: a folder of this name is in its place"),
        (f"{FIT} {READ} --out new --checkpoint {LONG}", "File name too long"),
        ("transform --model model.npz --cells x.npy --out file/e.npy", "file/e.npy: Not a directory"),
        ("transform --model model.npz --cells x.npy --out taken.npy --overwrite", "taken.npy: a folder of this name"),
        (f"transform --model model.npz --cells x.npy --out {LONG}.npy", "File name too long"),
        ("transform --model model.npz --cells x.npy --out e.csv", "an embedding of x.npy is written to .npy"),
        ("evaluate --x x.npy --y y.npy --same-cells --out file/found.json", "file/found.json: Not a directory"),
        (f"evaluate --x x.npy --y y.npy --out {'n' * 245}.json", "_overlap.csv: File name too long"),
        ("simulate branch --n 20 --p 4 --out file/below", "file/below/x.npy: Not a directory"),
        ("simulate branch --n 20 --p 4 --out /sys/mmdma", "/sys/mmdma/x.npy: "),
    ],
)
def test_a_path_that_cannot_be_written_costs_no_work(folder, no_work, capsys, command, said):
    before = everything(folder)
    assert main(command.split()) in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    after = everything(folder)
    after.pop("new", None)  # the folder of the results itself, empty
    assert after == before


@pytest.mark.parametrize(
    ("command", "size", "named"),
    [
        (f"{FIT} {READ} --out new", 500, "new/model.npz: File too large"),
        (f"{FIT} {READ} --out new", 300, "new/embedding_x.npy: File too large"),
        (f"{FIT} --x x.h5ad --y y.npy --out new", 15_000, "new/x.h5ad: File too large"),
        ("transform --model model.npz --cells x.npy --out e.npy", 300, "e.npy: File too large"),
        ("transform --model model.npz --cells x.h5ad --out e.h5ad", 15_000, "e.h5ad: File too large"),
        ("simulate branch --n 200 --p 4 --out new", 3000, "new/x.npy: File too large"),
    ],
)
def test_room_for_what_is_known_is_tried(folder, no_work, capsys, command, size, named):
    anndata.AnnData(np.load("x.npy"), obs=pd.DataFrame({"a": range(N)}, index=[f"c{k}" for k in range(N)])).write_h5ad(
        "x.h5ad"
    )
    assert (folder / "x.h5ad").stat().st_size > 15_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        assert main(command.split()) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"error: {named}" in capsys.readouterr().err


def test_there_must_be_room_for_all_together(tmp_path, monkeypatch):
    asked = []

    def fill(_, begin, size):
        asked.append((size, len(tree(tmp_path))))
        if sum(size for size, _ in asked) > 100:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill)
    check_writable({tmp_path / "a": 70, tmp_path / "c": 0})
    with pytest.raises(Unwritten, match=r"No space left on device: .*b'"):
        check_writable({tmp_path / "a": 20, tmp_path / "b": 20, tmp_path / "c": 0})
    assert asked == [(70, 1), (20, 1), (20, 2)]  # the first is still there when the second is tried
    assert tree(tmp_path) == []


def test_a_trial_leaves_what_is_there(tmp_path):
    (tmp_path / "old").write_text("kept")
    check_writable({tmp_path / "old": 10, tmp_path / "a/b/new": 10})
    assert tree(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "kept"


@pytest.mark.parametrize("name", ["n" * 251 + ".npy", "é" * 125 + ".npy"])
def test_a_name_may_be_as_long_as_the_system_takes(tmp_path, name):
    with atomically(tmp_path / name) as part:
        assert part.suffix == ".npy"
        part.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"


def old_file(path, name="old.h5ad"):
    """A file as anndata 0.6 wrote it: tables of compound type, and raw beside X."""
    rng = np.random.default_rng(0)
    cells = np.array([f"CELL{k}-1" for k in range(N)], "S9")
    with h5py.File(path / name, "w") as file:
        file["X"] = rng.normal(size=(N, 5)).astype(np.float32)
        obs = np.zeros(N, [("index", "S9"), ("n_counts", "f4"), ("louvain", "i1")])
        obs["index"], obs["n_counts"], obs["louvain"] = cells, np.arange(N), np.arange(N) % 2
        file["obs"] = obs
        genes = np.zeros(5, [("index", "S5"), ("mean", "f4")])
        genes["index"] = [f"g{k}".encode() for k in range(5)]
        file["var"] = genes
        file["obsm"] = np.array([(row,) for row in rng.normal(size=(N, 3)).astype("f4")], [("X_pca", "f4", (3,))])
        file["varm"] = np.array([(row,) for row in rng.normal(size=(5, 3)).astype("f4")], [("PCs", "f4", (3,))])
        file["uns/louvain_categories"] = np.array([b"0", b"1"])
        file["uns/pca/variance"] = np.arange(3.0)
        file["raw.X"], file["raw.var"] = file["X"][()], genes
    return path / name


@pytest.mark.filterwarnings("ignore")
def test_old_files_of_anndata_are_copied_with_all_that_is_in_them(folder):
    path = old_file(folder)
    before, content = anndata.read_h5ad(path), path.read_bytes()
    assert main([*FIT.split(), "--x", "old.h5ad", "--y", "y.npy", "--out", "new"]) == 0
    assert main(["transform", "--model", "new/model.npz", "--cells", "old.h5ad", "--out", "e.h5ad"]) == 0
    for copy in ("new/old.h5ad", "e.h5ad"):
        after = anndata.read_h5ad(copy)
        np.testing.assert_allclose(after.obsm["X_mmdma"], MMDMA.load("new/model.npz").embedding_x_, rtol=1e-4)
        assert "mmdma" in after.uns
        np.testing.assert_array_equal(after.X, before.X)
        np.testing.assert_array_equal(after.raw.X, before.raw.X)
        np.testing.assert_array_equal(after.obsm["X_pca"], before.obsm["X_pca"])
        np.testing.assert_array_equal(after.varm["PCs"], before.varm["PCs"])
        np.testing.assert_array_equal(after.uns["pca"]["variance"], before.uns["pca"]["variance"])
        assert after.obs["louvain"].tolist() == before.obs["louvain"].tolist()
        pd.testing.assert_frame_equal(after.var, before.var, check_dtype=False)
    assert path.read_bytes() == content
    assert not [name for name in tree(folder) if "trial" in name or ".part." in name]


def test_a_sparse_x_of_old_files_too(folder):
    path = old_file(folder)
    x = scipy.sparse.csr_array(np.eye(N, 5, dtype=np.float32))
    with h5py.File(path, "r+") as file:
        del file["X"], file["raw.X"], file["raw.var"]
        group = file.create_group("X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", (N, 5)
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(x, part)
    assert main([*FIT.split(), "--x", "old.h5ad", "--y", "y.npy", "--out", "new"]) == 0
    np.testing.assert_array_equal(anndata.read_h5ad("new/old.h5ad").X.toarray(), x.toarray())
