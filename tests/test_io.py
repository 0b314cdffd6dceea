"""AnnData and MuData read and written; labels; embeddings."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from refusals import refused

from mmdma_core import io
from mmdma_core.files.io import View, atomically, read_labels, read_view, write_embedding

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mudata"),
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
]

COUNTS = np.array([[0, 7, 0], [2, 0, 1], [0, 0, 3], [4, 0, 0]])
CELLS, FEATURES = ("c1", "c2", "c3", "c4"), ("g1", "g2", "g3")
TYPES = ["b", "a", "b", "b"]
PARAMETERS = {"variant": "primal", "seed": 3, "unbiased": True, "sigma": 1.5, "sizes": [4, 3], "names": ("a", "b")}


@pytest.fixture(params=["strings", "nullable strings"])
def strings(request):
    """How the names are stored: as anndata has done so far, or as pandas 3 would have it.

    anndata 0.12.6, the last one that pip installs beside pandas 3 on Python 3.11, cannot write the default strings of
    pandas 3 at all; files that other versions wrote must be read and added to all the same.
    """
    import anndata

    if request.param == "strings":
        with pd.option_context("future.infer_string", False):
            yield
    else:
        with pd.option_context("mode.string_storage", "python"):
            before = anndata.settings.allow_write_nullable_strings
            anndata.settings.allow_write_nullable_strings = True
            yield
            anndata.settings.allow_write_nullable_strings = before


def annotated(cells=CELLS, **more):
    import anndata

    obs = pd.DataFrame({"type": TYPES, "stage": [1, 2, 2, 1], "gap": ["u", None, "v", "v"]}, index=list(cells))
    return anndata.AnnData(scipy.sparse.csc_matrix(COUNTS), obs, pd.DataFrame(index=list(FEATURES)), **more)


@pytest.fixture
def h5ad(tmp_path, strings):
    path = tmp_path / "x.h5ad"
    data = annotated(
        layers={"scaled": COUNTS / 2.0, "bad": np.where(COUNTS == 3, np.nan, COUNTS)},
        obsm={
            "X_pca": COUNTS[:, :2].astype(np.float32),
            "frame": pd.DataFrame(COUNTS * 1.5, index=list(CELLS), columns=list(FEATURES)),
            "words": pd.DataFrame({"w": ["a", "b", "c", "d"]}, index=list(CELLS)),
        },
    )
    data.write_h5ad(path)
    return path


@pytest.fixture
def h5mu(tmp_path, strings):
    mudata = pytest.importorskip("mudata", reason="needs the extra anndata")
    path = tmp_path / "both.h5mu"
    rna, atac = annotated(layers={"scaled": COUNTS / 2.0}), annotated()
    atac.var_names = ["p1", "p2", "p3"]
    mudata.MuData({"rna": rna, "atac": atac}).write_h5mu(path)
    return path


def bare():
    return View(np.zeros((4, 2)), None, None, None, "x.npy")


def test_x_of_anndata(h5ad):
    """Integer counts in a CSC matrix become CSR in float32."""
    view = read_view(h5ad)
    assert view.matrix.format == "csr"
    assert view.matrix.dtype == np.float32
    np.testing.assert_array_equal(view.matrix.toarray(), COUNTS)
    assert (view.cells, view.features, view.path) == (CELLS, FEATURES, h5ad)
    assert {type(name) for name in view.cells + view.features} == {str}
    assert view.annotated is view.source
    np.testing.assert_array_equal(view.source.X.toarray(), COUNTS)


@pytest.mark.parametrize(
    ("key", "expected", "dtype", "features"),
    [
        ({"layer": "scaled"}, COUNTS / 2.0, np.float64, FEATURES),
        ({"obsm": "X_pca"}, COUNTS[:, :2], np.float32, None),
        ({"obsm": "frame"}, COUNTS * 1.5, np.float64, FEATURES),
    ],
)
def test_layers_and_obsm(h5ad, key, expected, dtype, features):
    view = read_view(h5ad, **key)
    assert view.matrix.dtype == dtype
    np.testing.assert_array_equal(view.matrix, expected)
    assert (view.cells, view.features) == (CELLS, features)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ({"layer": "counts"}, ["there is no layer 'counts'; layer: ", "'bad'", "'scaled'"]),
        ({"obsm": "X_umap"}, ["there is no obsm 'X_umap'; obsm: ", "'X_pca'", "'frame'"]),
        ({"layer": "scaled", "obsm": "X_pca"}, ["give layer or obsm, not both"]),
        ({"modality": "rna"}, ["modality 'rna' is for .h5mu files"]),
        ({"transpose": True}, ["transpose is for bare matrices"]),
        ({"layer": "bad"}, ["layer 'bad' must be finite in float64, row 'c3', column 'g3' holds nan"]),
        ({"obsm": "words"}, ["obsm 'words' must hold real numbers"]),
    ],
)
def test_keys_that_are_refused(h5ad, key, parts):
    refused(lambda: read_view(h5ad, **key), str(h5ad), *parts)


def test_mudata(h5mu):
    view = read_view(h5mu, modality="atac")
    np.testing.assert_array_equal(view.matrix.toarray(), COUNTS)
    assert (view.cells, view.features, view.modality) == (CELLS, ("p1", "p2", "p3"), "atac")
    np.testing.assert_array_equal(read_view(h5mu, modality="rna", layer="scaled").matrix, COUNTS / 2.0)
    refused(lambda: read_view(h5mu), "modality must be one of 'atac', 'rna'; none was given")
    refused(lambda: read_view(h5mu, modality="adt"), "one of 'atac', 'rna'; there is no 'adt'")
    refused(
        lambda: read_view(h5mu, modality="rna", layer="k"), "modality 'rna': there is no layer 'k'; layer: 'scaled'"
    )


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_cells_of_the_same_name(tmp_path, strings):
    annotated(cells=["c1", "c2", "c2", "c2"]).write_h5ad(tmp_path / "x.h5ad")
    refused(lambda: read_view(tmp_path / "x.h5ad"), "cell names must differ, 'c2' occurs 3 times")


def test_an_empty_x(tmp_path, strings):
    data = annotated(layers={"counts": COUNTS})
    data.X = None
    data.write_h5ad(tmp_path / "x.h5ad")
    refused(lambda: read_view(tmp_path / "x.h5ad"), "X is empty; layer: 'counts'; obsm: none")


@pytest.mark.filterwarnings("ignore:.*(very old version|without encoding metadata|not created by muon)")
@pytest.mark.parametrize("suffix", [".h5ad", ".h5mu"])
def test_files_of_another_kind(tmp_path, suffix):
    import h5py

    text, other, broken = (tmp_path / f"{name}{suffix}" for name in ("text", "other", "broken"))
    text.write_text("1,2\n3,4\n")
    refused(lambda: read_view(text, modality=None), str(text), f"cannot be read as a {suffix} file")
    with h5py.File(other, "w") as file:
        file["matrix/data"] = COUNTS
    refused(lambda: read_view(other), str(other), "is no file of", "it has 'matrix'")
    with h5py.File(broken, "w") as file:
        file["obs"], file["var"], file["mod/rna/obs"], file["mod/rna/X"] = 1, 2, 3, COUNTS
    modality = "rna" if suffix == ".h5mu" else None
    with h5py.File(tmp_path / f"linked{suffix}", "w") as file:
        file["obs"], file["var"], file["mod"] = (h5py.ExternalLink("gone.h5", "/") for _ in range(3))
    refused(lambda: read_view(tmp_path / f"linked{suffix}", modality=modality), f"cannot be read as a {suffix} file")
    refused(lambda: read_view(broken, modality=modality), str(broken), f"cannot be read as a {suffix} file")


def test_a_file_of_a_later_anndata(h5ad):
    import h5py

    with h5py.File(h5ad, "r+") as file:
        file["uns"].attrs["encoding-type"] = "not known yet"
    refused(lambda: read_view(h5ad), str(h5ad), "cannot be read as a .h5ad file", "not known yet", "update")


def test_labels_of_obs_and_of_files(tmp_path, h5ad, h5mu):
    view = read_view(h5ad)
    (tmp_path / "labels.txt").write_text("\n".join(TYPES) + "\n")
    for labels in (
        read_labels("type", 4, view),
        read_labels("type", 4, read_view(h5mu, modality="rna")),
        read_labels(tmp_path / "labels.txt", 4, view),
        read_labels(str(tmp_path / "labels.txt"), 4, bare()),
        read_labels(tmp_path / "labels.txt", 4),
    ):
        assert labels.tolist() == TYPES
        assert labels.dtype.kind == "U"
    assert read_labels("stage", 4, view).tolist() == [1, 2, 2, 1]
    assert read_labels("gap", 4, view).tolist() == ["u", None, "v", "v"]


def test_labels_that_are_refused(tmp_path, h5ad):
    view = read_view(h5ad)
    refused(lambda: read_labels("kind", 4, view), "'kind'", str(h5ad), "columns: 'type', 'stage', 'gap'")
    refused(lambda: read_labels("type", 4, bare()), "type: no such file")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    refused(lambda: read_labels(tmp_path / "labels.txt", 4), "labels.txt", "2 labels for 4 cells")


EMBEDDING = np.arange(8, dtype=np.float32).reshape(4, 2)


def test_an_embedding_of_a_bare_matrix(tmp_path):
    write_embedding(bare(), EMBEDDING, tmp_path / "new" / "e.npy", PARAMETERS)
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "e.npy"), EMBEDDING)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e.npy"]


@pytest.mark.parametrize("over", [False, True])
def test_an_embedding_in_anndata(tmp_path, h5ad, over):
    """All else in the file stays; a second embedding replaces the first; the file itself may be written over."""
    import anndata

    view = read_view(h5ad, layer="scaled")
    path = h5ad if over else tmp_path / "out.h5ad"
    write_embedding(view, EMBEDDING, path, {"other": 1})
    write_embedding(view, EMBEDDING + 1, path, PARAMETERS | {"none": None, "init": ("uniform", 0, 0.1), "d": {"k": 2}})
    data = anndata.read_h5ad(path)
    np.testing.assert_array_equal(data.obsm["X_mmdma"], EMBEDDING + 1)
    stored = data.uns["mmdma"]
    assert {key: stored[key] for key in ("variant", "seed", "unbiased", "sigma")} == {
        key: PARAMETERS[key] for key in ("variant", "seed", "unbiased", "sigma")
    }
    assert (stored["sizes"].tolist(), stored["names"].tolist(), stored["d"]) == ([4, 3], ["a", "b"], {"k": 2})
    assert (stored["none"], stored["init"], "other" in stored) == ("null", '["uniform", 0, 0.1]', False)
    assert tuple(data.obs_names) == CELLS
    assert list(data.obs["type"]) == TYPES
    assert set(data.layers) == {"scaled", "bad"}
    assert data.X.format == "csc"
    np.testing.assert_array_equal(read_view(path, obsm="X_mmdma").matrix, EMBEDDING + 1)
    assert over or "X_mmdma" not in anndata.read_h5ad(h5ad).obsm


def test_an_embedding_of_each_modality(tmp_path, h5mu):
    path = tmp_path / "out.h5mu"
    write_embedding(read_view(h5mu, modality="rna"), EMBEDDING, path, PARAMETERS)
    second = dataclasses.replace(read_view(h5mu, modality="atac"), path=path)
    write_embedding(second, EMBEDDING + 1, path, PARAMETERS)
    for modality, expected in (("rna", EMBEDDING), ("atac", EMBEDDING + 1)):
        view = read_view(path, modality=modality, obsm="X_mmdma")
        np.testing.assert_array_equal(view.matrix, expected)
        assert view.annotated.uns["mmdma"]["seed"] == 3
    assert "X_mmdma" not in read_view(h5mu, modality="rna").annotated.obsm


@pytest.mark.parametrize(
    ("embedding", "name", "parameters", "parts"),
    [
        (EMBEDDING[:3], "e.npy", {}, ["embedding must be 4 rows of floats", "(3, 2)"]),
        (EMBEDDING[:, 0], "e.npy", {}, ["(4,)"]),
        (EMBEDDING.astype(int), "e.npy", {}, ["int64"]),
        (EMBEDDING + np.float32(np.inf), "e.npy", {}, ["embedding must be finite"]),
        (EMBEDDING, "e.h5ad", {}, ["e.h5ad: an embedding of x.npy is written to .npy"]),
        (EMBEDDING, "e.npy", {"a": {"b": {1, 2}}}, ["parameters['a']['b'] must be text, numbers", "{1, 2}"]),
        (EMBEDDING, "e.npy", {"a/b": 1}, ["keys, got 'a/b'"]),
        (EMBEDDING, "e.npy", {1: 1}, ["keys, got 1"]),
    ],
)
def test_embeddings_that_are_refused(tmp_path, embedding, name, parameters, parts):
    refused(lambda: write_embedding(bare(), embedding, tmp_path / name, parameters), *parts)
    assert not list(tmp_path.iterdir())


def test_the_suffix_of_an_embedding_goes_with_the_view(tmp_path, h5ad):
    refused(lambda: write_embedding(read_view(h5ad), EMBEDDING, tmp_path / "e.h5mu", {}), "to .npy or .h5ad")
    write_embedding(read_view(h5ad), EMBEDDING, tmp_path / "e.npy", {})
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), EMBEDDING)


def test_a_failure_leaves_the_old_file(tmp_path, h5ad, monkeypatch):
    before = h5ad.read_bytes()

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(io, "_add_elements", full)
    with pytest.raises(OSError, match="disk full"):
        write_embedding(read_view(h5ad), EMBEDDING, h5ad, {})
    assert h5ad.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [h5ad.name]


def test_atomically(tmp_path):
    path = tmp_path / "a" / "x.txt"
    with atomically(path) as part:
        part.write_text("new")
        assert not path.exists()
        assert part.suffix == ".txt"
        written = part.stat().st_ino
    assert path.stat().st_ino == written  # renamed, not copied
    assert path.read_text() == "new"
