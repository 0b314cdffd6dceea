"""AnnData in .zarr and .h5ad.gz, its types of features, and HDF5 with filters of other packages."""

import gzip
import importlib
import json
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from refusals import refused

from mmdma_core import MissingDependency
from mmdma_core.files.io import read_labels, read_view, write_embedding
from mmdma_core.matching.command_line import main

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data")

COUNTS = np.array([[0, 7, 0], [2, 0, 1], [0, 0, 3], [4, 0, 0]])
CELLS, FEATURES = ("c1", "c2", "c3", "c4"), ("g1", "g2", "p1")


@pytest.fixture
def data():
    obs = pd.DataFrame({"type": pd.Categorical(["b", "a", "b", "b"])}, index=list(CELLS))
    var = pd.DataFrame({"feature_types": ["GEX", "GEX", "ADT"]}, index=list(FEATURES))
    more = {"layers": {"half": COUNTS / 2}, "obsm": {"X_pca": COUNTS[:, :2].astype("f4")}}
    return anndata.AnnData(scipy.sparse.csc_matrix(COUNTS), obs, var, **more)


@pytest.fixture(params=["2.zarr", "3.zarr", ".h5ad.gz"])
def path(request, tmp_path, data):
    """Of zarr both versions."""
    path = tmp_path / f"x{request.param}"
    if path.suffix == ".zarr":
        with anndata.settings.override(zarr_write_format=int(request.param[0])):
            data.write_zarr(path)
    else:
        data.write_h5ad(path.with_suffix(""))
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    return path


def test_what_is_read_of_it(path):
    view = read_view(path)
    np.testing.assert_array_equal(view.matrix.toarray(), COUNTS)
    assert (view.matrix.format, view.matrix.dtype) == ("csr", np.float32)
    assert (view.cells, view.features, view.path) == (CELLS, FEATURES, path)
    np.testing.assert_array_equal(read_view(path, layer="half").matrix, COUNTS / 2)
    np.testing.assert_array_equal(read_view(path, obsm="X_pca").matrix, COUNTS[:, :2])
    assert read_labels("type", 4, view).tolist() == ["b", "a", "b", "b"]
    refused(lambda: read_view(path, layer="counts"), f"{path}: there is no layer 'counts'; layer: 'half'")
    refused(lambda: read_view(path, modality="rna"), "modality 'rna' is for .h5mu files, this is a ")


def test_a_type_of_features(path):
    view = read_view(path, feature_type="GEX")
    np.testing.assert_array_equal(view.matrix.toarray(), COUNTS[:, :2])
    assert view.features == ("g1", "g2")
    np.testing.assert_array_equal(read_view(path, layer="half", feature_type="ADT").matrix, COUNTS[:, 2:] / 2)
    refused(lambda: read_view(path, feature_type="ATAC"), "must be one of 'GEX' (2), 'ADT' (1); there is no 'ATAC'")
    refused(lambda: read_view(path, feature_type="GEX", obsm="X_pca"), "feature_type is for X and layers")


def test_without_types_of_features(tmp_path, data):
    del data.var["feature_types"]
    data.write_h5ad(tmp_path / "x.h5ad")
    refused(
        lambda: read_view(tmp_path / "x.h5ad", feature_type="GEX"), "no column 'feature_types' in var; columns: none"
    )


def test_an_embedding_goes_into_an_array(tmp_path, path):
    view = read_view(path)
    write_embedding(view, np.ones((4, 2), "f4"), tmp_path / "e.npy", {})
    assert np.load(tmp_path / "e.npy").shape == (4, 2)
    refused(lambda: write_embedding(view, np.ones((4, 2), "f4"), tmp_path / "e.h5ad", {}), "is written to .npy")


@pytest.mark.slow
def test_fit(tmp_path, path):
    quick = ["--n-epochs", "5", "--n-starts", "1", "--n-components", "1", "--loss-every", "5", "--random-state", "0"]
    types = ["--x-feature-type", "GEX", "--y-feature-type", "ADT", "--labels", "type", "--quiet"]
    assert main(["fit", "--x", str(path), *types, *quick, "--out", str(tmp_path / "out")]) == 0
    assert np.load(tmp_path / "out/embedding_y.npy").shape == (4, 1)
    assert "label_silhouette" in json.loads((tmp_path / "out/metrics.json").read_text())["values"]


def test_zarr_that_is_no_anndata(tmp_path):
    import zarr

    group = zarr.open_group(tmp_path / "x.zarr", mode="w")
    group.create_array("images", data=COUNTS)
    refused(lambda: read_view(tmp_path / "x.zarr"), "is no folder of anndata: it has no obs and var, it has 'images'")
    (tmp_path / "empty.zarr").mkdir()
    refused(lambda: read_view(tmp_path / "empty.zarr"), "empty.zarr cannot be read as a .zarr folder")
    (tmp_path / "file.zarr").write_bytes(b"PK")
    refused(lambda: read_view(tmp_path / "file.zarr"), "file.zarr must be a folder, it is a file")


@pytest.mark.parametrize("damage", ["metadata", "chunk", "no json", "pointer"])
def test_zarr_that_is_damaged(tmp_path, data, damage):
    path = tmp_path / "x.zarr"
    data.write_zarr(path)
    array = path / "X" / "data"
    chunk = next(file for file in array.rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr")))
    about = next(file for file in array.iterdir() if file.name in (".zarray", "zarr.json"))
    for file in path.glob(".zmetadata"):
        file.unlink()
    if damage == "metadata":
        about.write_text("{}")
    elif damage == "pointer":
        about.write_text("version https://git-lfs.github.com/spec/v1\n")
        return refused(lambda: read_view(path), str(about), "is a Git LFS pointer")
    elif damage == "no json":
        about.write_text("[" * 5000)
    else:
        chunk.write_bytes(chunk.read_bytes()[:5])
    return refused(lambda: read_view(path), str(path), "cannot be read as a .zarr folder")


@pytest.mark.parametrize(
    "codecs", [{"filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]}, {"compressor": {"id": "pickle"}}]
)
def test_zarr_runs_no_code(tmp_path, data, codecs):
    """What numcodecs of other versions would unpickle is refused before anything is read."""
    path = tmp_path / "x.zarr"
    data.write_zarr(path, chunks=(2, 3))
    (tmp_path / "elsewhere").mkdir()
    (path / "uns" / "plan").symlink_to(tmp_path / "elsewhere")
    about = path / "uns" / "plan" / ".zarray"
    about.write_text(json.dumps({"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "|O"} | codecs))
    refused(lambda: read_view(path), f"{path}: uns/plan/.zarray has the codec 'pickle', which could run code")


def packed(path, number, name):
    """A file of AnnData whose X says that it is packed by a filter."""
    anndata.AnnData(COUNTS.astype("f4")).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk(COUNTS.shape)
        created.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(COUNTS.shape)
        made = h5py.h5d.create(file.id, b"X", h5py.h5t.IEEE_F32LE, space, created)
        made.write_direct_chunk((0, 0), b"packed by nobody")
        file["X"].attrs.update(attributes)


def test_a_filter_that_hdf5_lacks_names_the_package_that_has_it(tmp_path):
    packed(tmp_path / "x.h5ad", 32999, "zstd")
    with pytest.raises(
        MissingDependency, match=r"x\.h5ad needs a filter of HDF5: X is packed by filter 32999"
    ) as caught:
        read_view(tmp_path / "x.h5ad")
    assert str(caught.value).endswith("pip install hdf5plugin")
    assert "\n" not in str(caught.value)


def test_the_package_with_filters_is_imported_where_it_is(tmp_path, monkeypatch, data):
    (tmp_path / "hdf5plugin.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hdf5plugin", raising=False)
    importlib.invalidate_caches()
    data.write_h5ad(tmp_path / "x.h5ad")
    read_view(tmp_path / "x.h5ad")
    assert "hdf5plugin" in sys.modules
    monkeypatch.delitem(sys.modules, "hdf5plugin")
