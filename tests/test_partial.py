"""Cells that the other view lacks are found, told of, and left out of the match; where none are lacking, none are."""

import json
import logging

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist

from mmdma_core import MMDMA, match, metrics, simulate, simulate_counts
from mmdma_core.kernels import gaussian_kernel
from mmdma_core.matching import partial, starts
from mmdma_core.matching.command_line import main
from mmdma_core.matching.partial import _nearest_mean, _projected, _Weighted

AXES = {"starts": "symmetries", "n_starts": 0, "n_epochs": 0, "random_state": 0, "device": "cpu"}


def sides(n, seed=4):
    """Two views of a triangle, row by row, and which of its four parts a cell is of: 3 is one whole side."""
    x, y, match = simulate("triangle", n, 30, seed)
    return x.numpy(), y.numpy()[match], match // (n // 4)


def fitted(x, y, **parameters):
    return MMDMA(n_components=2, l2_normalize=False, **AXES | parameters).fit(x, y)


@pytest.mark.parametrize(("n", "seed"), [(400, 4), (400, 5), (400, 6), (4000, 4)])
@pytest.mark.parametrize("lacks", ["x", "y"])
def test_a_side_that_one_view_lacks_is_found_and_left_out(n, seed, lacks):
    """What is left of a triangle has a mirror image that fits as well: so the match is ambiguous, one of both right."""
    x, y, side = sides(n, seed)
    there = np.flatnonzero(side != 3)
    model = fitted(x, y[there]) if lacks == "y" else fitted(x[there], y)
    way, right = 1 if lacks == "y" else -1, []
    others = [(other.embeddings, other.lacking) for other in model.alternatives_]
    for pair, both in [((model.embedding_x_, model.embedding_y_), (model.lacking_x_, model.lacking_y_)), *others]:
        (whole, part), (found, none) = pair[::way], both[::way]
        assert 0.1 < found.mean() < 0.3
        assert not none.any()
        near = metrics.foscttm(whole[there], part, np.arange(len(there))) < 0.1
        right.append(near and found[side == 3].mean() > 0.6 and found[side != 3].mean() < 0.02)
    assert any(right)
    assert model.ambiguous_
    assert right[0] or n == 4000
    chosen = model.starts_.index[model.starts_["chosen"]]
    assert len(chosen) == 1
    assert chosen[0] not in [other.start for other in model.alternatives_]


@pytest.mark.parametrize(("gone", "seed"), [(None, 5), ("monocyte", 0)])
def test_a_type_of_cells_that_one_view_lacks_is_found_and_gets_no_labels(gone, seed):
    x, y, types, _ = simulate_counts(1000, seed)
    there = types != gone
    model = MMDMA(**AXES).fit(x, y[there])
    labels = model.transfer(types[there])
    if gone is None:
        assert not model.lacking_x_.any()
        assert (labels["label"] == types).mean() > 0.95
        return
    assert model.lacking_x_[~there].mean() > 0.9
    assert model.lacking_x_[there].mean() < 0.2
    assert not model.lacking_y_.any()
    told = there & ~model.lacking_x_
    assert (labels["label"][told] == types[told]).mean() > 0.98
    assert labels["label"][model.lacking_x_].isna().all()
    assert (labels["confidence"][model.lacking_x_] == 0).all()
    table = model.matches(k=2)
    assert (table["lacking"] == np.repeat(model.lacking_x_, 2)).all()
    assert (table["confidence"][table["lacking"]] == 0).all()


def test_fit_and_match_say_how_many_and_of_which_labels(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    x, y, side = sides(400)
    there = side != 3
    np.save("x.npy", x)
    np.save("y.npy", y[there])
    np.save("sides.npy", side)
    options = "--n-components 2 --starts symmetries --n-starts 0 --n-epochs 0 --random-state 0 --l2-normalize False"
    files = "--x x.npy --y y.npy --x-labels sides.npy --out out --quiet"
    assert main(["fit", *options.split(), *files.split()]) == 0
    model = MMDMA.load("out/model.npz")
    count = int(model.lacking_x_.sum())
    said = f"{count} of 400 cells of x have no counterpart in y"
    assert said in caplog.messages
    assert f"of them have the label 3: {count} of 100" in caplog.messages
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["fit"]["lacking"] == [count, 0]
    assert pd.read_csv("out/matches.csv")["lacking"].sum() == 5 * count
    caplog.clear()
    one, two = anndata.AnnData(x), anndata.AnnData(y[there])
    match(one, two, matches=True, n_components=2, l2_normalize=False, **AXES)
    assert said in caplog.messages
    assert one.obs["mmdma_lacking"].sum() == count


def test_it_is_kept_in_the_model(tmp_path):
    x, y, side = sides(400)
    model = fitted(x, y[side != 3])
    model.save(tmp_path / "model.npz")
    again = MMDMA.load(tmp_path / "model.npz")
    for name in ("lacking_x_", "lacking_y_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    np.testing.assert_allclose(again.transform(y[side != 3], "y"), model.embedding_y_, atol=1e-5)


def test_nothing_is_looked_for_where_the_clouds_fit(monkeypatch):
    monkeypatch.setattr(partial, "_Weighted", None)
    for shape in ("branch", "triangle"):
        x, y, _ = simulate(shape, 500, 20)
        model = fitted(x.numpy(), y.numpy())
        assert not model.lacking_x_.any()
        assert not model.lacking_y_.any()


def test_without_refine_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(starts, "partial", None)
    x, y, side = sides(200)
    assert not fitted(x, y[side != 3], refine=False).lacking_x_.any()


def test_the_gradient_is_that_of_the_value():
    rng = np.random.default_rng(0)
    a, b, theta = (rng.normal(size=shape) for shape in ((30, 3), (20, 3), (4, 3)))
    w, u = (of / of.sum() for of in (rng.random(30), rng.random(20)))
    weighted = _Weighted(torch.from_numpy(a), torch.from_numpy(b), theta)
    weighted.weights = [torch.from_numpy(w), torch.from_numpy(u)]
    _, gradient = weighted.value_and_gradient(theta, 0.7)
    for k, (i, j) in enumerate(np.ndindex(theta.shape)):
        step = np.zeros_like(theta)
        step[i, j] = 1e-6
        up, down = (weighted.value_and_gradient(theta + sign * step, 0.7)[0] for sign in (1, -1))
        assert gradient[k] == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-8)
    q = b @ theta[:-1] + theta[-1]
    kernel = [np.exp(-cdist(*pair, "sqeuclidean") / 1.4) for pair in ((a, a), (a, q), (q, q))]
    value = w @ kernel[0] @ w - 2 * w @ kernel[1] @ u + u @ kernel[2] @ u
    assert weighted.value(0.7) == pytest.approx(value)


def test_the_weights_are_those_of_the_nearest_mean():
    """Half of the points are drawn from where all others lie: these get all of the weight."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(50, 2)), 20 + rng.normal(size=(50, 2))
    near, points = (torch.from_numpy(of) for of in (near, np.concatenate([near, far])))
    mean = gaussian_kernel(points, near, 1.0).mean(1)
    start = torch.full((100,), 0.01, dtype=torch.float64)
    weights = _nearest_mean(gaussian_kernel(points, points, 1.0), mean, start).numpy()
    np.testing.assert_allclose(weights[:50], 0.02, atol=1e-4)
    np.testing.assert_allclose(weights[50:], 0, atol=1e-4)


def test_weights_are_projected_onto_those_that_are_allowed():
    rng = np.random.default_rng(0)
    weights = _projected(torch.from_numpy(rng.normal(size=50)), 0.04)
    assert float(weights.sum()) == pytest.approx(1)
    assert weights.min() >= 0
    assert weights.max() <= 0.04
    np.testing.assert_allclose(_projected(weights, 0.04), weights, atol=1e-9)
