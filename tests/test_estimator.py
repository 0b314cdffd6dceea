"""MMDMA keeps scikit-learn's conventions, trains what `start` trains, and can be stopped, left and gone on with."""

import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from embeddings import PLAIN
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import normalize

from mmdma_core import MMDMA, Settings, simulate, start
from mmdma_core.matching import starts
from mmdma_core.matching import training as epochs
from mmdma_core.matching.starts import median_sigma
from mmdma_core.matching.training import History, Stopping
from mmdma_core.objective import LossTerms

X, Y, _ = (view if i == 2 else view.numpy() for i, view in enumerate(simulate("branch", 60, 15, p_y=12)))
QUICK = {
    "n_components": 2,
    "n_epochs": 20,
    "n_starts": 1,
    "loss_every": 5,
    "random_state": 3,
    "variant": "primal",
    "lambda1": 1e-4,
    "lambda2": 1e-4,
}


def fitted(x=X, y=Y, **parameters):
    return MMDMA(**PLAIN | QUICK | parameters).fit(x, y)


def test_scikit_learns_conventions():
    model = MMDMA(sigma=2.0, n_starts=3)
    assert clone(model).get_params() == model.get_params()
    assert repr(model) == "MMDMA(n_starts=3, sigma=2.0)"
    assert model.set_params(n_epochs=7).n_epochs == 7
    with pytest.raises(NotFittedError):
        model.transform(X)


def test_it_trains_what_start_trains():
    model = fitted()
    run = start("primal", X, Y, Settings(n_components=2, learning_rate=model.learning_rate), seed=3)
    for _ in range(20):
        run.step()
    for mine, right in zip((model.embedding_x_, model.embedding_y_), run.embeddings(), strict=True):
        np.testing.assert_allclose(mine, right.numpy(), rtol=1e-5, atol=1e-6)
    assert model.loss_history_["epoch"].tolist() == [0, 5, 10, 15, 20]
    assert model.loss_history_["total"].iloc[-1] == run.loss().total
    assert (model.n_iter_, model.variant_, model.n_features_in_, model.n_features_y_) == (20, "primal", 15, 12)


@pytest.mark.parametrize("variant", ["primal", "primal-fused", "dual"])
def test_transform_gives_the_embedding_of_the_cells_of_fit(variant):
    model = fitted(variant=variant, l2_normalize=True, center=True)
    for view, cells in (("x", X), ("y", Y)):
        embedding = getattr(model, f"embedding_{view}_")
        np.testing.assert_allclose(model.transform(cells, view=view), embedding, atol=1e-5 * abs(embedding).max())
    np.testing.assert_allclose(model.transform(X[:1]), model.embedding_x_[:1], atol=1e-5)
    with pytest.raises(ValueError, match="view 'y' was fitted with 12 columns, got 15"):
        model.transform(X, view="y")


def test_rows_are_normalised_first_and_then_centred():
    rows = normalize(X)
    model = fitted(l2_normalize=True, center=True)
    np.testing.assert_allclose(model.mean_x_, rows.mean(0), atol=1e-6)
    direct = fitted(rows - rows.mean(0), normalize(Y) - normalize(Y).mean(0))
    np.testing.assert_allclose(model.embedding_x_, direct.embedding_x_, atol=1e-5)


def test_of_several_starts_the_lowest_loss_wins_and_all_are_kept():
    model = fitted(n_starts=4)
    assert model.starts_["seed"].tolist() == [3, 4, 5, 6]
    best = int(model.starts_["loss"].idxmin())
    alone = fitted(random_state=3 + best)
    np.testing.assert_array_equal(model.embedding_x_, alone.embedding_x_)
    assert model.starts_["loss"].nunique() == 4
    assert fitted(n_starts=4, random_state=np.random.RandomState(0)).starts_["seed"].is_monotonic_increasing


@pytest.mark.parametrize("variant", ["primal-fused", "dual-fused", "primal-fourier"])
def test_losses_on_the_way_change_no_number(variant):
    often, seldom = (fitted(variant=variant, n_starts=2, loss_every=every) for every in (1, 20))
    np.testing.assert_array_equal(often.embedding_x_, seldom.embedding_x_)
    np.testing.assert_array_equal(often.starts_["loss"], seldom.starts_["loss"])


def test_a_step_of_a_fit_takes_the_gradient_that_the_loss_has_formed(monkeypatch):
    from mmdma_core.fused.pairs_cpu import FusedMMD

    passes, call = [], FusedMMD.__call__
    monkeypatch.setattr(FusedMMD, "__call__", lambda *arguments: passes.append(1) or call(*arguments))
    fitted(variant="primal-fused", n_epochs=20, loss_every=5)
    assert len(passes) == 20 + 1  # an epoch each, and the last loss
    run = start("primal-fused", X, Y, Settings(n_components=2))
    run.loss()
    run.step()  # as it is measured
    assert len(passes) == 21 + 2
    run.takes_up_loss = True
    run.loss()
    run.restart(seed=1)
    run.step()
    assert len(passes) == 23 + 2


def test_auto_says_which_variant_it_took(caplog):
    with caplog.at_level(logging.INFO, "mmdma_core"):
        model = fitted(variant="auto")
    assert model.variant_ == "primal-fused"
    assert "variant: primal-fused" in caplog.text


@pytest.mark.parametrize("variant", ["primal", "auto"])
def test_sparse_views(variant, recwarn):
    x, y = (view * (abs(view) > 1) for view in (X, Y))
    model = fitted(scipy.sparse.csr_matrix(x), scipy.sparse.csc_array(y), variant=variant, l2_normalize=True)
    assert not recwarn.list
    dense = fitted(x, y, variant=model.variant_, l2_normalize=True)
    np.testing.assert_allclose(model.embedding_x_, dense.embedding_x_, atol=1e-4)
    np.testing.assert_allclose(model.transform(scipy.sparse.csr_array(x)), model.embedding_x_, atol=1e-5)


def test_what_makes_a_sparse_view_dense_says_so(caplog):
    fitted(scipy.sparse.csr_array(X), Y, center=True)
    assert "center makes X dense: 3600 bytes" in caplog.text
    with pytest.warns(UserWarning, match="'dual' makes x"):
        fitted(scipy.sparse.csr_array(X), Y, variant="dual")


def test_precomputed_kernels():
    model = fitted(X @ X.T, Y @ Y.T, kernel="precomputed", variant="auto")
    assert model.variant_ == "dual-fused"
    np.testing.assert_allclose(model.transform(X @ X.T), model.embedding_x_, rtol=1e-4, atol=1e-4)
    assert model.weights_x_.shape == (60, 2)


def test_median_sigma_is_that_of_the_first_start():
    line = np.arange(6.0)[:, None]
    assert median_sigma(line[:3], line[3:]) == 64.0
    model = fitted(sigma="median", n_starts=2)
    embedded = start("primal", X, Y, Settings(n_components=2), seed=3).embeddings()
    assert model.sigma_ == pytest.approx(median_sigma(*(e.numpy() for e in embedded)))
    with pytest.raises(ValueError, match="sigma='median' is 0"):
        median_sigma(np.zeros((5, 2)), np.zeros((5, 2)))


def test_early_stopping_compares_two_windows():
    history = History()
    stopping = Stopping(window=10, tolerance=1e-3)
    for epoch, total in enumerate([8.0, 8.0, 4.0, 2.0, 2.0, 2.0, 2.001, 2.0]):
        history.epochs.append(5 * epoch)
        history.losses.append(LossTerms(total, 0, 0, 0, 0, 0))
        assert stopping.holds(history) == (epoch >= 6)
    model = fitted(n_epochs=1000, window=20, tolerance=0.5)
    assert model.n_iter_ == 40
    assert model.starts_["stopped"].tolist() == ["converged"]
    assert fitted().starts_["stopped"].tolist() == [None]


def test_amsgrad_is_another_run():
    losses = [fitted(amsgrad=amsgrad, n_epochs=100).starts_["loss"][0] for amsgrad in (True, False)]
    assert losses[0] != losses[1]


def test_callbacks_see_the_run_whenever_the_loss_is_recorded():
    seen = []
    model = fitted(callbacks=[lambda run, terms: seen.append((run.epoch, terms.total))])
    assert seen == list(model.loss_history_[["epoch", "total"]].itertuples(index=False, name=None))[1:]


def test_an_interruption_keeps_the_best_parameters(caplog):
    worse = []

    def interrupt(run, terms):
        if run.epoch == 15:  # leaves a worse place than it found
            with torch.no_grad():
                run.parameters[0].add_(5.0)
            worse.append(run.loss().total)
            raise KeyboardInterrupt

    model = fitted(n_starts=3, callbacks=[interrupt])
    assert model.starts_["stopped"].tolist() == ["interrupted"]
    assert model.starts_["loss"][0] == model.loss_history_["total"].min() < worse[0]
    assert "the best parameters so far are kept (start 1 of 3)" in caplog.text
    np.testing.assert_allclose(model.embedding_x_, fitted(n_epochs=15).embedding_x_)


@pytest.mark.parametrize("variant", ["primal", "primal-fused"])
def test_a_checkpoint_is_gone_on_from_to_the_same_numbers(tmp_path, variant):
    def interrupt(run, terms):
        if run.epoch == 10:
            raise KeyboardInterrupt

    asked = {"checkpoint": tmp_path / "state.npz", "n_starts": 2, "variant": variant}
    fitted(callbacks=[interrupt], **asked)
    recorded = []
    resumed = fitted(callbacks=[lambda run, terms: recorded.append(run.epoch)], **asked)
    assert recorded == [15, 20, 5, 10, 15, 20]
    through = fitted(n_starts=2, variant=variant)
    np.testing.assert_array_equal(resumed.embedding_x_, through.embedding_x_)
    pd.testing.assert_frame_equal(resumed.loss_history_, through.loss_history_)
    longer = fitted(**asked | {"n_epochs": 30})
    np.testing.assert_array_equal(longer.embedding_x_, fitted(n_starts=2, variant=variant, n_epochs=30).embedding_x_)
    with pytest.raises(ValueError, match="was written for other data, settings or seeds"):
        fitted(X + 1, Y, **asked)


def test_a_finished_start_survives_an_interruption_of_the_next(monkeypatch):
    """Wherever Ctrl-C comes: here before the second start has trained at all."""
    model = MMDMA(**PLAIN | QUICK | {"n_starts": 3})
    train = starts.Problem.train
    calls = []

    def once(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(starts.Problem, "train", once)
    model.fit(X, Y)
    assert model.interrupted_
    assert model.starts_["seed"].tolist() == [3]
    np.testing.assert_array_equal(model.embedding_x_, fitted().embedding_x_)


def test_an_interruption_with_nothing_to_keep_passes_through(monkeypatch):
    def interrupt(self, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(epochs.History, "record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fitted()


def test_features_of_data_frames_must_keep_their_order():
    frame = pd.DataFrame(X, columns=[f"gene{k}" for k in range(15)])
    model = fitted(frame, Y)
    np.testing.assert_array_equal(model.transform(frame), model.transform(X))
    with pytest.raises(ValueError, match="view 'x': the model was fitted with other features, or in another order"):
        model.transform(frame[frame.columns[::-1]])


def test_a_checkpoint_of_a_stranger_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    np.savez(tmp_path / "state.npz", told=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match=r"state\.npz cannot be read as a checkpoint"):
        fitted(checkpoint=tmp_path / "state.npz")
    assert not (tmp_path / "ran").exists()


def test_a_model_comes_back_from_its_file(tmp_path):
    model = fitted(center=True, n_starts=2, init="xavier_normal", n_epochs=np.int64(20))
    model.save(tmp_path / "model.npz")
    again = MMDMA.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    pd.testing.assert_frame_equal(again.loss_history_, model.loss_history_)
    assert again.get_params() == model.get_params()
    for content in (b"text", pickle.dumps([1])):
        (tmp_path / "other.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.npz is no model of this program"):
            MMDMA.load(tmp_path / "other.npz")


def test_a_progress_bar_shows_the_loss(capsys):
    fitted(verbose=True)
    assert "loss=" in capsys.readouterr().err


def test_a_start_that_diverges_is_named_and_another_one_wins(monkeypatch):
    record = epochs.History.record

    def diverge(self, run):
        if run.epoch == 5 and len(seen) == 0:
            seen.append(run.epoch)
            raise FloatingPointError("planted")
        return record(self, run)

    seen = []
    monkeypatch.setattr(epochs.History, "record", diverge)
    model = fitted(n_starts=2)
    assert model.starts_["stopped"].tolist() == ["diverged", None]
    np.testing.assert_array_equal(model.embedding_x_, fitted(random_state=4).embedding_x_)


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(FloatingPointError, match=r"after 5 epochs .*lower learning_rate"):
        fitted(learning_rate=1e30)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_epochs": 0}, "n_epochs must be an integer of at least 1, got 0"),
        ({"n_starts": 2.5}, "n_starts must be an integer of at least 1, got 2.5"),
        ({"window": 3}, "window must be 0 or at least loss_every = 5, got 3"),
        ({"tolerance": -1}, "tolerance must be a number of at least 0"),
        ({"kernel": "rbf"}, "kernel must be 'linear' or 'precomputed', got 'rbf'"),
        ({"kernel": "precomputed", "center": True}, "center and l2_normalize are for features"),
        ({"sigma": "mean"}, "sigma must be a positive number or 'median', got 'mean'"),
        ({"sigma": -1.0}, "sigma must be a positive number, got -1.0"),
        ({"variant": "primel"}, "did you mean 'primal'"),
        ({"device": "tpu"}, "device must be 'cpu', 'cuda'"),
        pytest.param(
            {"variant": "original-2019", "checkpoint": "state.pt"},
            "'original-2019' cannot be resumed",
            marks=pytest.mark.tensorflow,
        ),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        fitted(**parameters)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.where(X > 2, np.nan, X), "Input X contains NaN"),
        (X[0], "Expected 2D array"),
        (np.array([["a", "b"], ["c", "d"]]), "could not convert string to float"),
    ],
)
def test_bad_data(x, message):
    with pytest.raises(ValueError, match=message):
        fitted(x)


def test_train_records_first_and_last_epoch():
    run = start("primal", X, Y, Settings(n_components=2))
    assert epochs.train(run, 7, loss_every=5).epochs == [0, 5, 7]


def test_the_time_left_for_all_starts_is_said_after_each(caplog, monkeypatch):
    times = iter([0, 60, 100, 200, 300, 400])
    monkeypatch.setattr(starts, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    with caplog.at_level(logging.INFO, "mmdma_core"):
        fitted(n_starts=3)
    left = [record.message.partition("; ")[2] for record in caplog.records if record.message.startswith("start ")]
    assert left == ["about 02:00 left for the other 2", "about 01:20 left for the other 1"]
