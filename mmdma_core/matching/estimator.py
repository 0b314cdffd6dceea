"""MMD-MA on a person's own data, with the conventions of scikit-learn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import normalize
from sklearn.utils._set_output import _wrap_data_with_container
from sklearn.utils.validation import check_is_fitted

from mmdma_core import registry
from mmdma_core.files.atomic import check_writable
from mmdma_core.fused.ranks import world
from mmdma_core.inputs import Kernel, as_views
from mmdma_core.matching import counts, model_file, starts
from mmdma_core.matching.anchors import Anchors, Pairs
from mmdma_core.matching.matches import MatchesMixin
from mmdma_core.matching.preprocess import (
    Matrix,
    Pair,
    as_rows,
    centred,
    check_features,
    check_parameters,
    column_means,
    is_annotated,
    scale_of,
    take,
    take_both,
)
from mmdma_core.matching.symmetries import rows_of_one_length
from mmdma_core.matching.training import Callback
from mmdma_core.objective import LossTerms
from mmdma_core.settings import own_state, plain

_LOG = logging.getLogger("mmdma_core")

if TYPE_CHECKING:
    from sklearn.utils import Tags  # from scikit-learn 1.6 on


@dataclass(eq=False, repr=False)
class MMDMA(MatchesMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Match the cells of two modalities: a linear embedding of each, learnt so that the embedded clouds agree.

    Minimises MMD2 + lambda1 (penalties) + lambda2 (distortions) of Meng-Papaxanthos et al., equation 1, see
    mmdma_core.objective, by full-batch Adam from several starting values, refines each match and chooses one of them.
    The defaults are those that match SNARE-seq as well as was published; for other data they are a start.

    Parameters
    ----------
    variant : str
        Name of a registered variant; "auto": the fastest exact one, by estimate, that runs here and fits; where all
        starts of that are predicted to take more than ten minutes, primal-fourier (of kernels dual-fourier).
    n_components : int
        Dimension d of the embeddings.
    sigma : float or 'median'
        Variance-like width of the Gaussian kernel exp(-|a - b|^2 / (2 sigma)); "median": (8 x the median distance to
        the nearest neighbour)^2 among the points of both views as the first start embeds them (Singh et al. 2020).
    lambda1 : float
        Weight of the penalties, which keep the columns of each embedding's weights apart.
    lambda2 : float
        Weight of the distortions, which keep each view's inner products.
    learning_rate : float
        Of Adam.
    n_epochs : int
        Epochs of each start; 0, with starts="symmetries": none, the starting values are refined as they are, and their
        loss is not known.
    n_starts : int
        Random starts, from different seeds. Single ones often end in a mirrored or rotated match, so take several.
    init : tuple or str
        How starting values are drawn: uniform,low,high; normal,mean,std; xavier_uniform,gain; xavier_normal,gain.
    unbiased : bool
        The unbiased MMD2, without the diagonals, else the biased one.
    amsgrad : bool
        Adam divides by the largest second moment so far.
    kernel : {'linear', 'precomputed'}
        "linear", or "precomputed": X (n_x, n_x) and Y (n_y, n_y) are kernel matrices, for a dual variant.
    preprocess : {'auto', 'counts', 'none'}
        "counts": both views are counts, cells x genes, peaks or proteins, and become principal components. Cells are
        brought to one depth and the logarithm is taken; of fewer than 500 features the centred log-ratio. "auto": so
        with each view that has whole numbers of at least 0 alone, and ten features or more; the log says which. "none":
        the views are taken as they are.
    scale : bool
        Divide each view by one number first, so that the mean square of its rows' lengths is 1: `sigma` then has the
        same meaning for all data. Of rows of unit length it is so already.
    l2_normalize : bool or 'auto'
        Scale each row (cell) to unit length first. It takes depth and outliers away, and with them the lengths, which
        both views may share. "auto": whichever lets the principal axes of both views match better.
    center : bool
        Then subtract each column's mean; makes a sparse view dense.
    starts : {'both', 'random', 'symmetries'}
        Where training begins: from random values, as in the paper; from the principal axes of the views, laid upon
        each other in the three ways that fit best; or from both.
    refine : bool
        After training map the second embedding onto the first by the affine map of the lowest MMD2, and choose among
        the starts by what is left of it. False: the lowest loss is chosen, as in the paper.
    anchors : mapping or sequence of pairs, optional
        Features of X and Y that are known to rise and fall together, such as {"CD3E": "CD3"}, by name or number of the
        column. With `refine` they choose among the matches, by rank correlation across matched neighbours, where it
        tells them apart.
    keep_starts : bool
        Keep the embeddings of all starts, as they were trained.
    batch_size : int or 'auto', optional
        Cells of each view that an update of primal-fourier takes, for dense views with fewer features than cells:
        drawn afresh each time, while the learning rate falls along a cosine; the last tenth of the updates takes all.
        None: all cells in every update; "auto": all up to 50,000 cells, else 20,000.
    loss_every : int
        Epochs (updates) between two records of the loss, each of which costs about an epoch on all cells; of the
        Fourier variants beyond 20,000 cells some five.
    window : int
        Early stopping: epochs of each of two windows whose mean losses are compared; 0: none.
    tolerance : float
        Training stops when the two differ by less than this times max(|mean|, 1).
    callbacks : sequence of callable
        Functions of (run, loss terms), called whenever the loss is recorded, but for that of the start.
    checkpoint : str or Path, optional
        File that training is saved to whenever the loss is recorded, and gone on from if it is there; of several starts
        NAME-start0.SUFFIX and so on.
    device : str
        "cpu", "cuda", "cuda:INDEX"; "auto": a GPU where there is one.
    random_state : int or numpy.random.RandomState, optional
        Start k has the seed random_state + k; None or a RandomState draws the first.
    verbose : bool
        A progress bar with the loss.

    Attributes
    ----------
    embedding_x_, embedding_y_ : numpy.ndarray
        (n_x, d), (n_y, d).
    weights_x_, weights_y_ : numpy.ndarray
        (p, d), the embedding is X W, of Y with `intercept_y_` added; of counts X are their principal components; with
        kernels (n, d), the embedding is K alpha.
    intercept_y_ : numpy.ndarray
        (d,), added to the second embedding; 0 without `refine`.
    lacking_x_, lacking_y_ : numpy.ndarray
        (n_x,), (n_y,), whether the other view lacks a cell: with `refine`, where MMD2 tells of many; the match then
        leaves them out.
    trained_weights_ : tuple of numpy.ndarray
        Both weights as the chosen start was trained, before it was refined.
    loss_history_ : pandas.DataFrame
        Of the chosen start, as MMD-MA trained it: epoch, total, mmd, pen_x, pen_y, dis_x, dis_y.
    starts_ : pandas.DataFrame
        Of all starts: from ("random" or "symmetries"), seed, loss, n_epochs, seconds, stopped ("converged",
        "interrupted", "diverged" or None), chosen. With `refine` also discrepancy_before and discrepancy, the MMD2 in
        units of the embedding before and after it was refined, and match: starts of one number pair the same cells.
    ambiguous_ : bool
        Whether the data do not tell the match from another one that is refined as well; see `alternatives_`.
    errors_ : float or None
        By how many standard errors the next match is worse; None if no other comes near, or without `refine`.
    alternatives_ : list
        The other matches that come near, the best first, each with start, weights, intercept, embeddings, discrepancy.
    anchors_ : pandas.DataFrame or None
        The rank correlation of each anchor in the match that is chosen.
    start_embeddings_ : list of tuple
        With `keep_starts` both embeddings of each start; None of one that diverged.
    n_iter_ : int
        Epochs of the chosen start.
    interrupted_ : bool
        Whether Ctrl-C ended it.
    sigma_, variant_, device_ : float, str, torch.device
        What was used.
    l2_normalize_, scale_x_, scale_y_ : bool, float, float
        Whether rows have unit length, and what the views were divided by.
    components_x_, components_y_ : object or None
        How counts became principal components: depth, mean (p,), axes (k, p); None of a view that was taken as it is.
    mean_x_, mean_y_ : numpy.ndarray or None
        What was subtracted from each column, None without `center`.
    n_features_in_, n_features_y_ : int
        p_x, p_y.
    feature_names_in_ : numpy.ndarray
        The same as feature_names_x_; absent without names.
    feature_names_x_, feature_names_y_ : tuple of str or None
        Of data frames and AnnData, else None.
    representation_x_, representation_y_ : tuple or None
        (use_rep, layer) that `fit` took of AnnData.

    Notes
    -----
    Ctrl-C ends `fit` and keeps the best parameters that were recorded (of another package's run the last).
    With `variant="auto"` the logger `mmdma_core` says which was taken, and why. In a group of torch.distributed each
    rank fits the rows it is given, of one problem: all arrays of n rows are of these.

    References
    ----------
    Meng-Papaxanthos et al., LSMMD-MA, equation 1. Singh et al. 2020 for sigma="median".

    Examples
    --------
    >>> from mmdma_core import MMDMA, simulate
    >>> x, y, match = simulate("branch", n=100, p=20)
    >>> e_x, e_y = MMDMA(n_components=2, n_epochs=10, random_state=0).fit_transform(x, y)
    >>> e_x.shape
    (100, 2)
    """

    variant: str = "auto"
    _: KW_ONLY
    n_components: int = 5
    sigma: float | Literal["median"] = 1.0
    lambda1: float = 1e-2
    lambda2: float = 0.3
    learning_rate: float = 5e-3
    n_epochs: int = 1000
    n_starts: int = 10
    init: tuple | str = ("uniform", 0.0, 0.1)
    unbiased: bool = True
    amsgrad: bool = False
    kernel: Literal["linear", "precomputed"] = "linear"
    preprocess: Literal["auto", "counts", "none"] = "auto"
    scale: bool = True
    l2_normalize: bool | Literal["auto"] = "auto"
    center: bool = False
    starts: Literal["both", "random", "symmetries"] = "both"
    refine: bool = True
    anchors: Pairs = None
    keep_starts: bool = False
    batch_size: int | Literal["auto"] | None = "auto"
    loss_every: int = 50
    window: int = 0
    tolerance: float = 1e-3
    callbacks: Sequence[Callback] = ()
    checkpoint: str | Path | None = None
    device: str = "auto"
    random_state: int | np.random.RandomState | None = None
    verbose: bool = False

    def fit(self, X: Any, Y: Any, *, use_rep: Pair = "X", layer: Pair = None) -> MMDMA:
        """Learn both embeddings.

        Parameters
        ----------
        X, Y : array or data frame or sparse matrix or AnnData
            (n_x, p_x) and (n_y, p_y), rows are cells; with kernel="precomputed" (n_x, n_x) and (n_y, n_y). In memory,
            or in a file of HDF5 or zarr; also what `mmdma_core.io.read_view` returns.
        use_rep : str or pair of str
            Of AnnData: "X", or an entry of obsm such as "X_pca"; a pair is for X and Y.
        layer : str or pair of str, optional
            Of AnnData: a layer in the place of X.

        Returns
        -------
        MMDMA
            Itself, fitted.

        Raises
        ------
        ValueError
            For a parameter or data that cannot be.
        MissingDependency
            Where no variant can run.
        """
        check_parameters(self)
        starts.settings_of(self, 1.0 if self.sigma == "median" else self.sigma)
        if self.checkpoint is not None and world().rank == 0:  # which writes it for all
            check_writable({starts.checkpoint_path(self, k): 0 for k in range(starts.most_starts(self))})
        taken = take_both(X, Y, use_rep, layer)
        rows = [as_rows(view.matrix, name, 2) for name, view in zip("XY", taken, strict=True)]
        self.n_features_in_, self.n_features_y_ = (of_view.shape[1] for of_view in rows)
        learnt = self.components_x_, self.components_y_ = self._components(*rows)
        anchors = Anchors.of(self.anchors, [view.features for view in taken], rows, learnt)
        rows = [made.of(of_view) if made else of_view for made, of_view in zip(learnt, rows, strict=True)]
        kernel = self.kernel == "precomputed"
        if kernel:
            as_views(*map(Kernel, rows), torch.device("cpu"))  # which refuses what is none
        self.l2_normalize_ = self._rows_of_one_length(*rows)
        scaled = self.scale and not self.l2_normalize_
        self.scale_x_, self.scale_y_ = (scale_of(of_view, kernel) if scaled else 1.0 for of_view in rows)
        rows = [self._of_length(*of_view) for of_view in zip(rows, (self.scale_x_, self.scale_y_), strict=True)]
        self.mean_x_, self.mean_y_ = (column_means(of_view) if self.center else None for of_view in rows)
        x, y = (centred(*of_view) for of_view in zip(rows, "XY", (self.mean_x_, self.mean_y_), strict=True))
        self.feature_names_x_, self.feature_names_y_ = (view.features for view in taken)
        self.representation_x_, self.representation_y_ = (view.representation for view in taken)
        problem = starts.Problem(self, [x, y], anchors)
        found = problem.solve()
        self.starts_, self.interrupted_, self.ambiguous_ = found.starts, found.interrupted, found.ambiguous
        self.alternatives_, self.errors_ = found.others, found.errors
        self.variant_, self.device_, self.sigma_ = problem.variant, problem.device, problem.sigma
        self.embedding_x_, self.embedding_y_ = found.chosen.embeddings
        self.weights_x_, self.weights_y_ = found.chosen.weights
        self.intercept_y_ = found.chosen.intercept
        self.lacking_x_, self.lacking_y_ = found.chosen.lacking
        self.anchors_ = anchors and anchors.table(self.embedding_x_, self.embedding_y_)
        trained = found.results[found.chosen.start]
        self.trained_weights_ = trained.weights
        self.loss_history_ = pd.DataFrame(trained.history.losses, columns=LossTerms._fields)
        self.loss_history_.insert(0, "epoch", trained.history.epochs)
        self.n_iter_ = trained.history.epochs[-1] if trained.history.epochs else 0
        if self.keep_starts:
            self.start_embeddings_ = [result and problem.embeddings(result.weights) for result in found.results]
        return self

    def fit_transform(self, X: Any, Y: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Learn both embeddings, and return them; raises what `fit` raises.

        Parameters
        ----------
        X, Y : array or data frame or sparse matrix or AnnData
            (n_x, p_x) and (n_y, p_y), as for `fit`.
        **options : str or pair of str
            `use_rep` and `layer` of `fit`.

        Returns
        -------
        tuple of numpy.ndarray
            (embedding_x_, embedding_y_); data frames after `set_output`.
        """
        self.fit(
            X, Y, **options
        )  # scikit-learn puts the first into a data frame, as of its own estimators of two views
        return self.embedding_x_, _wrap_data_with_container("transform", self.embedding_y_, Y, self)

    def transform(
        self, X: Any, view: Literal["x", "y"] = "x", *, use_rep: str | None = None, layer: str | None = None
    ) -> np.ndarray:
        """Embed cells of a view, new or not; one is enough.

        Parameters
        ----------
        X : array or data frame or sparse matrix or AnnData
            (m, p), rows are cells; with kernels (m, n), new cells against those of `fit`.
        view : {'x', 'y'}
            Which view the cells are of.
        use_rep, layer : str, optional
            Of AnnData, as for `fit`; with neither of them what `fit` took.

        Returns
        -------
        numpy.ndarray
            (m, d); a data frame after `set_output`.

        Raises
        ------
        ValueError
            For another view, other features than those of `fit`, or another number; NotFittedError before `fit`.
        """
        check_is_fitted(self, "embedding_x_")
        if view not in ("x", "y"):
            raise ValueError(f"view must be 'x' or 'y', got {view!r}")
        embedding = np.asarray(self._taken(X, "X", view, use_rep, layer) @ getattr(self, f"weights_{view}_"))
        return embedding + self.intercept_y_ if view == "y" else embedding

    def score(self, X: Any, Y: Any) -> float:
        """Return the negative loss of cells, new or not, with the weights of `fit`: the higher, the better.

        The loss is that of `LossTerms`, of these cells alone, computed exactly whatever the variant, with the weights
        as they were trained, before a refinement. So GridSearchCV and cross_val_score need no other scoring; they split
        both views by the same rows, though which cells match is not used. Scores of different `sigma`, `lambda1`,
        `lambda2` or `unbiased` are of different losses and cannot be compared: choose these by a metric of
        `mmdma_core.metrics`.

        Parameters
        ----------
        X, Y : array or data frame or sparse matrix or AnnData
            (m_x, p_x) and (m_y, p_y), rows are cells, as for `transform`; with kernels those of `fit`.

        Returns
        -------
        float
            Minus the loss.

        Raises
        ------
        ValueError
            For what `transform` refuses, for fewer than 2 cells, and for kernels of new cells.
        """
        check_is_fitted(self, "embedding_x_")
        views, weights = [self._taken(X, "X", "x"), self._taken(Y, "Y", "y")], self.trained_weights_
        name = "primal-fused"
        if self.kernel == "precomputed":
            name = "dual-fused"
            if any(view.shape[0] != view.shape[1] for view in views):
                raise ValueError("score takes the kernels of fit: those of new cells do not tell the distortion")
            views = [Kernel(view) for view in views]
        settings = registry.variant(self.variant_).taken(starts.settings_of(self, self.sigma_))
        run = registry.start(name, *views, settings, self.device_, parameters=weights, group=world().group)
        return -run.loss().total

    @property
    def feature_names_in_(self) -> np.ndarray:
        """The names of X's features in `fit`, where it had names."""
        if getattr(self, "feature_names_x_", None) is None:
            raise AttributeError("feature_names_in_ is there after a fit of features with names")
        return np.array(self.feature_names_x_, dtype=object)

    @property
    def _n_features_out(self) -> int:
        return self.weights_x_.shape[1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.pairwise = self.kernel == "precomputed"
        tags.target_tags.required = tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        tags.non_deterministic = self.random_state is None
        return tags

    def save(self, path: str | Path) -> None:
        """Write the fitted model to an .npz file without pickled objects.

        Parameters
        ----------
        path : str or Path
            The file.
        """
        check_is_fitted(self, "embedding_x_")
        model_file.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> MMDMA:
        """Read the model that `save` wrote; reading it runs no code of the file.

        Parameters
        ----------
        path : str or Path
            The file.

        Returns
        -------
        MMDMA
            The fitted model.

        Raises
        ------
        ValueError
            For another file.
        FileNotFoundError
            For no file.
        """
        return model_file.load(cls(), Path(path))

    def _components(self, x: Matrix, y: Matrix) -> list[counts.Components | None]:
        """Learn what makes counts ready, and say what was found."""
        asked = "none" if self.kernel == "precomputed" else self.preprocess
        learnt = [counts.components(rows, name, asked) for name, rows in (("X", x), ("Y", y))]
        if any(learnt):
            _LOG.info("; ".join(f"{name}: {made or 'taken as it is'}" for name, made in zip("XY", learnt, strict=True)))
        return learnt

    def _rows_of_one_length(self, x: Matrix, y: Matrix) -> bool:
        """Whether rows are to have length 1, which "auto" lets the data decide."""
        if self.l2_normalize != "auto":
            return bool(self.l2_normalize)
        if self.kernel == "precomputed":
            return False
        device = starts.device_of(self)
        with own_state(device):
            unit = rows_of_one_length(x, y, plain(self.n_components), device)
        _LOG.info("cells %s, which matches better", "have length 1" if unit else "keep their lengths")
        return world().broadcast(unit)

    def _of_length(self, rows: Matrix, scale: float) -> Matrix:
        """Rows of length 1, or of a view divided by its scale."""
        if self.l2_normalize_:
            return normalize(rows)
        return rows if scale == 1 else rows * np.float32(1 / scale)  # a quotient of a sparse one would be of float64

    def _taken(
        self, given: Any, name: str, view: Literal["x", "y"], use_rep: str | None = None, layer: str | None = None
    ) -> Matrix:
        """Take cells as `fit` took those of the view, ready to be embedded."""
        if use_rep is None and layer is None and is_annotated(given):
            use_rep, layer = getattr(self, f"representation_{view}_") or (None, None)
        taken = take(given, name, use_rep, layer)
        where = f"view {view!r}" if taken.path is None else str(taken.path)
        check_features(where, taken.features, getattr(self, f"feature_names_{view}_"))
        rows = as_rows(taken.matrix, view.upper(), 1)
        columns = self.n_features_in_ if view == "x" else self.n_features_y_
        if rows.shape[1] != columns:
            raise ValueError(f"view {view!r} was fitted with {columns} columns, got {rows.shape[1]}")
        if made := getattr(self, f"components_{view}_"):
            counts.check(rows, name)
            rows = made.of(rows)
        rows = self._of_length(rows, getattr(self, f"scale_{view}_"))
        return centred(rows, view.upper(), getattr(self, f"mean_{view}_"))
