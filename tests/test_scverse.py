"""AnnData and MuData in memory or in files: what MMDMA takes of them, and `match`, which writes into them."""

import json
import re

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import zarr
from embeddings import PLAIN
from refusals import refused

from mmdma_core import MMDMA, match, simulate_counts
from mmdma_core.matching.command_line import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore:Cannot join columns"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
    pytest.mark.filterwarnings("ignore:Setting element `.obsm"),  # what anndata says of its views
]

N = 40
rng = np.random.default_rng(0)
COUNTS = scipy.sparse.csr_array(rng.poisson(1.0, (N, 8)))  # integers
OTHER = rng.normal(size=(N, 5)).astype(np.float32)
QUICK = {
    "variant": "primal",
    "n_components": 2,
    "n_epochs": 5,
    "n_starts": 1,
    "loss_every": 5,
    "random_state": 0,
} | PLAIN
NAMES = tuple(f"g{i}" for i in range(8))


def fit(x, y=OTHER, **options):
    return MMDMA(**QUICK).fit(x, y, **options)


EXPECTED = fit(COUNTS.astype(np.float32)).embedding_x_


@pytest.fixture
def rna():
    obs = pd.DataFrame({"type": pd.Categorical(["b", "a"] * (N // 2))}, index=[f"c{i}" for i in range(N)])
    data = anndata.AnnData(scipy.sparse.csc_matrix(COUNTS), obs, pd.DataFrame(index=list(NAMES)))
    data.raw = data.copy()
    data.layers["twice"] = 2 * COUNTS.toarray()
    data.obsm["X_pca"] = OTHER[:, :3].copy()
    data.obsm["frame"] = pd.DataFrame(OTHER[:, :3], index=data.obs_names, columns=["a", "b", "c"])
    return data


@pytest.fixture
def protein():
    return anndata.AnnData(OTHER.copy(), pd.DataFrame(index=[f"c{i}" for i in range(N)]))


@pytest.fixture
def both(rna, protein):
    return mudata.MuData({"rna": rna, "prot": protein})


def test_x_of_anndata_and_its_names(rna):
    model = fit(rna)
    np.testing.assert_array_equal(model.embedding_x_, EXPECTED)
    assert (model.feature_names_x_, model.feature_names_y_) == (NAMES, None)
    assert (model.representation_x_, model.representation_y_) == (("X", None), None)
    np.testing.assert_allclose(model.transform(rna), EXPECTED, atol=1e-5)
    np.testing.assert_allclose(model.transform(rna[:1]), EXPECTED[:1], atol=1e-5)
    with pytest.raises(ValueError, match="fitted with other features, or in another order"):
        model.transform(rna[:, ::-1])


@pytest.mark.parametrize(
    "form",
    [
        "a view",
        "raw",
        "a frame",
        "a sparse frame",
        "CSC",
        "h5ad",
        "h5ad, X",
        "a view of h5ad",
        "h5py",
        "zarr",
    ],
)
def test_whatever_holds_the_same_matrix(tmp_path, rna, form):
    rna.write_h5ad(tmp_path / "x.h5ad")
    rna.write_zarr(tmp_path / "x.zarr")
    with h5py.File(tmp_path / "x.h5ad") as file:
        given = {
            "a view": lambda: anndata.concat([rna, rna[:3]], index_unique="-", label="which")[:N],
            "raw": lambda: rna.raw,
            "a frame": rna.to_df,
            "a sparse frame": lambda: pd.DataFrame.sparse.from_spmatrix(COUNTS),
            "CSC": lambda: rna.X,
            "h5ad": lambda: anndata.read_h5ad(tmp_path / "x.h5ad", backed="r"),
            "h5ad, X": lambda: anndata.read_h5ad(tmp_path / "x.h5ad", backed="r").X,
            "a view of h5ad": lambda: anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")[:N],
            "h5py": lambda: file["X"],
            "zarr": lambda: zarr.open_group(tmp_path / "x.zarr", mode="r")["X"],
        }[form]()
        np.testing.assert_allclose(fit(given).embedding_x_, EXPECTED, atol=1e-5)


def test_dense_arrays_in_files(tmp_path, rna):
    rna.write_h5ad(tmp_path / "x.h5ad")
    rna.write_zarr(tmp_path / "x.zarr")
    expected = fit(2 * COUNTS.toarray()).embedding_x_
    with h5py.File(tmp_path / "x.h5ad") as file:
        np.testing.assert_array_equal(fit(file["layers/twice"]).embedding_x_, expected)
    layer = zarr.open_group(tmp_path / "x.zarr", mode="r")["layers/twice"]
    np.testing.assert_array_equal(fit(layer).embedding_x_, expected)


def test_what_dask_puts_off_is_computed():
    """As anndata hands it out where it reads lazily; dask itself is not needed to tell."""
    put_off = type("Array", (), {"__module__": "dask.array.core", "compute": lambda self: COUNTS})()
    np.testing.assert_array_equal(fit(put_off).embedding_x_, EXPECTED)


def test_layers_and_obsm(tmp_path, rna):
    model = fit(rna, rna, use_rep=("frame", None), layer=(None, "twice"))
    assert (model.feature_names_x_, model.feature_names_y_) == (("a", "b", "c"), NAMES)
    assert (model.representation_x_, model.representation_y_) == (("frame", None), ("X", "twice"))
    np.testing.assert_array_equal(model.embedding_y_, fit(OTHER[:, :3], 2 * COUNTS.toarray()).embedding_y_)
    assert fit(rna, use_rep="X_pca").n_features_in_ == 3
    a, b = MMDMA(**QUICK).fit_transform(rna, OTHER, layer="twice")
    np.testing.assert_array_equal(a, fit(2 * COUNTS.toarray()).embedding_x_)
    model.save(tmp_path / "model.npz")
    for kept in (model, MMDMA.load(tmp_path / "model.npz")):  # what fit took is taken again
        np.testing.assert_allclose(kept.transform(rna, "y"), model.embedding_y_, atol=1e-5)
        np.testing.assert_allclose(kept.transform(rna, "x"), model.embedding_x_, atol=1e-5)
        np.testing.assert_allclose(kept.transform(rna, "y", use_rep="X"), model.embedding_y_ / 2, atol=1e-5)
    assert np.isfinite(b).all()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"use_rep": "X_umap"}, "X: there is no obsm 'X_umap'; obsm: 'X_pca', 'frame'"),
        ({"layer": "counts"}, "X: there is no layer 'counts'; layer: 'twice'"),
        ({"layer": "twice", "use_rep": "X_pca"}, "X: give use_rep or layer, not both"),
        ({"use_rep": 3}, "use_rep must be a name, or a pair of them for X and Y, got 3"),
        ({"layer": ("twice", "twice")}, "layer 'twice' is for AnnData, Y is a ndarray"),
    ],
)
def test_what_is_not_there_is_refused(rna, options, part):
    refused(lambda: fit(rna, **options), part)


def test_objects_that_hold_no_matrix_are_refused(rna, both):
    refused(lambda: fit(OTHER, layer="twice"), "layer 'twice' is for AnnData, X is a ndarray")
    refused(lambda: fit(both), "X is MuData: give one modality, as mdata['rna'], or both to mmdma_core.match")
    refused(lambda: fit(rna[:0]), "X must have at least 2 cells, its shape is (0, 8)")
    del rna.X
    refused(lambda: fit(rna), "X: X is empty; layer: 'twice'; obsm: 'X_pca', 'frame'")


@pytest.mark.parametrize("make", [np.asarray, scipy.sparse.csr_array, pd.DataFrame, anndata.AnnData])
def test_one_cell_is_transformed_and_none_is_an_error(make):
    model = fit(COUNTS.toarray().astype(np.float32))
    cells = COUNTS.toarray().astype(np.float32)
    np.testing.assert_allclose(model.transform(make(cells[:1])), EXPECTED[:1], atol=1e-5)
    refused(lambda: model.transform(make(cells[:0])), "X must have at least 1 cell, its shape is (0, 8)")


def test_a_cell_without_a_row_says_how_to_give_it():
    model = fit(COUNTS)
    refused(
        lambda: model.transform(OTHER[0], "y"), "Expected 2D array", "one cell is a matrix with one row, such as X[:1]"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one.npy", "one.csv", "one.mtx", "one.h5ad"])
def test_the_command_transforms_one_cell(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    cells = COUNTS.toarray().astype(np.float32)
    model = fit(cells)
    model.save("model.npz")
    for path, rows in ((name, cells[:1]), (f"no_{name}", cells[:0])):
        if name.endswith("npy"):
            np.save(path, rows)
        elif name.endswith("csv"):
            pd.DataFrame(rows, columns=NAMES).to_csv(path)
        elif name.endswith("mtx"):
            scipy.io.mmwrite(path, scipy.sparse.coo_array(rows))
        else:
            anndata.AnnData(rows).write_h5ad(path)
    assert main(["transform", "--model", "model.npz", "--cells", name, "--out", "e.npy"]) == 0
    np.testing.assert_allclose(np.load("e.npy"), EXPECTED[:1], atol=1e-5)
    capsys.readouterr()
    assert main(["transform", "--model", "model.npz", "--cells", f"no_{name}", "--out", "n.npy"]) == 2
    assert f"no_{name}" in capsys.readouterr().err


def test_match_writes_into_both_modalities(tmp_path, both, caplog):
    before = both["rna"].X.copy()
    with caplog.at_level("INFO", "mmdma_core"):
        assert match(both, x="rna", y="prot", **QUICK) is both
    assert f"loss {both['rna'].uns['mmdma']['loss']:.4g} after 5 epochs" in caplog.text
    np.testing.assert_array_equal(both["rna"].obsm["X_mmdma"], EXPECTED)
    np.testing.assert_array_equal(both["prot"].obsm["X_mmdma"], fit(COUNTS).embedding_y_)
    np.testing.assert_array_equal(both["rna"].X.toarray(), before.toarray())
    both.write(tmp_path / "both.h5mu")
    again = mudata.read_h5mu(tmp_path / "both.h5mu")
    for modality in ("rna", "prot"):
        about = again[modality].uns["mmdma"]
        assert set(about) == {"params", "loss", "version"}
        assert about["loss"] == pytest.approx(fit(COUNTS).starts_["loss"].min())
        assert (about["params"]["n_epochs"], about["params"]["use_rep"]) == (5, "X")
        assert json.loads(about["params"]["init"]) == ["uniform", 0.0, 0.1]


def test_match_takes_representations_of_each(both):
    match(both, use_rep=("X_pca", "X"), **QUICK)  # of two modalities, these two
    np.testing.assert_array_equal(both["rna"].obsm["X_mmdma"], fit(OTHER[:, :3]).embedding_x_)
    assert both["rna"].uns["mmdma"]["params"]["use_rep"] == "X_pca"
    match(both, x="prot", y="rna", layer=(None, "twice"), **QUICK)
    np.testing.assert_array_equal(both["rna"].obsm["X_mmdma"], fit(OTHER, 2 * COUNTS.toarray()).embedding_y_)
    assert both["rna"].uns["mmdma"]["params"]["layer"] == "twice"


def test_match_of_two_anndata_objects_and_copies(tmp_path, rna, protein, both):
    x, y = match(rna, protein[:30], copy=True, **QUICK)
    assert (x.obsm["X_mmdma"].shape, y.obsm["X_mmdma"].shape) == ((N, 2), (30, 2))
    assert "X_mmdma" not in rna.obsm
    assert "mmdma" not in protein.uns
    copied = match(both, copy=True, **QUICK)
    np.testing.assert_array_equal(copied["rna"].obsm["X_mmdma"], EXPECTED)
    assert "X_mmdma" not in both["rna"].obsm
    part = rna[:20]
    written = match(part, protein, **QUICK)
    assert written[0] is part
    assert written[1] is protein
    assert (part.obsm["X_mmdma"].shape, part.is_view, "X_mmdma" in rna.obsm) == ((20, 2), False, False)
    rna.write_h5ad(tmp_path / "x.h5ad")
    backed = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    in_memory, _ = match(backed, protein, copy=True, **QUICK)
    assert not in_memory.isbacked
    match(backed, protein, **QUICK)
    for data in (in_memory, backed):
        np.testing.assert_array_equal(data.obsm["X_mmdma"], EXPECTED)


def test_a_view_of_mudata_is_written_to(both):
    part = both[:20]
    match(part, **QUICK)
    assert part["rna"].obsm["X_mmdma"].shape == (20, 2)
    assert "X_mmdma" not in both["rna"].obsm


def test_match_refuses_what_it_cannot_take(tmp_path, rna, protein, both):
    refused(lambda: match(rna), "match takes MuData or two AnnData objects, the second is a NoneType")
    refused(lambda: match(OTHER, OTHER), "the first is a ndarray")
    refused(lambda: match(rna, rna), "both modalities are the same object")
    refused(lambda: match(both, x="rna", y="rna"), "both modalities are the same object")
    refused(lambda: match(both, rna), "not MuData and another object")
    refused(lambda: match(rna, protein, x="rna"), "x and y are modalities of MuData, the first object is a AnnData")
    refused(lambda: match(both, x="rna"), "y must be one of the modalities 'rna', 'prot'; none was given")
    refused(lambda: match(both, x="rna", y="atac"), "y must be one of", "there is no 'atac'")
    three = mudata.MuData({"a": rna, "b": protein, "c": protein.copy()})
    refused(lambda: match(three), "x must be one of the modalities 'a', 'b', 'c'; none was given")
    both.write(tmp_path / "both.h5mu")
    backed = mudata.read_h5mu(tmp_path / "both.h5mu", backed="r")
    refused(lambda: match(backed, copy=True), "copy=True is not for MuData that lies in a file")
    with pytest.raises(TypeError, match="n_epoch"):
        match(rna, protein, n_epoch=3)
    assert "X_mmdma" not in rna.obsm


@pytest.fixture(scope="module")
def cells():
    """Counts of 300 cells, genes and proteins; the types of the genes' cells are known but for some."""
    x, y, types, _ = simulate_counts(300, seed=4)
    obs = pd.DataFrame({"type": pd.Categorical(types)}, index=[f"x{i}" for i in range(300)])
    obs.loc[obs.index[:5], "type"] = None
    genes = anndata.AnnData(scipy.sparse.csr_array(x), obs, pd.DataFrame(index=[f"gene{i}" for i in range(600)]))
    genes.layers["twice"] = 2 * genes.X
    proteins = anndata.AnnData(y, pd.DataFrame(index=[f"y{i}" for i in range(300)]))
    return genes, proteins, types


AXES = {"starts": "symmetries", "n_starts": 0, "n_epochs": 0, "random_state": 0}


def test_match_says_which_cell_is_which_and_carries_labels_and_features_over(cells):
    genes, proteins, types = cells
    genes, proteins = match(genes, proteins, copy=True, matches=True, labels="type", features=True, **AXES)
    model = MMDMA(**AXES).fit(genes, proteins)
    assert genes.obs["mmdma_match"].tolist() == [f"y{k}" for k in model.matches("x", k=1)["match"]]
    assert proteins.obs["mmdma_match"].str.startswith("x").all()
    assert genes.obs["mmdma_confidence"].between(0, 1).all()
    assert (proteins.obs["type"].to_numpy() == types).mean() > 0.95
    assert proteins.obs["type"].dtype == "category"
    assert proteins.obs["type_confidence"].between(0, 1).all()
    assert list(genes.obs) == ["type", "mmdma_match", "mmdma_confidence", "mmdma_lacking"]
    carried = genes.obsm["mmdma_features"]
    assert list(carried.columns) == list(proteins.var_names)
    np.testing.assert_allclose(carried, model.transfer_features(proteins.X, "x"))
    found = proteins.obsm["mmdma_features"]
    assert found.shape == (300, 600)
    for k in range(5, 300, 50):
        assert np.corrcoef(found.to_numpy()[k], genes.X[[k]].toarray()[0])[0, 1] > 0.5


def test_features_of_a_layer_are_carried_over_and_nothing_else_is_written(cells):
    genes, proteins, _ = cells
    proteins = proteins.copy()
    proteins.layers["twice"] = 2 * proteins.X
    genes, proteins = match(genes, proteins, copy=True, features="twice", **AXES)
    model = MMDMA(**AXES).fit(genes, proteins)
    np.testing.assert_allclose(genes.obsm["mmdma_features"], 2 * model.transfer_features(proteins.X, "x"))
    assert list(genes.obs) == ["type"]
    assert list(proteins.obs) == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("kind", "neither modality has 'kind' in obs; columns: 'type', 'both', 'empty'; 'both'"),
        ("both", "both modalities have 'both' in obs"),
        ("empty", "no cell has a label, 'empty' is empty"),
    ],
)
def test_labels_that_cannot_be_carried_over_are_refused_before_the_fit(cells, labels, said):
    genes, proteins = (view.copy() for view in cells[:2])
    genes.obs["both"] = proteins.obs["both"] = "a"
    genes.obs["empty"] = None
    with pytest.raises(ValueError, match=re.escape(said)):
        match(genes, proteins, labels=labels, n_epochs=-1)


def test_a_layer_of_features_that_is_not_there_is_refused_before_the_fit(cells):
    with pytest.raises(ValueError, match="there is no layer 'twice'"):
        match(*cells[:2], features="twice", n_epochs=-1)
