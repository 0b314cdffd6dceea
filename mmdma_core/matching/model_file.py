"""A fitted mmdma_core.MMDMA in an .npz file of plain arrays, with its parameters and loss history as JSON text."""

from __future__ import annotations

import importlib.metadata
import json
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator

from mmdma_core.files.atomic import atomically
from mmdma_core.files.formats import DAMAGED, check_is_itself
from mmdma_core.matching.anchors import as_pairs
from mmdma_core.matching.counts import Components
from mmdma_core.matching.starts import Match
from mmdma_core.settings import plain

_ARRAYS = ("embedding_x_", "embedding_y_", "weights_x_", "weights_y_")
_MEANS = ("mean_x_", "mean_y_")  # None without `center`
_COMPONENTS, _PARTS = ("components_x_", "components_y_"), ("mean", "axes")  # None of views that were no counts
_LACKING = ("lacking_x_", "lacking_y_")  # of no cell in files from before
_TRAINED = ("trained_x", "trained_y")
_SCALARS = ("feature_names_x_", "feature_names_y_", "n_features_in_", "n_features_y_", "n_iter_", "sigma_", "variant_")
_REPRESENTATIONS = ("representation_x_", "representation_y_")  # None in files from before there was AnnData
_SINCE_REFINED = {"l2_normalize_": None, "scale_x_": 1.0, "scale_y_": 1.0, "ambiguous_": False, "errors_": None}
_OF_MATCH = ("weights_x", "weights_y", "intercept", "embedding_x", "embedding_y")
_TABLES = ("loss_history_", "starts_")
_NOT_SAVED = ("callbacks", "checkpoint")


def save(model: BaseEstimator, path: Path) -> None:
    """Write a model. A random_state that is no integer is saved as the seed that it drew."""
    parameters = {k: v for k, v in model.get_params().items() if k not in _NOT_SAVED}
    parameters |= {"random_state": int(model.starts_["seed"][0]), "device": str(parameters["device"])}
    parameters["anchors"] = as_pairs(model.anchors)
    components = {name: getattr(model, name) for name in _COMPONENTS if getattr(model, name) is not None}
    content = {
        "parameters": parameters,
        "anchors": None if model.anchors_ is None else model.anchors_.to_dict("list"),
        "depths": {name: one.depth for name, one in components.items()},
        "scalars": {name: getattr(model, name) for name in (*_SCALARS, *_REPRESENTATIONS, *_SINCE_REFINED)},
        "alternatives": [{"start": one.start, "discrepancy": one.discrepancy} for one in model.alternatives_],
        "device": str(model.device_),
        "tables": {name: _as_json(getattr(model, name)) for name in _TABLES},
    }
    arrays = {name: getattr(model, name) for name in (*_ARRAYS, *_LACKING)}
    arrays |= {name: getattr(model, name) for name in _MEANS if getattr(model, name) is not None}
    arrays |= {f"{of}_{part}": getattr(one, part) for of, one in components.items() for part in _PARTS}
    arrays |= {"intercept_y_": model.intercept_y_} | dict(zip(_TRAINED, model.trained_weights_, strict=True))
    for k, one in enumerate(model.alternatives_):
        parts = (*one.weights, one.intercept, *one.embeddings)
        arrays |= {f"alternative{k}_{name}": part for name, part in zip(_OF_MATCH, parts, strict=True)}
    archive = BytesIO()  # the archive of a file that cannot be written would complain when it is let go
    np.savez(archive, mmdma=json.dumps(content, default=_plain), **arrays)
    with atomically(path) as part:
        part.write_bytes(archive.getbuffer())


def load(model: BaseEstimator, path: Path) -> BaseEstimator:
    """Fill an empty model from the file. Raises ValueError for a file that is no model, OSError if there is none."""
    with path.open("rb"):  # a file that is not there is no damaged one
        check_is_itself(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            content = json.loads(str(file["mmdma"]))
            arrays = {name: file[name] for name in file.files if name != "mmdma"}
            parameters = {"preprocess": "none"} | content["parameters"]
            if "refine" not in parameters:  # a file from before there was one
                parameters |= {"refine": False, "starts": "random", "scale": False}
            if isinstance(parameters["init"], list):  # JSON has no tuples
                parameters["init"] = tuple(parameters["init"])
            model.set_params(**parameters)
            scalars, tables = content["scalars"], content["tables"]
            for name in _ARRAYS:
                setattr(model, name, arrays[name])
            for name, of in zip(_LACKING, _ARRAYS, strict=False):
                setattr(model, name, arrays.get(name, np.zeros(len(arrays[of]), bool)))
            for name in _MEANS:
                setattr(model, name, arrays.get(name))
            model.anchors_ = None if content.get("anchors") is None else pd.DataFrame(content["anchors"])
            depths = content.get("depths", {})
            for name in _COMPONENTS:
                parts = [arrays.get(f"{name}_{part}") for part in _PARTS]
                setattr(model, name, Components(depths[name], *parts) if name in depths else None)
            for name in _SCALARS:
                setattr(model, name, tuple(scalars[name]) if isinstance(scalars[name], list) else scalars[name])
            for name, before in (_SINCE_REFINED | {"l2_normalize_": parameters["l2_normalize"]}).items():
                setattr(model, name, scalars.get(name, before))
            model.intercept_y_ = arrays.get("intercept_y_", np.zeros(arrays["weights_y_"].shape[1], np.float32))
            model.trained_weights_ = tuple(
                arrays.get(name, arrays[after]) for name, after in zip(_TRAINED, _ARRAYS[2:], strict=True)
            )
            model.alternatives_ = []
            for k, one in enumerate(content.get("alternatives", [])):
                w_x, w_y, intercept, e_x, e_y = (arrays[f"alternative{k}_{name}"] for name in _OF_MATCH)
                model.alternatives_.append(Match(one["start"], (w_x, w_y), intercept, (e_x, e_y), one["discrepancy"]))
            for name in _REPRESENTATIONS:
                setattr(model, name, tuple(scalars.get(name) or ()) or None)
            for name in _TABLES:
                setattr(model, name, pd.read_json(StringIO(tables[name]), orient="table"))
            model.device_ = torch.device(content["device"])
    except DAMAGED as error:
        raise ValueError(f"{path} is no model of this program ({type(error).__name__})") from None
    return model


def described(model: BaseEstimator) -> dict[str, Any]:
    """Return what goes beside an embedding: the parameters as they were used, the loss and this program's version."""
    params = {k: plain(v) for k, v in model.get_params().items() if k not in (*_NOT_SAVED, "verbose")}
    params |= {"variant": model.variant_, "sigma": model.sigma_, "random_state": int(model.starts_["seed"][0])}
    params |= {"device": str(params["device"]), "anchors": as_pairs(model.anchors)}
    try:
        version = importlib.metadata.version("mmdma-benchmark")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        version = "unknown"
    return {"params": params, "loss": _loss(model), "version": version}


def summary(model: BaseEstimator) -> str:
    """Say how a fit ended, in one line."""
    loss = _loss(model)
    return f"{model.variant_}: " + ("not trained" if loss is None else f"loss {loss:.4g} after {model.n_iter_} epochs")


def verdict(model: BaseEstimator) -> str | None:
    """Say, if the data do not tell the match from another one, that they do not; in one line."""
    if not model.ambiguous_:
        return None
    errors = f"{model.errors_:.1f} standard error{'' if round(model.errors_, 1) == 1 else 's'}"
    return f"ambiguous: another match of the cells fits as well, {errors} apart; it is kept, see alternatives_"


def doubts(model: BaseEstimator) -> list[str]:
    """Say what speaks against the match: that another one fits as well, and which view lacks cells of the other."""
    said = [verdict(model)] if model.ambiguous_ else []
    for name, other, cells in (("x", "y", model.lacking_x_), ("y", "x", model.lacking_y_)):
        if cells.any():
            said.append(f"{cells.sum():,} of {len(cells):,} cells of {name} have no counterpart in {other}")
    return said


def _loss(model: BaseEstimator) -> float | None:
    """The loss of the chosen start, as MMD-MA trained it; None without training."""
    starts = model.starts_
    chosen = starts["loss"][starts["chosen"].astype(bool)] if "chosen" in starts else starts["loss"]
    return float(chosen.min()) if model.n_iter_ else None


def _as_json(table: pd.DataFrame) -> str:
    return table.to_json(orient="table", index=False, double_precision=15)


def _plain(value: object) -> object:
    """Return a NumPy number as Python's. Raises TypeError for what JSON cannot hold."""
    if plain(value) is value:
        raise TypeError(f"{value!r} cannot be saved")
    return plain(value)
