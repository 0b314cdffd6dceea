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
from mmdma_core.settings import plain

_ARRAYS = ("embedding_x_", "embedding_y_", "weights_x_", "weights_y_")
_MEANS = ("mean_x_", "mean_y_")  # None without `center`
_SCALARS = ("feature_names_x_", "feature_names_y_", "n_features_in_", "n_features_y_", "n_iter_", "sigma_", "variant_")
_REPRESENTATIONS = ("representation_x_", "representation_y_")  # None in files from before there was AnnData
_TABLES = ("loss_history_", "starts_")
_NOT_SAVED = ("callbacks", "checkpoint")


def save(model: BaseEstimator, path: Path) -> None:
    """Write a model. A random_state that is no integer is saved as the seed that it drew."""
    parameters = {k: v for k, v in model.get_params().items() if k not in _NOT_SAVED}
    parameters |= {"random_state": int(model.starts_["seed"][0]), "device": str(parameters["device"])}
    content = {
        "parameters": parameters,
        "scalars": {name: getattr(model, name) for name in (*_SCALARS, *_REPRESENTATIONS)},
        "device": str(model.device_),
        "tables": {name: _as_json(getattr(model, name)) for name in _TABLES},
    }
    arrays = {name: getattr(model, name) for name in _ARRAYS}
    arrays |= {name: getattr(model, name) for name in _MEANS if getattr(model, name) is not None}
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
            arrays = {name: file[name] for name in (*_ARRAYS, *_MEANS) if name in file.files}
            parameters = content["parameters"]
            if isinstance(parameters["init"], list):  # JSON has no tuples
                parameters["init"] = tuple(parameters["init"])
            model.set_params(**parameters)
            scalars, tables = content["scalars"], content["tables"]
            for name in _ARRAYS:
                setattr(model, name, arrays[name])
            for name in _MEANS:
                setattr(model, name, arrays.get(name))
            for name in _SCALARS:
                setattr(model, name, tuple(scalars[name]) if isinstance(scalars[name], list) else scalars[name])
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
    params["device"] = str(params["device"])
    try:
        version = importlib.metadata.version("mmdma-benchmark")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        version = "unknown"
    return {"params": params, "loss": float(model.starts_["loss"].min()), "version": version}


def summary(model: BaseEstimator) -> str:
    """Say how a fit ended, in one line."""
    return f"{model.variant_}: loss {model.starts_['loss'].min():.4g} after {model.n_iter_} epochs"


def _as_json(table: pd.DataFrame) -> str:
    return table.to_json(orient="table", index=False, double_precision=15)


def _plain(value: object) -> object:
    """Return a NumPy number as Python's. Raises TypeError for what JSON cannot hold."""
    if plain(value) is value:
        raise TypeError(f"{value!r} cannot be saved")
    return plain(value)
