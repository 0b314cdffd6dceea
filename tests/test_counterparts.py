"""Which cell is which after a fit, how sure that is, and what is carried over: matches, labels, features."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from refusals import refused

from mmdma_core import MMDMA, simulate

QUICK = {"n_components": 2, "starts": "symmetries", "n_starts": 0, "n_epochs": 0, "random_state": 0, "device": "cpu"}


def fitted(x, y):
    return MMDMA(**QUICK, l2_normalize=False).fit(x, y)


def views(n=1000, noise=0.0, seed=4):
    x, y, match = simulate("branch", n, 50, seed)
    rng = np.random.default_rng(seed)
    x, y = (view.numpy() + noise * rng.normal(size=view.shape) for view in (x, y))
    return x, y, match


@pytest.fixture(scope="module")
def data():
    return views()


@pytest.fixture(scope="module")
def model(data):
    return fitted(*data[:2])


def test_a_row_for_each_cell_and_each_of_its_nearest(model, data):
    table = model.matches(k=3)
    assert list(table.columns) == ["cell", "match", "distance", "mutual", "confidence", "lacking"]
    assert table["cell"].tolist() == np.repeat(np.arange(1000), 3).tolist()
    distances = np.linalg.norm(model.embedding_x_[:, None] - model.embedding_y_[None], axis=2)
    np.testing.assert_allclose(table["distance"], np.sort(distances, axis=1)[:, :3].ravel(), rtol=1e-5)
    assert (distances.argsort(axis=1)[:, 0] == table["match"][::3]).mean() > 0.99  # but for ties of float32
    near_x = [set(row) for row in distances.argsort(axis=1)[:, :3]]
    near_y = [set(row) for row in distances.argsort(axis=0)[:3].T]
    mutual = [cell in near_y[match] for cell, match in zip(table["cell"], table["match"], strict=True)]
    assert (table["mutual"] == mutual).mean() > 0.99
    assert near_x[0] == set(table["match"][:3])
    assert (table["match"][::3] == data[2]).mean() > 0.9


@pytest.mark.parametrize(("noise", "n_y"), [(0, 2000), (0.3, 2000), (1, 2000), (0.1, 1000)])
def test_confidence_is_the_share_of_matches_that_are_right(noise, n_y):
    """Whether counterparts are clear, hardly the nearest or lost among others: over bins of the confidence."""
    x, y, match = views(2000, noise)
    kept = np.random.default_rng(0).permutation(2000)[:n_y]
    of_x = pd.Series(range(n_y), kept).reindex(match).to_numpy()  # where each cell of x is in y, or NaN
    model = fitted(x, y[kept])
    for view, right in (("x", of_x), ("y", match.argsort()[kept])):
        table = model.matches(view)
        table["right"] = table["match"] == right[table["cell"]]
        assert table["confidence"].between(0, 1).all()
        bins = table.groupby((5 * table["confidence"]).astype(int)).agg(
            confidence=("confidence", "mean"), right=("right", "mean"), n=("right", "size")
        )
        bins = bins[bins["n"] >= 100]
        assert len(bins) > (noise < 1)
        assert (abs(bins["confidence"] - bins["right"]) < 0.05 + 2 * (0.25 / bins["n"]) ** 0.5).all(), bins


def test_no_cell_is_sure_of_a_match_that_the_other_view_lacks():
    x, y, match = views()
    half = fitted(x[match.argsort()][:500], y[500:])
    assert half.matches(k=1)["confidence"].max() < 0.1


def test_labels_and_features_are_those_of_the_nearest(model, data):
    match = data[2]
    of_y = np.where(data[1] @ np.linspace(-1, 1, 50) > 0, "left", "right").astype(object)
    of_y[:100] = None
    found = model.transfer(of_y)
    known = match >= 100
    assert (found["label"] == of_y[match])[known].mean() > 0.97
    assert found["confidence"].between(0.3, 1).all()
    assert found["label"].isin(["left", "right"]).all()
    for values in (data[1], scipy.sparse.csr_array(data[1])):
        carried = model.transfer_features(values)
        assert carried.shape == data[1].shape
        assert np.corrcoef(carried.ravel(), data[1][match].ravel())[0, 1] > 0.99
    np.testing.assert_allclose(model.transfer_features(np.full((1000, 1), 7.0), "y"), 7)


def test_a_cell_of_whose_nearest_none_has_a_label_has_none(model):
    of_y = np.full(1000, None)
    of_y[3] = "one"
    found = model.transfer(of_y, k=1)
    there = (model.matches(k=1)["match"] == 3).to_numpy()
    assert found["label"][there].eq("one").all()
    assert found["label"][~there].isna().all()
    assert found["confidence"].tolist() == there.astype(float).tolist()


def test_few_cells_and_cells_in_one_place():
    x, y, _ = views(8)
    model = fitted(x, np.repeat(y[:6], 2, axis=0))
    table = model.matches(k=30)
    assert len(table) == 8 * 12
    assert table[["distance", "confidence"]].notna().all(axis=None)
    assert model.transfer_features(np.eye(12)).sum(axis=1) == pytest.approx(1)


def test_a_model_from_its_file_has_the_same_matches(model, tmp_path):
    model.save(tmp_path / "model.npz")
    pd.testing.assert_frame_equal(MMDMA.load(tmp_path / "model.npz").matches("y"), model.matches("y"))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda model: model.matches("z"), "view must be 'x' or 'y', got 'z'"),
        (lambda model: model.matches(k=0), "k must be a whole number from 1 to 30, got 0"),
        (lambda model: model.matches(k=2.5), "k must be a whole number from 1 to 30, got 2.5"),
        (lambda model: model.transfer(["a"]), "labels must have one entry for each of the 1000 cells, got shape (1,)"),
        (lambda model: model.transfer([None] * 1000), "no cell has a label"),
        (lambda model: model.transfer_features(np.ones(1000)), "a row for each of the 1000 cells, got shape (1000,)"),
    ],
)
def test_what_cannot_be_is_said(model, ask, said):
    refused(lambda: ask(model), said)


def test_cells_at_one_point_are_all_alike():
    """Nothing tells them apart: no match is sure, and all labels have one vote."""
    x, y, _ = views(200)
    model = fitted(x, y)
    model.embedding_x_, model.embedding_y_ = np.zeros((200, 2)), np.zeros((200, 2))
    assert (model.matches()["confidence"] == 0).all()
    assert model.transfer(["a"] * 200)["confidence"].eq(1).all()


def test_neighbours_are_those_of_the_embeddings_that_are_there_now(model):
    before = model.matches(k=1)["match"]
    again = MMDMA(**QUICK).fit(*views(300)[:2])
    assert len(again.matches(k=1)) == 300
    again.embedding_x_ = model.embedding_x_
    again.embedding_y_ = model.embedding_y_
    again.lacking_x_ = model.lacking_x_
    assert (again.matches(k=1)["match"] == before).all()
