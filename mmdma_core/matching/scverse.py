"""scverse's objects in memory: what `match` learns is written into them, as scverse's tools do."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from mmdma_core.files.annotated import as_stored, listed
from mmdma_core.matching import model_file
from mmdma_core.matching.estimator import MMDMA
from mmdma_core.matching.preprocess import Pair, is_annotated, take

_LOG = logging.getLogger("mmdma_core")


def match(
    data: Any,
    other: Any = None,
    *,
    x: str | None = None,
    y: str | None = None,
    use_rep: Pair = "X",
    layer: Pair = None,
    matches: bool = False,
    labels: str | None = None,
    features: bool | str = False,
    copy: bool = False,
    **parameters: Any,
) -> Any:
    """Match two modalities of a MuData object, or two AnnData objects, in place.

    Fits `MMDMA` and writes, into both modalities, the embedding as obsm["X_mmdma"] and uns["mmdma"] with `params` (what
    `MMDMA` was given, use_rep and layer), `loss` and `version`; and what else is asked for. A view of AnnData becomes
    an object of its own, as anndata does whenever it is written to.

    Parameters
    ----------
    data : MuData or AnnData
        Both modalities, or the first.
    other : AnnData, optional
        The second, where the first is AnnData; the cells need not be the same.
    x, y : str, optional
        Modalities of MuData; of exactly two the first and the second.
    use_rep : str or pair of str
        "X", or an entry of obsm such as "X_pca"; a pair is for the first and the second modality.
    layer : str or pair of str, optional
        A layer in the place of X.
    matches : bool
        Write into both obs the nearest cell of the other modality, how sure that is, and whether the other modality
        lacks the cell: "mmdma_match", "mmdma_confidence" and "mmdma_lacking", see `MMDMA.matches`.
    labels : str, optional
        A column of obs that one modality has: it is carried over to the other one, with "NAME_confidence" beside it,
        see `MMDMA.transfer`.
    features : bool or str
        Carry the features of each modality over to the cells of the other, obsm["mmdma_features"], see
        `MMDMA.transfer_features`: those of X, or of the layer that is named.
    copy : bool
        Write into copies, in memory, and return them.
    **parameters : object
        Of `MMDMA`.

    Returns
    -------
    MuData or tuple of AnnData
        What has been written to: the objects given or, with `copy`, their copies. The logger mmdma_core tells the loss.

    Raises
    ------
    ValueError
        For what is neither, for a modality, layer or entry of obsm that is not there, for labels that neither modality
        has, or both, or no cell, and what `MMDMA.fit` raises.

    Examples
    --------
    >>> import anndata, mmdma_core
    >>> x, y, _ = mmdma_core.simulate("branch", n=60, p=20)
    >>> rna, protein = anndata.AnnData(x.numpy()), anndata.AnnData(y.numpy())
    >>> rna, protein = mmdma_core.match(rna, protein, n_components=2, n_epochs=10, n_starts=1, random_state=0)
    >>> rna.obsm["X_mmdma"].shape, sorted(protein.uns["mmdma"])
    ((60, 2), ['loss', 'params', 'version'])
    """
    if copy:
        data, other = _copied(data), None if other is None else _copied(other)
    views = _both(data, other, x, y)
    given = _labels(labels, views)
    held = [_features(view, features) for view in views] if features else None
    model = MMDMA(**parameters).fit(*views, use_rep=use_rep, layer=layer)
    about = model_file.described(model)
    taken = (model.representation_x_, model.representation_y_)
    for view, embedding, (rep, of_layer) in zip(views, (model.embedding_x_, model.embedding_y_), taken, strict=True):
        params = about["params"] | {"use_rep": rep} | ({"layer": of_layer} if of_layer is not None else {})
        view.obsm["X_mmdma"] = embedding
        view.uns["mmdma"] = as_stored("uns", about | {"params": params})
    for name, view, there in zip("xy", views, views[::-1], strict=True):
        if matches:
            nearest = model.matches(name, k=1)
            view.obs["mmdma_match"] = np.asarray(there.obs_names)[nearest["match"]]
            view.obs["mmdma_confidence"] = nearest["confidence"].to_numpy()
            view.obs["mmdma_lacking"] = nearest["lacking"].to_numpy()
        if given is not None and labels not in view.obs:
            found = model.transfer(given, name)
            view.obs[labels] = pd.Categorical(found["label"])
            view.obs[f"{labels}_confidence"] = found["confidence"].to_numpy()
    if held:
        for name, view, (values, columns) in zip("xy", views, held[::-1], strict=True):
            found = model.transfer_features(values, name)
            view.obsm["mmdma_features"] = pd.DataFrame(found, index=view.obs_names, columns=columns)
    _LOG.info(model_file.summary(model))
    for doubt in model_file.doubts(model):
        _LOG.warning(doubt)
    return data if other is None else (data, other)


def _labels(name: str | None, views: tuple[Any, Any]) -> np.ndarray | None:
    """Return the labels of the modality that has them. Raises ValueError."""
    if name is None:
        return None
    having = [view for view in views if name in view.obs]
    if len(having) != 1:
        which = "both modalities have" if having else "neither modality has"
        columns = "" if having else "; columns: " + "; ".join(listed(view.obs) for view in views)
        raise ValueError(
            f"labels are carried over from the one modality that has them, {which} {name!r} in obs{columns}"
        )
    labels = having[0].obs[name]
    if labels.isna().all():
        raise ValueError(f"no cell has a label, {name!r} is empty")
    return labels.astype(object).to_numpy()


def _features(view: Any, asked: bool | str) -> tuple[Any, list[str]]:
    """Return what is carried over of a modality, with its names. Raises ValueError."""
    taken = take(view, "features", layer=asked if isinstance(asked, str) else None)
    return taken.matrix, list(taken.features)


def _both(data: Any, other: Any, x: str | None, y: str | None) -> tuple[Any, Any]:
    """Return the two AnnData objects. Raises ValueError."""
    if hasattr(data, "mod"):
        if other is not None:
            raise ValueError("give MuData with x and y, or two AnnData objects, not MuData and another object")
        there = list(data.mod)
        if x is None and y is None and len(there) == 2:
            x, y = there
        for name, modality in (("x", x), ("y", y)):
            if modality not in there:
                got = "none was given" if modality is None else f"there is no {modality!r}"
                raise ValueError(f"{name} must be one of the modalities {listed(there)}; {got}")
        views = data.mod[x], data.mod[y]
    else:
        if x is not None or y is not None:
            raise ValueError(f"x and y are modalities of MuData, the first object is a {type(data).__name__}")
        views = data, other
    for place, view in zip(("first", "second"), views, strict=True):
        if not is_annotated(view) or not hasattr(view, "obsm"):
            raise ValueError(f"match takes MuData or two AnnData objects, the {place} is a {type(view).__name__}")
    if views[0] is views[1]:
        raise ValueError("both modalities are the same object, which has room for one embedding: give a copy of it")
    return views


def _copied(data: Any) -> Any:
    """Copy into memory what may lie in a file. Raises ValueError."""
    if not getattr(data, "isbacked", False):
        return data.copy() if hasattr(data, "copy") else data
    if not hasattr(data, "to_memory"):
        raise ValueError("copy=True is not for MuData that lies in a file: read it without backed")
    return data.to_memory()
