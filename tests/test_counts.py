"""Counts become principal components before they are matched, in `fit` and in `transform`, and only counts do."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from anndata import AnnData
from sklearn.decomposition import PCA

from mmdma_core import MMDMA, metrics, simulate, simulate_counts
from mmdma_core.matching.counts import Components, components

AXES = {"starts": "symmetries", "n_starts": 0, "n_epochs": 0, "random_state": 0}
X, Y, TYPES, _ = simulate_counts(1000, seed=4)


@pytest.fixture(scope="module")
def model():
    return MMDMA(**AXES).fit(X, Y)


def test_raw_counts_of_the_same_cells_are_matched(model):
    assert not model.ambiguous_
    assert metrics.foscttm(model.embedding_x_, model.embedding_y_, np.arange(1000)) < 0.08
    assert metrics.label_transfer_accuracy(model.embedding_x_, model.embedding_y_, TYPES, TYPES) > 0.98


def test_genes_come_to_one_depth_and_proteins_to_log_ratios():
    """By hand, as the docs say it; signs of axes are scikit-learn's."""
    depth = np.median(X.sum(1))
    logs = np.log1p(X / X.sum(1, keepdims=True) * depth)
    expected = PCA(30, random_state=0).fit_transform(logs)
    found = components(X.astype(np.float32), "X", "auto")
    assert found.depth == depth
    np.testing.assert_allclose(found.of(X.astype(np.float32))[:, :3], expected[:, :3], atol=1e-2)
    logs = np.log1p(Y)
    logs -= logs.mean(1, keepdims=True)
    found = components(Y.astype(np.float32), "Y", "counts")
    assert found.depth is None
    np.testing.assert_allclose(found.of(Y.astype(np.float32)), PCA(29).fit_transform(logs), atol=1e-2)


def test_the_depth_of_a_cell_does_not_count():
    made = Components.learnt(X.astype(np.float32))
    np.testing.assert_allclose(made.of(np.float32(3 * X[:5])), made.of(np.float32(X[:5])), atol=1e-3)
    assert np.isfinite(made.of(np.zeros((1, 600), np.float32))).all()  # an empty droplet


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csc_matrix, AnnData, pd.DataFrame])
def test_counts_in_all_that_holds_them_are_the_same(kind, model):
    other = MMDMA(**AXES).fit(kind(X), kind(Y))
    for view in "xy":
        ours, theirs = (getattr(one, f"components_{view}_") for one in (model, other))
        assert ours.depth == theirs.depth
        np.testing.assert_allclose(abs((ours.axes[:4] * theirs.axes[:4]).sum(1)), 1, atol=1e-3)
    assert metrics.foscttm(other.embedding_x_, other.embedding_y_, np.arange(1000)) < 0.08


def test_transform_does_the_same_and_a_saved_model_too(model, tmp_path):
    model.save(tmp_path / "model.npz")
    for one in (model, MMDMA.load(tmp_path / "model.npz")):
        np.testing.assert_allclose(one.transform(X[:7]), model.embedding_x_[:7], atol=1e-4)
        np.testing.assert_allclose(one.transform(scipy.sparse.csr_array(Y[:7]), "y"), model.embedding_y_[:7], atol=1e-4)
        assert one.score(X, Y) == pytest.approx(model.score(X, Y))
        assert (one.n_features_in_, one.n_features_y_, len(one.weights_x_)) == (600, 30, 30)


def test_a_model_from_before_takes_counts_as_they_are(tmp_path):
    MMDMA(preprocess="none", n_components=2, n_epochs=0, starts="symmetries").fit(X[:50], Y[:50]).save(
        tmp_path / "m.npz"
    )
    with np.load(tmp_path / "m.npz") as file:
        arrays = dict(file)
    content = json.loads(str(arrays["mmdma"]))
    del content["parameters"]["preprocess"], content["depths"]
    np.savez(tmp_path / "old.npz", **arrays | {"mmdma": json.dumps(content)})
    old = MMDMA.load(tmp_path / "old.npz")
    assert (old.preprocess, old.components_x_, old.components_y_) == ("none", None, None)
    np.testing.assert_allclose(old.transform(X[:50]), old.embedding_x_, atol=1e-5)


def test_one_line_says_what_was_found(caplog):
    caplog.set_level(logging.INFO)
    x, _, _ = simulate("branch", 1000, 12)
    MMDMA(**AXES | {"n_components": 2}).fit(x.numpy(), Y)
    assert "X: taken as it is; Y: counts, centred log-ratio, 29 principal components" in caplog.messages
    caplog.clear()
    MMDMA(**AXES | {"n_components": 2}).fit(x.numpy(), x.numpy())
    assert not [message for message in caplog.messages if "counts" in message or "taken as it is" in message]


@pytest.mark.parametrize(
    "view",
    [X - 1.0, X + 0.5, np.zeros((20, 600)), X[:, :9], np.log1p(X), X > 0],
    ids=["-1", "0.5", "0", "nine", "logged", "0 and 1"],
)
def test_what_is_no_counts_is_taken_as_it_is(view):
    assert components(view.astype(np.float32), "X", "auto") is None
    assert components(X.astype(np.float32), "X", "none") is None


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [((2, 5), -3, "row 3, column 6 holds -3"), ((999, 0), 0.25, "row 1000, column 1 holds 0.25")],
)
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array])
def test_what_holds_no_counts_is_refused_where_counts_are_asked_for(place, value, said, kind, model):
    wrong = X.astype(float)
    wrong[place] = value
    message = f"X must hold counts, whole numbers of at least 0: {said}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        MMDMA(preprocess="counts", **AXES).fit(kind(wrong), Y)
    with pytest.raises(ValueError, match=f"^{message}$"):
        model.transform(kind(wrong))


@pytest.mark.parametrize("view", [np.zeros((20, 600)), X[:20, :1]])
def test_counts_that_tell_nothing_are_refused(view):
    with pytest.raises(ValueError, match=r"^X must hold counts.*too few features, or all counts are 0$"):
        MMDMA(preprocess="counts", **AXES).fit(view, Y[:20])


def test_other_ways_are_refused():
    with pytest.raises(ValueError, match=r"^preprocess must be one of 'auto', 'counts', 'none', got 'log'$"):
        MMDMA(preprocess="log").fit(X, Y)
    with pytest.raises(ValueError, match=r"^preprocess='counts' is for features, not for kernel='precomputed'$"):
        MMDMA(preprocess="counts", kernel="precomputed").fit(X @ X.T, Y @ Y.T)


@pytest.mark.parametrize(("n", "p"), [(1, 600), (1000, 0), (10.5, 3)])
def test_counts_that_cannot_be_simulated_are_refused(n, p):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        simulate_counts(n, p=p)
