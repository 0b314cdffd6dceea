"""MMDMA among scikit-learn's own: its checks of estimators, and what pipelines and searches ask of one."""

import numpy as np
import pandas as pd
import polars
import pytest
import scipy.sparse
from embeddings import PLAIN
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from mmdma_core import MMDMA, Kernel, LossTerms, Settings, simulate, start

X, Y, _ = (view.numpy() if hasattr(view, "numpy") else view for view in simulate("branch", 60, 8, p_y=6))
NAMES = [f"gene{k}" for k in range(8)]

# scikit-learn's checks that cannot hold for an estimator of two views of cells, with the reason.
_ONE_COLUMN = "it gives y in one dimension, as a target; Y is a second view (n_y, p_y) here"
EXPECTED_TO_FAIL = {
    "check_transformer_general": _ONE_COLUMN,
    "check_transformer_preserve_dtypes": _ONE_COLUMN,
    "check_transformer_data_not_an_array": _ONE_COLUMN,
    "check_n_features_in_after_fitting": "the error is a ValueError that names the view, in words of its own",
    "check_fit2d_1sample": "the error is a ValueError that speaks of cells, not of samples",
    "check_fit2d_predict1d": "the error is a ValueError that says how one cell is given",
}
# Those that scikit-learn's own tests add to these for its transformers.
FURTHER = [
    estimator_checks.check_dataframe_column_names_consistency,
    estimator_checks.check_get_feature_names_out_error,
    estimator_checks.check_set_output_transform,
    estimator_checks.check_set_output_transform_pandas,
    estimator_checks.check_set_output_transform_polars,
    estimator_checks.check_global_output_transform_pandas,
    estimator_checks.check_global_set_output_transform_polars,
    estimator_checks.check_transformer_get_feature_names_out,
    estimator_checks.check_transformer_get_feature_names_out_pandas,
    estimator_checks.check_param_validation,
]
# Those that a fit with symmetries, refined, could fail where one that trains alone does not.
REFINED = [
    estimator_checks.check_dict_unchanged,
    estimator_checks.check_estimators_dtypes,
    estimator_checks.check_estimators_pickle,
    estimator_checks.check_f_contiguous_array_estimator,
    estimator_checks.check_fit2d_1feature,
    estimator_checks.check_fit_idempotent,
    estimator_checks.check_methods_subset_invariance,
    estimator_checks.check_readonly_memmap_input,
]
_BOTH = "fit_transform returns both embeddings, as scikit-learn's CCA does, and needs both views"
_BOTH_NAMES = dict.fromkeys(
    (
        "check_set_output_transform_pandas",
        "check_set_output_transform_polars",
        "check_global_output_transform_pandas",
        "check_global_set_output_transform_polars",
        "check_transformer_get_feature_names_out",
        "check_transformer_get_feature_names_out_pandas",
    ),
    _BOTH,
)
EXPECTED_TO_FAIL_OF_FURTHER = _BOTH_NAMES | {
    "check_dataframe_column_names_consistency": "it gives y by that keyword; the second view's is Y",
    "check_param_validation": "the parameters are checked by this package, see test_bad_parameters",
}


QUICK = {"n_components": 1, "n_epochs": 3, "n_starts": 1, "random_state": 0, "device": "cpu"}


def model(variant="primal", **more):
    given = {"n_components": 2, "n_epochs": 5, "n_starts": 1, "random_state": 0, "device": "cpu"}
    return MMDMA(variant, **PLAIN | given | more)


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks():
    made = MMDMA("primal", **QUICK | PLAIN)
    found = estimator_checks.check_estimator(made, expected_failed_checks=EXPECTED_TO_FAIL, on_fail=None, on_skip=None)
    assert len(found) > 40
    assert [check["check_name"] for check in found if check["status"] == "failed"] == []
    failed = {check["check_name"] for check in found if check["status"] == "xfail"}
    assert failed == set(EXPECTED_TO_FAIL)  # one that passes is to be taken off the list
    skipped = [check["check_name"] for check in found if check["status"] == "skipped"]
    assert set(skipped) <= {"check_array_api_input"}  # that is for PyTorch's arrays where an environment variable asks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", FURTHER, ids=lambda check: check.__name__)
def test_scikit_learns_further_checks(check):
    made = MMDMA("primal", **QUICK | PLAIN)
    if check.__name__ in EXPECTED_TO_FAIL_OF_FURTHER:
        with pytest.raises((AssertionError, AttributeError, TypeError)):  # one that passes is to be taken off the list
            check("MMDMA", made)
    else:
        check("MMDMA", made)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", REFINED, ids=lambda check: check.__name__)
def test_scikit_learns_checks_of_a_refined_fit(check):
    check("MMDMA", MMDMA("primal", **QUICK | {"starts": "symmetries", "n_epochs": 0}))


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_outputs_are_data_frames_where_that_is_asked_for(container):
    kind = {"pandas": pd.DataFrame, "polars": polars.DataFrame}[container]
    right = model().fit(X, Y)
    steps = make_pipeline(StandardScaler(with_mean=False, with_std=False), model()).set_output(transform=container)
    found = steps.fit(X, Y).transform(X)
    assert isinstance(found, kind)
    assert list(found.columns) == list(right.get_feature_names_out()) == ["mmdma0", "mmdma1"]
    np.testing.assert_allclose(found.to_numpy(), right.transform(X), rtol=1e-4)
    alone = model().set_output(transform=container)
    e_x, e_y = alone.fit_transform(X, Y)
    assert isinstance(e_x, kind)
    assert isinstance(e_y, kind)
    np.testing.assert_array_equal(e_y.to_numpy(), alone.embedding_y_)
    assert isinstance(alone.transform(Y, view="y"), kind)


def test_rows_of_pandas_keep_their_names():
    frames = [pd.DataFrame(view, index=[f"{name}{k}" for k in range(60)]) for name, view in (("x", X), ("y", Y))]
    for found, given in zip(model().set_output(transform="pandas").fit_transform(*frames), frames, strict=True):
        assert list(found.index) == list(given.index)


def test_names_of_features_come_and_go_with_the_fit():
    found = model().fit(pd.DataFrame(X, columns=NAMES), Y)
    assert found.feature_names_in_.tolist() == NAMES
    assert found.feature_names_in_.dtype == object
    assert found.n_features_in_ == 8
    assert not hasattr(found.fit(X, Y), "feature_names_in_")
    assert not hasattr(model(), "feature_names_in_")


def test_names_of_features_are_in_a_saved_model(tmp_path):
    found = model().fit(pd.DataFrame(X, columns=NAMES), Y)
    found.save(tmp_path / "model.npz")
    again = MMDMA.load(tmp_path / "model.npz")
    assert again.feature_names_in_.tolist() == NAMES
    assert again.get_feature_names_out().tolist() == ["mmdma0", "mmdma1"]
    assert again.score(X, Y) == found.score(X, Y)


@pytest.mark.parametrize("variant", ["primal", "primal-fourier", "linear-time", "dual"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_the_score_is_minus_the_loss_of_the_cells(variant, unbiased):
    found = model(variant, unbiased=unbiased, sigma=0.5, l2_normalize=True).fit(X, Y)
    new = [view[:25] / np.linalg.norm(view[:25], axis=1, keepdims=True) for view in (X, Y)]
    exact = Settings(2, 0.5, found.lambda1, found.lambda2, unbiased=unbiased or variant == "linear-time")
    right = start("primal", *new, exact, parameters=(found.weights_x_, found.weights_y_)).loss()
    assert isinstance(right, LossTerms)
    assert found.score(X[:25], scipy.sparse.csr_array(Y[:25])) == pytest.approx(-right.total, rel=1e-4)


def test_the_score_of_a_fit_is_minus_its_loss():
    for found in (model().fit(X, Y), model("dual").fit(X, Y)):
        assert found.score(X, Y) == pytest.approx(-found.starts_.loss[0], rel=1e-4)
    kernels = X @ X.T, Y @ Y.T
    found = model("dual", kernel="precomputed").fit(*kernels)
    right = start(
        "dual", *map(Kernel, kernels), Settings(2, 1.0, 1e-2, 0.3), parameters=(found.weights_x_, found.weights_y_)
    )
    assert found.score(*kernels) == pytest.approx(-right.loss().total, rel=1e-4)
    with pytest.raises(ValueError, match="score takes the kernels of fit"):
        found.score(kernels[0][:10], kernels[1][:10])


def test_a_search_needs_no_scoring():
    search = GridSearchCV(model(), {"learning_rate": [1e-4, 2e-2]}, cv=2).fit(X, Y)
    assert search.best_params_ == {"learning_rate": 2e-2}  # five steps of it go further down
    scores = cross_val_score(clone(search.best_estimator_), X, Y, cv=2)
    assert scores.mean() == pytest.approx(search.best_score_)


def test_the_second_view_is_required():
    with pytest.raises(ValueError, match="the target y is None: Y is the second view"):
        model().fit(X, None)
