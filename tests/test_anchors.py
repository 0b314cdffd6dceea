"""Pairs of features that go together choose among the matches, say so where they contradict, and are kept."""

import logging

import numpy as np
import pandas as pd
import pytest

from mmdma_core import MMDMA, metrics, simulate, simulate_counts
from mmdma_core.matching.anchors import Anchors
from mmdma_core.matching.command_line import main

AXES = {"n_components": 2, "starts": "symmetries", "n_starts": 0, "n_epochs": 0, "random_state": 0, "device": "cpu"}


def views(seed=4):
    """Different cells of the branch in either view, of which two matches fit equally well, and features that agree."""
    x, y, match = simulate("branch", 1200, 30, seed)
    x, y = x.numpy(), y.numpy()[match]
    some, others, known = np.split(np.random.default_rng(0).permutation(1200), 3)
    correlations = np.corrcoef(x[known].T, y[known].T)[:30, 30:]
    best = correlations.max(1).argsort()[-3:]
    return x[some], x[others], y[others], {int(i): int(correlations[i].argmax()) for i in best}


@pytest.fixture(scope="module")
def samples():
    return views()


def fitted(samples, anchors):
    x, _, y, _ = samples
    return MMDMA(l2_normalize=False, anchors=anchors, **AXES).fit(x, y)


def foscttm(model, samples):
    _, of_y, y, _ = samples
    return metrics.foscttm(model.transform(of_y), model.transform(y, "y"), np.arange(len(y)))


def test_they_choose_the_right_match(samples):
    pairs = samples[3]
    assert fitted(samples, None).ambiguous_
    model = fitted(samples, pairs)
    assert not model.ambiguous_
    assert model.errors_ >= 3
    assert foscttm(model, samples) < 0.1
    assert (model.anchors_["correlation"] > 0.5).all()
    assert model.anchors_[["x", "y"]].to_numpy().tolist() == [[str(i), str(j)] for i, j in pairs.items()]


@pytest.mark.parametrize("seed", [4, 5, 6, 7])
def test_a_match_that_they_contradict_is_not_taken_and_that_is_said(seed, caplog):
    """Which of both matches has the lower MMD2 is chance."""
    samples = views(seed)
    caplog.set_level(logging.WARNING)
    first = foscttm(fitted(samples, None), samples) < 0.1
    model = fitted(samples, samples[3])
    assert foscttm(model, samples) < 0.1
    said = any("anchors contradict the match of the lowest MMD2" in message for message in caplog.messages)
    assert said == (not first)
    chosen = model.starts_.index[model.starts_["chosen"]]
    assert chosen[0] not in [other.start for other in model.alternatives_]


def test_pairs_of_noise_change_nothing(samples):
    x, of_y, y, _ = samples
    rng = np.random.default_rng(0)
    x, y = (np.column_stack([view, 0.001 * rng.normal(size=len(view))]) for view in (x, y))
    model = fitted((x, of_y, y, {30: 30}), {30: 30})
    assert model.ambiguous_
    assert abs(model.anchors_["correlation"]).max() < 0.3


def test_names_of_features_and_the_model_keep_them(samples, tmp_path):
    x, _, y, pairs = samples
    frames = pd.DataFrame(x).add_prefix("gene"), pd.DataFrame(y).add_prefix("protein")
    named = [(f"gene{i}", f"protein{j}") for i, j in pairs.items()]
    model = MMDMA(l2_normalize=False, anchors=named, **AXES).fit(*frames)
    np.testing.assert_allclose(model.anchors_["correlation"], fitted(samples, pairs).anchors_["correlation"])
    model.save(tmp_path / "model.npz")
    again = MMDMA.load(tmp_path / "model.npz")
    pd.testing.assert_frame_equal(again.anchors_, model.anchors_)
    assert [tuple(pair) for pair in again.anchors] == named


def test_of_counts_they_are_logarithms():
    """What depth does to all features of a cell is no agreement."""
    x, y, _, _ = simulate_counts(300, seed=4)
    model = MMDMA(anchors={0: 0}, **AXES | {"n_components": 5}).fit(x, y)
    made = model.components_x_, model.components_y_
    anchors = Anchors.of({0: 0}, (None, None), [x.astype(np.float32), y.astype(np.float32)], made)
    np.testing.assert_allclose(anchors.x[:, 0], np.log1p(x[:, 0] / x.sum(1) * made[0].depth), rtol=1e-4)
    found = anchors.table(model.embedding_x_, model.embedding_y_)
    pd.testing.assert_frame_equal(found, model.anchors_)


def test_the_command_takes_them_and_metrics_have_them(samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, _, y, pairs = samples
    np.save("x.npy", x)
    np.save("y.npy", y)
    options = "--n-components 2 --starts symmetries --n-starts 0 --n-epochs 0 --random-state 0 --l2-normalize False"
    files = "--x x.npy --y y.npy --out out --quiet --device cpu --anchors"
    assert main(["fit", *options.split(), *files.split(), *(f"{i}={j}" for i, j in pairs.items())]) == 0
    pd.testing.assert_frame_equal(MMDMA.load("out/model.npz").anchors_, fitted(samples, pairs).anchors_)


@pytest.mark.parametrize(
    ("anchors", "said"),
    [
        ({"CD3E": 0}, "anchors: X has no feature 'CD3E', it has columns 0 to 29"),
        ({0: 30}, "anchors: Y has no feature 30, it has columns 0 to 29"),
        ({0: 1.5}, "anchors: Y has no feature 1.5, it has columns 0 to 29"),
        ({0: 5}, "anchors: 5 of Y is the same in all cells"),
        ({}, "anchors must be pairs of a feature of X and one of Y, got {}"),
        (["CD3E"], r"anchors must be pairs of a feature of X and one of Y, got \['CD3E'\]"),
    ],
)
def test_anchors_that_cannot_be_are_refused(samples, anchors, said):
    x, _, y, _ = samples
    y = y.copy()
    y[:, 5] = 2
    with pytest.raises(ValueError, match=f"^{said}$"):
        MMDMA(anchors=anchors, **AXES).fit(x, y)


def test_a_name_that_a_view_with_names_lacks_is_refused_and_so_is_what_is_no_pair(samples, capsys):
    x, _, y, _ = samples
    with pytest.raises(ValueError, match="anchors: X has no feature 'CD3E', it has features such as 'gene0'"):
        MMDMA(anchors={"CD3E": 1}, **AXES).fit(pd.DataFrame(x).add_prefix("gene"), y)
    for parameters in ({"kernel": "precomputed"}, {"refine": False}):
        with pytest.raises(ValueError, match="anchors choose among refined matches of features"):
            MMDMA(anchors={0: 0}, **AXES | parameters).fit(x @ x.T, y @ y.T)
    with pytest.raises(SystemExit):
        main(["fit", "--simulate", "branch", "--out", "out", "--anchors", "CD3E"])
    assert "'CD3E' is no pair such as CD3E=CD3" in capsys.readouterr().err
