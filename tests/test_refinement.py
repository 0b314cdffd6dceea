"""The right match: chosen among symmetries, refined by an affine map, and said to be ambiguous where it is."""

import json
import logging
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from embeddings import PLAIN

from mmdma_core import MMDMA, metrics, simulate
from mmdma_core.matching import choice, pictures, refinement
from mmdma_core.matching.command_line import main
from mmdma_core.matching.refinement import COARSE, FINE, Clouds, Discrepancy
from mmdma_core.matching.symmetries import Axes, starting_values

CPU = torch.device("cpu")
FROM_AXES = {"starts": "symmetries", "n_epochs": 0, "n_starts": 0, "random_state": 0, "device": "cpu"}
AS_THEY_ARE = FROM_AXES | {"l2_normalize": False}


def simulated(shape="branch", n=300, p=20, seed=5, **more):
    x, y, match = simulate(shape, n, p, seed, **more)
    return x.numpy(), y.numpy(), match


def fitted(x, y, **parameters):
    return MMDMA(**AS_THEY_ARE | parameters).fit(x, y)


def foscttm(model, match, ties=0.5):
    return metrics.foscttm(model.embedding_x_, model.embedding_y_, match, ties)


X, Y, MATCH = simulated()


def other_cells(n=300, seed=4):
    """The views of two halves of one population: no cell is in both."""
    x, y, match = simulated(n=n, seed=seed)
    cells = np.random.default_rng(seed).permutation(n)
    return x[cells[: n // 2]], y[match][cells[n // 2 :]]


@pytest.fixture(scope="module")
def ambiguous():
    return fitted(*other_cells())


@pytest.mark.parametrize("shape", ["branch", "triangle"])
@pytest.mark.parametrize("seed", [4, 5, 6, 7, 8])
def test_the_right_match_is_chosen(shape, seed):
    """Half of these end in a mirrored match by the lowest loss."""
    x, y, match = simulated(shape, 1000, 50, seed)
    model = MMDMA(**FROM_AXES).fit(x, y)
    assert foscttm(model, match) < 0.002
    assert not model.ambiguous_


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(25_000, 20), (100_000, 50)])
def test_the_right_match_of_many_cells(n, p):
    """Beyond those of which all pairs are taken: all cells by Fourier features.

    Of the 100,000 the map is at rest late, and what is left of it would count against the right match at fine widths.
    """
    x, y, match = simulated("branch", n, p, 4, noise="fast" if n < 100_000 else "exact")
    model = fitted(x, y)
    assert metrics.evaluate(model.embedding_x_, model.embedding_y_, match, sample=1000).values["foscttm"] < 0.002
    assert not model.ambiguous_


def clouds(n_x=220, n_y=180, d=3, seed=0, of_y=None):
    rng = np.random.default_rng(seed)
    e_x = rng.gamma(2.0, size=(n_x, d)) * np.arange(d, 0, -1) + 4
    e_y = rng.gamma(2.0, size=(n_y, d)) @ rng.normal(size=(d, d)) - 1 if of_y is None else of_y(e_x)
    return Clouds.of(e_x, e_y, CPU), e_x, e_y


@pytest.fixture(params=["exact", "Fourier"])
def passes(request, monkeypatch):
    if request.param == "Fourier":
        monkeypatch.setattr(refinement, "EXACT_UP_TO", 0)


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_the_gradient_of_the_discrepancy(sigma):
    both, _, _ = clouds()
    discrepancy = Discrepancy(both, sigma)
    theta = both.as_they_are() + 0.1
    _, gradient = discrepancy(theta)
    step = 3e-3
    for k, of_k in enumerate(np.eye(theta.size)):
        moved = (step * of_k).reshape(theta.shape)
        slope = (discrepancy.value(theta + moved) - discrepancy.value(theta - moved)) / (2 * step)
        assert slope == pytest.approx(gradient[k], abs=2e-3 * abs(gradient).max())


@pytest.mark.usefixtures("passes")
def test_the_discrepancy_is_the_unbiased_mmd(request):
    both, _, _ = clouds()
    theta = both.as_they_are()
    points = both.a.double(), both.moved(theta).double()

    def mean(a, b, within):
        kernels = torch.exp(-(torch.cdist(a, b) ** 2) / (2 * FINE))
        return float((kernels.sum() - len(a)) / (len(a) * (len(a) - 1)) if within else kernels.mean())

    a, q = points
    right = mean(a, a, True) + mean(q, q, True) - 2 * mean(a, q, False)
    near = 0.1 if "Fourier" in request.node.name else 1e-4  # of random frequencies
    assert Discrepancy(both, FINE).value(theta) == pytest.approx(right, rel=near)


def test_a_map_and_the_embeddings_it_is_of():
    both, e_x, e_y = clouds()
    A, c = both.of_embeddings(both.as_they_are())
    np.testing.assert_allclose(A, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(c, 0, atol=1e-10)
    theta = np.random.default_rng(1).normal(size=(4, 3))
    A, c = both.of_embeddings(theta)
    mean, axes, _, _ = both.units
    moved = both.moved(theta).numpy() @ axes.T + mean
    np.testing.assert_allclose(e_y @ A + c, moved, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both.a.numpy() @ axes.T + mean, e_x, rtol=1e-4, atol=1e-4)
    assert both.a.var(0, correction=0).sum() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    "given", [{}, {"center": True}, {"l2_normalize": True}, {"scale": False}, {"center": True, "l2_normalize": True}]
)
def test_new_cells_are_refined_as_those_of_the_fit(tmp_path, given):
    model = fitted(X, Y + 1, **given)
    assert model.intercept_y_.any()
    model.save(tmp_path / "model.npz")
    for kept in (model, MMDMA.load(tmp_path / "model.npz")):
        for view, cells in (("x", X), ("y", Y + 1)):
            embedding = getattr(model, f"embedding_{view}_")
            np.testing.assert_allclose(kept.transform(cells, view), embedding, atol=1e-4 * abs(embedding).max())
        assert kept.score(X, Y + 1) == pytest.approx(model.score(X, Y + 1))


def test_an_ambiguous_match_comes_back_from_its_file(tmp_path, ambiguous):
    ambiguous.save(tmp_path / "model.npz")
    again = MMDMA.load(tmp_path / "model.npz")
    assert again.ambiguous_
    assert again.errors_ == ambiguous.errors_
    assert again.get_params() == ambiguous.get_params()
    pd.testing.assert_frame_equal(*(model.starts_.drop(columns="stopped") for model in (again, ambiguous)))
    for one, other in zip(again.alternatives_, ambiguous.alternatives_, strict=True):
        assert (one.start, one.discrepancy) == (other.start, other.discrepancy)
        np.testing.assert_array_equal(one.embeddings[1], other.embeddings[1])
        np.testing.assert_array_equal(one.intercept, other.intercept)


def test_a_model_of_before_there_was_a_refinement(tmp_path):
    """A file without the arrays and keys that have come with it."""
    model = MMDMA("primal", n_components=2, n_epochs=5, random_state=0, **PLAIN | {"l2_normalize": True}).fit(X, Y)
    model.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        arrays = {name: file[name] for name in file.files if name not in ("intercept_y_", "trained_x", "trained_y")}
    content = json.loads(str(arrays.pop("mmdma")))
    for name in ("scale", "starts", "refine", "keep_starts"):
        del content["parameters"][name]
    for name in ("l2_normalize_", "scale_x_", "scale_y_", "ambiguous_", "errors_"):
        del content["scalars"][name]
    del content["alternatives"]
    np.savez(tmp_path / "old.npz", mmdma=json.dumps(content), **arrays)
    old = MMDMA.load(tmp_path / "old.npz")
    for view, cells in (("x", X), ("y", Y)):
        np.testing.assert_array_equal(old.transform(cells, view), model.transform(cells, view))
    assert old.score(X, Y) == model.score(X, Y)
    assert (old.ambiguous_, old.alternatives_, old.refine, old.starts) == (False, [], False, "random")


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_other_cells_of_one_population_are_ambiguous(seed):
    model = fitted(*other_cells(seed=seed))
    assert model.ambiguous_
    assert 0 <= model.errors_ < 3
    other = model.alternatives_[0]
    assert other.start != model.starts_.index[model.starts_["chosen"]][0]
    e_y = other_cells(seed=seed)[1] / model.scale_y_ @ other.weights[1] + other.intercept
    np.testing.assert_allclose(e_y, other.embeddings[1], atol=1e-4)
    assert np.linalg.norm(other.embeddings[1] - model.embedding_y_) > 0.5 * np.linalg.norm(model.embedding_y_)


def test_an_ambiguous_match_is_told_by_the_log_and_not_by_that_of_a_clear_one(caplog, monkeypatch, tmp_path):
    drawn = []
    draw = pictures.draw_embedding
    monkeypatch.setattr(pictures, "draw_embedding", lambda *given: drawn.append(given[-1]) or draw(*given))
    monkeypatch.chdir(tmp_path)
    asked = ("--starts", "symmetries", "--n-epochs", "0", "--n-starts", "0", "--random-state", "0", "--quiet")
    told = []
    for name, views in (("halves", other_cells()), ("same", (X, Y))):
        for of, view in zip("xy", views, strict=True):
            np.save(f"{of}.npy", view)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert main(["fit", "--x", "x.npy", "--y", "y.npy", *asked, "--l2-normalize", "False", "--out", name]) == 0
        told.append([line for line in caplog.messages if line.startswith("ambiguous: another match")])
    halves, same = tmp_path / "halves", tmp_path / "same"
    assert [len(lines) for lines in told] == [1, 0]
    assert drawn == [told[0][0], None]
    assert [json.loads((out / "metrics.json").read_text())["fit"]["ambiguous"] for out in (halves, same)] == [
        True,
        False,
    ]
    model = MMDMA.load(halves / "model.npz")
    for of, embedding in zip("xy", model.alternatives_[0].embeddings, strict=True):
        np.testing.assert_array_equal(np.load(halves / f"alternative1_{of}.npy"), embedding)
    assert not list(same.glob("alternative*"))


def test_the_embeddings_of_all_starts_are_kept_where_that_is_asked_for():
    model = fitted(X, Y, starts="both", n_starts=1, n_epochs=3, keep_starts=True)
    assert len(model.start_embeddings_) == len(model.starts_) == 4
    chosen = model.starts_.index[model.starts_["chosen"]][0]
    np.testing.assert_array_equal(model.start_embeddings_[chosen][0], model.embedding_x_)
    views = [view / scale for view, scale in ((X, model.scale_x_), (Y, model.scale_y_))]
    trained = [view @ weights for view, weights in zip(views, model.trained_weights_, strict=True)]
    np.testing.assert_allclose(model.start_embeddings_[chosen][1], trained[1], atol=1e-5)
    assert not hasattr(fitted(X, Y), "start_embeddings_")


def test_starts_that_pair_the_same_cells_are_one_match():
    model = fitted(X, Y, starts="both", n_starts=2, n_epochs=3, keep_starts=True)
    table = model.starts_
    assert list(table.columns) == [
        *("from", "seed", "loss", "n_epochs", "seconds", "stopped"),
        *("discrepancy_before", "discrepancy", "match", "chosen"),
    ]
    assert table["from"].tolist() == 2 * ["random"] + 3 * ["symmetries"]
    assert table["chosen"].sum() == 1
    assert table["match"].min() == 0
    assert sorted(set(table["match"])) == list(range(int(table["match"].max()) + 1))
    assert (table["discrepancy"] < table["discrepancy_before"]).all()
    again = fitted(X, Y, starts="random", n_starts=1, n_epochs=3, random_state=0)
    twice = fitted(X, Y, starts="random", n_starts=2, n_epochs=3, random_state=0)
    assert twice.starts_["discrepancy_before"][0] == pytest.approx(again.starts_["discrepancy_before"][0])


@pytest.mark.parametrize("kind", ["dense", "sparse", "kernel", "dual", "primal-fourier"])
def test_all_that_is_fitted_is_refined(kind):
    views = {"sparse": [scipy.sparse.csr_array(v * (abs(v) > 0.5)) for v in (X, Y)], "kernel": [X @ X.T, Y @ Y.T]}
    more = {"kernel": {"kernel": "precomputed"}, "dual": {"variant": "dual"}, "primal-fourier": {"variant": kind}}
    given = {"starts": "both", "n_starts": 1, "n_epochs": 2, "learning_rate": 1e-5} | more.get(kind, {})
    model = fitted(*views.get(kind, (X, Y)), **given)
    assert model.starts_["from"].tolist() == ["random", "symmetries", "symmetries", "symmetries"]
    assert foscttm(model, MATCH) < 0.01
    e_y = model.transform(views.get(kind, (X, Y))[1], "y")
    np.testing.assert_allclose(e_y, model.embedding_y_, atol=1e-3 * abs(model.embedding_y_).max())


def test_the_lowest_loss_stands_for_a_match_that_several_starts_have_found():
    both, _, _ = clouds(of_y=lambda e_x: e_x[::-1] * [1, -1, 1])
    found = choice.choose([choice.candidate(k, loss, both) for k, loss in enumerate((2.0, 1.0, 3.0))])
    assert [one.match for one in found.candidates] == [0, 0, 0]
    assert (found.chosen.start, found.others, found.errors) == (1, [], None)


def test_clouds_that_lie_far_apart_are_refined_from_one_mean():
    """Where no kernel reaches from one to the other, MMD2 has no slope."""
    both, _, _ = clouds(of_y=lambda e_x: e_x + 1000)
    found = choice.candidate(0, 0.0, both)
    assert found.before > 0.1
    assert found.found.discrepancy < 0


def test_an_axis_of_rounding_is_not_blown_up():
    both, _, _ = clouds(of_y=lambda e_x: e_x * [1, 1, 1e-9])
    assert both.spread[1, 2] >= 1e-3 * both.spread[1, 0]
    assert max(abs(theta).max() for theta in refinement._symmetries(both.spread, np.random.default_rng(0))) <= 1e3


def test_rows_have_one_length_where_the_depth_of_one_view_hides_the_match():
    depth = np.random.default_rng(0).lognormal(0, 1, (len(X), 1))
    assert [fitted(x, Y, l2_normalize="auto").l2_normalize_ for x in (X, depth * X)] == [False, True]


@pytest.mark.parametrize("offset", [0, 3])
def test_the_axes_lie_upon_each_other_in_their_means(offset):
    """Of views that are not centred their mean has an embedding that is nearly constant, which is taken away."""
    x, y = X - X.mean(0) + offset, Y - Y.mean(0) + offset
    for e, weights in zip((x, y), starting_values(Axes.of(x, 2), Axes.of(y, 2), CPU, 1, 0)[0], strict=True):
        assert (abs((e @ weights).mean(0)) < 0.1 * (e @ weights).std(0)).all()


def test_the_chosen_map_is_at_rest_at_the_coarse_width():
    x, y = other_cells()
    model = fitted(x, y)
    both = Clouds.of(model.embedding_x_.astype(float), model.embedding_y_.astype(float), CPU)
    assert abs(Discrepancy(both, COARSE)(both.as_they_are())[1]).max() < 0.3 / len(x)


def test_rotations_are_tried_where_axes_are_arbitrary():
    apart, alike = [1.0, 0.5, 0.2, 0.1], [1.0, 0.9, 0.2, 0.1]
    signs_and_orders = 2**3 * 6
    for of_y, more in ((apart, 0), (alike, refinement._ROTATIONS)):
        maps = refinement._symmetries(np.array([apart, of_y]), np.random.default_rng(0))
        assert len(maps) == signs_and_orders + more


def test_labels_that_a_match_has_exchanged_are_noted():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    e_x, e_y = (10.0 * labels[:, None] + rng.normal(size=(200, 2)) for _ in "xy")
    note = "label transfer is below chance (0, 0.5): the match has exchanged the labels"
    assert note in metrics.evaluate(e_x, e_y, None, labels, 1 - labels).notes
    assert "chance" not in str(metrics.evaluate(e_x, e_y, None, labels, labels).notes)
    assert "chance" not in str(metrics.evaluate(e_x, e_y, None, labels, rng.permutation(labels)).notes)


def disc():
    """A disc, and the same cells turned: no axis has more variance than another."""
    rng = np.random.default_rng(0)
    radius, angle = np.sqrt(rng.random(400)), 2 * np.pi * rng.random(400)
    turned = (np.array([radius * np.cos(angle + by), radius * np.sin(angle + by)]).T for by in (0, 0.7))
    return [flat @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:2] for flat in turned]


def line():
    along = np.random.default_rng(0).exponential(size=(300, 1))
    return along @ np.ones((1, 7)), along @ np.arange(1.0, 9)[None]


def half_at_one_point():
    x, y = X.copy(), Y[MATCH]
    x[:150], y[:150] = x[0], y[0]
    return x, y


BAD = {
    "one direction": (line, {}, "right"),
    "equal variances": (disc, {"n_components": 2}, "right"),
    "one component": (lambda: (X, Y[MATCH]), {"n_components": 1}, "ambiguous"),
    "three cells": (lambda: (X[:3], Y[MATCH][:3]), {"n_components": 2}, "ambiguous"),
    "half at one point": (half_at_one_point, {}, "right"),
    "all at one point": (lambda: (np.repeat(X[:1], 50, 0), Y[:50]), {}, "said"),
    "all of both at one point": (lambda: (np.repeat(X[:1], 50, 0), np.repeat(Y[:1], 50, 0)), {}, "said"),
    "few features": (lambda: (X[:, :3], Y[MATCH][:, :4]), {}, "right"),
    "zeros": (lambda: (0 * X, Y), {}, "said"),
    "sparse zeros": (lambda: (scipy.sparse.csr_array(0 * X), Y), {}, "said"),
    "a kernel of zeros": (lambda: (np.zeros((40, 40)), np.zeros((40, 40))), {"kernel": "precomputed"}, "said"),
    "zeros in a dual": (lambda: (0 * X, Y), {"variant": "dual"}, "said"),
    "far from zero": (lambda: (X + 1e4, Y[MATCH]), {}, "right or ambiguous"),
    "very large and very small": (lambda: (X * 1e15, Y[MATCH] * 1e-15), {}, "right"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:n_components")
def test_hard_input_gives_a_right_match_or_says_so(name, caplog):
    make, given, expected = BAD[name]
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error", RuntimeWarning)
        if expected == "said":
            with pytest.raises(ValueError, match="all cells of a view lie at one point, nothing tells them apart"):
                fitted(*make(), **given)
            given = given | {"starts": "both", "n_epochs": 1, "n_starts": 1}
        model = fitted(*make(), **given)
    assert np.isfinite(model.embedding_x_).all()
    assert np.isfinite(model.embedding_y_).all()
    n = len(model.embedding_x_)
    found = {
        "right": n == len(model.embedding_y_) and foscttm(model, np.arange(n), ties=0) < 0.01,
        "ambiguous": model.ambiguous_,
        "said": "no start from symmetries: all cells of a view lie at one point" in caplog.text,
    }
    assert any(found[one] for one in expected.split(" or ")), found


def test_few_cells_against_many_are_ambiguous():
    x, y, _ = simulated("branch", 100_000, 20, 4, noise="fast")
    model = fitted(x[:100], y, n_components=3)
    assert np.isfinite(model.embedding_y_).all()
    assert model.ambiguous_


def test_interrupted_starts_are_not_refined():
    """Ctrl-C: the lowest loss so far is taken, as it is."""

    def stop(run, terms):
        raise KeyboardInterrupt

    model = fitted(X, Y, starts="both", n_starts=2, n_epochs=20, loss_every=5, callbacks=[stop])
    assert model.interrupted_
    assert model.starts_["chosen"].tolist() == [True]
    assert "discrepancy" not in model.starts_
    assert not model.intercept_y_.any()
    assert (model.ambiguous_, model.errors_, model.alternatives_) == (False, None, [])
