"""A person's matrix is read as what it is, or refused in one line; no file runs code."""

import gzip
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from refusals import refused

from mmdma_core.errors import MissingDependency
from mmdma_core.files.io import read_labels, read_match, read_view

DENSE = np.array([[0.0, 1.5, 0.0], [2.25, 0.0, 0.1]])


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (DENSE, np.float64),
        (DENSE.astype(">f8"), np.float64),
        (DENSE.astype(np.float32), np.float32),
        (DENSE.astype(np.float16), np.float32),
        (DENSE.astype(int), np.float32),
        (DENSE > 0, np.float32),
        (np.asfortranarray(DENSE), np.float64),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_dense_arrays(tmp_path, stored, dtype, suffix):
    path = tmp_path / f"x{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, stored)
    view = read_view(path)
    assert view.matrix.dtype == dtype
    assert view.matrix.flags.c_contiguous
    np.testing.assert_array_equal(view.matrix, stored.astype(dtype))
    assert (view.cells, view.features, view.source, view.path) == (None, None, None, path)
    np.testing.assert_array_equal(read_view(path, transpose=True).matrix, stored.T.astype(dtype))


@pytest.mark.parametrize("kind", ["csr_array", "csc_matrix", "coo_array", "bsr_matrix", "dia_array"])
def test_sparse_arrays_of_scipy(tmp_path, kind):
    scipy.sparse.save_npz(tmp_path / "x.npz", getattr(scipy.sparse, kind)(DENSE))
    same_sparse(read_view(tmp_path / "x.npz"))
    same_sparse(read_view(tmp_path / "x.npz", transpose=True), DENSE.T)


def test_a_sparse_array_of_zeros(tmp_path):
    scipy.sparse.save_npz(tmp_path / "x.npz", scipy.sparse.csr_array((2, 3)))
    same_sparse(read_view(tmp_path / "x.npz"), np.zeros((2, 3)))


def same_sparse(view, dense=DENSE):
    assert scipy.sparse.issparse(view.matrix)
    assert view.matrix.format == "csr"
    assert view.matrix.dtype == np.float32
    np.testing.assert_array_equal(view.matrix.toarray(), dense.astype(np.float32))


@pytest.mark.parametrize("suffix", [".mtx", ".mtx.gz"])
@pytest.mark.parametrize("end", ["\n", "", " ", "\r\n\n"])  # a blank there crashes scipy.io.mmread
def test_matrix_market(tmp_path, suffix, end):
    """10x writes integer counts of genes x cells; an entry that stands twice is summed."""
    text = "%%MatrixMarket matrix coordinate integer general\n%metadata\n3 2 3\n1 1 7\n3 2 1\n3 2 4" + end
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    same_sparse(read_view(tmp_path / f"x{suffix}", transpose=True), np.array([[7, 0, 0], [0, 0, 5]]))
    same_sparse(read_view(tmp_path / f"x{suffix}"), np.array([[7, 0], [0, 0], [0, 5]]))


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        (scipy.sparse.coo_array(DENSE), {"precision": 17}),
        (scipy.sparse.coo_array(DENSE > 0), {"field": "pattern"}),
        (scipy.sparse.coo_array(DENSE.T @ DENSE), {"symmetry": "symmetric"}),
        (scipy.sparse.coo_array((2, 3)), {}),
    ],
)
def test_what_scipy_writes_for_the_matrix_market(tmp_path, stored, options):
    scipy.io.mmwrite(tmp_path / "x.mtx", stored, **options)
    same_sparse(read_view(tmp_path / "x.mtx"), stored.toarray())


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        (DENSE, {"precision": 17}),
        (DENSE.astype(int), {}),
        (np.arange(9).reshape(3, 3) + np.arange(9).reshape(3, 3).T, {"symmetry": "symmetric"}),
    ],
)
@pytest.mark.parametrize("suffix", [".mtx", ".mtx.gz"])
@pytest.mark.parametrize("end", ["", " "])
def test_a_dense_matrix_of_the_matrix_market(tmp_path, stored, options, suffix, end):
    file = io.BytesIO()
    scipy.io.mmwrite(file, stored, **options)
    text = file.getvalue() + end.encode()
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    view = read_view(tmp_path / f"x{suffix}")
    assert isinstance(view.matrix, np.ndarray)
    np.testing.assert_array_equal(view.matrix, stored)
    np.testing.assert_array_equal(read_view(tmp_path / f"x{suffix}", transpose=True).matrix, stored.T)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (torch.tensor(DENSE, requires_grad=True), np.float64),
        (torch.tensor([[0, 1, 0], [2, 0, 0]]), np.float32),
        (torch.tensor([[0, 1.5, 0], [2.25, 0, 0]], dtype=torch.bfloat16), np.float32),
    ],
)
def test_dense_tensors(tmp_path, stored, dtype):
    torch.save(stored, tmp_path / "x.pt")
    view = read_view(tmp_path / "x.pt")
    assert view.matrix.dtype == dtype
    np.testing.assert_array_equal(view.matrix, stored.detach().to(torch.float64).numpy().astype(dtype))


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors(tmp_path, layout):
    torch.save(torch.tensor(DENSE).to_sparse(layout=layout), tmp_path / "x.pt")
    same_sparse(read_view(tmp_path / "x.pt"))


class Plant:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_planted(path, form, plant):
    objects = np.array([[plant, plant]], dtype=object)
    if form == "pickle":
        path.write_bytes(pickle.dumps(plant, protocol=2))
    elif form == "npy":
        np.save(path.open("wb"), objects, allow_pickle=True)
    elif form == "npz":
        np.savez(path.open("wb"), x=objects)
    elif form == "sparse":
        np.savez(path.open("wb"), format="coo", shape=(2, 2), data=objects, row=objects, col=objects)
    else:
        torch.save({"x": plant}, path, _use_new_zipfile_serialization=form == "torch")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".mtx", ".csv", ".h5", ".h5ad"])
@pytest.mark.parametrize("form", ["pickle", "npy", "npz", "sparse", "torch", "old torch"])
def test_no_file_runs_code(tmp_path, suffix, form):
    path, planted = tmp_path / f"x{suffix}", tmp_path / "planted"
    write_planted(path, form, Plant(planted))
    refused(lambda: read_view(path), str(path))
    refused(lambda: read_match(path, 2, 2), str(path))
    refused(lambda: read_labels(path, 2), str(path))
    assert not planted.exists()


def test_the_plant_would_be_seen(tmp_path):
    pickle.loads(pickle.dumps(Plant(tmp_path / "planted")))
    assert (tmp_path / "planted").exists()


def save(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        torch.save(content, path)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


BAD_CSR = {"format": "csr", "shape": (2, 3), "data": np.ones(2), "indices": [0, 99], "indptr": [0, 1, 2]}
MTX = b"%%MatrixMarket matrix coordinate real general\n"
NAN = np.array([[1, np.nan], [2, 3]])


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("x.xlsx", b"", ["the suffix must be one of .h5ad,", ".mtx.gz, .pt, .csv", "a 10x folder, got '.xlsx'"]),
        ("x", b"", ["got ''"]),
        ("x.npy", b"1,2\n3,4\n", ["cannot be read as a NumPy array"]),
        ("x.npy", npy(DENSE)[:-9], ["cannot be read as a NumPy array"]),
        ("x.npy", b"", ["is empty"]),
        ("x.npy", npz(x=DENSE), ["archive of arrays: name it .npz"]),
        ("x.npy", DENSE[0], ["must be a matrix", "1 dimension"]),
        ("x.npy", DENSE.astype(complex), ["real numbers", "complex128"]),
        ("x.npy", DENSE.astype(str), ["real numbers", "<U32"]),
        ("x.npy", DENSE[:1], ["at least 2 cells", "(1, 3)"]),
        ("x.npy", DENSE[:, :0], ["1 feature", "(2, 0)"]),
        ("x.npy", NAN, ["must be finite in float64, row 1, column 2 holds nan"]),
        ("x.npz", npz(a=DENSE, b=DENSE), ["must hold one array or a sparse matrix of SciPy, it holds: a, b"]),
        ("x.npz", npy(DENSE), ["cannot be read as an archive"]),
        ("x.npz", npz(x=DENSE)[:-40], ["cannot be read as an archive"]),
        ("x.npz", npz(**BAD_CSR), ["no valid sparse matrix"]),
        ("x.npz", npz(**BAD_CSR | {"indptr": [0, 1, 9]}), ["cannot be read as an archive"]),
        ("x.npz", npz(**BAD_CSR | {"indices": [0, 2], "data": [1, np.inf]}), ["row 2, column 3 holds inf"]),
        ("x.npz", npz(**BAD_CSR | {"indices": [0, 1], "data": [1, 1e300]}), ["finite in float32", "holds inf"]),
        ("x.npz", npz(**BAD_CSR | {"indices": [0, 1], "data": [1, 1j]}), ["real numbers"]),
        ("x.npz", npz(**BAD_CSR | {"format": 3}), ["cannot be read as an archive"]),
        ("x.npz", npz(**BAD_CSR | {"shape": 3}), ["cannot be read as an archive"]),
        ("x.npz", npz(**BAD_CSR | {"format": "lil"}), ["cannot be read as an archive"]),
        ("x.mtx", b"1,2\n3,4\n", ["cannot be read as a Matrix Market file"]),
        ("x.mtx", MTX + b"2 2 1\n3 1 1\n", ["Matrix Market"]),
        ("x.mtx", MTX + b"2 2 2\n1 1 1\n", ["Matrix Market"]),
        ("x.mtx", MTX + b"2 2 1\n0 1 1\n", ["Matrix Market"]),
        ("x.mtx", MTX + b"2 2 1\n1 1 1\n1 1 1\n", ["must have 1 lines of 3 numbers, it has (2, 3)"]),
        ("x.mtx", MTX + b"2 2 1\n1 1 x\n", ["Matrix Market"]),
        ("x.mtx", MTX + b"2 2 1\n1 1 1\0\n", ["Matrix Market", "NUL"]),  # crashes scipy.io.mmread
        ("x.mtx", MTX + b"2 2\n1 1 1\n", ["Matrix Market"]),
        ("x.mtx", MTX + b"2 2 1\n1 1 nan\n", ["Matrix Market"]),
        ("x.mtx", MTX + b"2 2 1\n1 2 inf\n", ["row 1, column 2 holds inf"]),
        ("x.mtx", MTX.replace(b"general", b"symmetric") + b"2 2 1\n1 2 1\n", ["lower triangle"]),
        ("x.mtx", MTX.replace(b"general", b"symmetric") + b"3 2 1\n2 1 1\n", ["Matrix Market"]),
        ("x.mtx", MTX.replace(b"real", b"complex") + b"2 2 1\n1 1 1 1\n", ["must be real", "it is complex general"]),
        ("x.mtx", MTX.replace(b"coordinate", b"array") + b"2 2\n1\n1\n1\n", ["must have 4 lines of 1 number"]),
        ("x.mtx", MTX.replace(b"coordinate", b"array") + b"2 2\n1 1\n1 1\n", ["it has (2, 2)"]),
        ("x.mtx", MTX.replace(b"coordinate", b"array") + b"2 2 4\n1\n1\n1\n1\n", ["Matrix Market"]),
        ("x.mtx", MTX.replace(b"coordinate real", b"array pattern") + b"2 2\n", ["must be real or integer"]),
        ("x.mtx", MTX.replace(b"coordinate", b"tensor") + b"2 2\n", ["its first line is"]),
        ("x.mtx.gz", gzip.compress(b"%%MatrixMarket", mtime=0), ["Matrix Market"]),
        ("x.mtx.gz", gzip.compress(MTX + b"2 2 1\n1 1 1\n", mtime=0)[:-9], ["Matrix Market"]),
        ("x.gz", b"", ["got '.gz'"]),
        ("x.pt", b"1,2\n3,4\n", ["cannot be read as a tensor"]),
        ("x.pt", b"", ["is empty"]),
        ("x.pt", {"a": torch.ones(2, 2), "b": 1}, ["must hold one tensor, it holds a dict with the keys a, b"]),
        ("x.pt", [torch.ones(2, 2)], ["it holds a list"]),
        ("x.pt", torch.ones(3), ["must be a matrix", "1 dimension"]),
        ("x.pt", torch.ones(2, 2, dtype=torch.complex64), ["real numbers", "complex64"]),
        ("x.pt", torch.tensor(NAN), ["row 1, column 2 holds nan"]),
        ("x.pt", torch.ones(2, 2, device="meta"), ["cannot be read as a matrix"]),
        (
            "x.pt",
            torch.sparse_coo_tensor([[0, 9], [0, 1]], [1.0, 2.0], (2, 2), check_invariants=False),
            ["index 9 exceeds matrix dimension"],
        ),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, parts):
    save(tmp_path / name, content)
    refused(lambda: read_view(tmp_path / name), str(tmp_path / name), *parts)


def test_a_file_that_is_not_there(tmp_path):
    refused(lambda: read_view(tmp_path / "x.npy"), str(tmp_path / "x.npy"), "no such file")
    refused(lambda: read_view(tmp_path), str(tmp_path), "a folder")


@pytest.mark.parametrize("option", ["layer", "obsm", "modality", "feature_type"])
def test_keys_are_for_annotated_files(tmp_path, option):
    np.save(tmp_path / "x.npy", DENSE)
    refused(lambda: read_view(tmp_path / "x.npy", **{option: "k"}), f"{option} 'k' is for ", ".h5mu", ".npy file")


@pytest.mark.parametrize(("package", "name"), [("anndata", "x.h5ad"), ("mudata", "x.h5mu")])
def test_without_the_packages(tmp_path, monkeypatch, package, name):
    (tmp_path / name).write_bytes(b"something")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"needs {package}: pip install 'mmdma-benchmark\[anndata\]'"):
        read_view(tmp_path / name, modality="rna" if package == "mudata" else None)


def test_tensors_with_a_pytorch_that_is_not_safe(tmp_path, monkeypatch):
    torch.save(torch.ones(2, 2), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1+cu128"))
    with pytest.raises(MissingDependency, match=r"x\.pt: PyTorch 2\.9\.1\+cu128 may run code .* needs 2\.10"):
        read_view(tmp_path / "x.pt")


def test_the_packages_are_imported_when_needed(tmp_path):
    np.save(tmp_path / "x.npy", DENSE)
    code = "import sys; from mmdma_core import io; io.read_view(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.npy"], capture_output=True, text=True, check=True)
    assert not {"anndata", "mudata", "h5py"} & set(done.stdout.split())
