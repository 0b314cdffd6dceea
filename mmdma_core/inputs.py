"""Checks of what a user hands in, each with a one-line error that names the argument and what is allowed."""

from __future__ import annotations

import numpy as np
import torch


def as_device(device: str | torch.device) -> torch.device:
    """The device, checked to be there. Raises ValueError for an unknown one, RuntimeError for a GPU that is absent."""
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:INDEX', got {device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:INDEX', got {str(device)!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f"device {str(device)!r}: no such GPU here, {torch.cuda.device_count()} found by PyTorch")
    return device


def as_views(
    x: torch.Tensor | np.ndarray, y: torch.Tensor | np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two views as dense tensors of one floating type on the device.

    x (n_x, p_x) and y (n_y, p_y), rows are cells. float64 if both are float64, else float32.
    Raises ValueError for anything that is not two finite matrices of at least 2 cells and 1 feature.
    """
    tensors = {name: _as_tensor(name, value) for name, value in (("x", x), ("y", y))}
    if tensors["x"].device != tensors["y"].device:
        raise ValueError(f"x is on {tensors['x'].device} and y on {tensors['y'].device}: give both on one device")
    double = all(t.dtype == torch.float64 for t in tensors.values())
    dtype = torch.float64 if double else torch.float32
    views = {name: t.to(device=device, dtype=dtype) for name, t in tensors.items()}
    for name, view in views.items():
        if not all(torch.isfinite(extreme) for extreme in torch.aminmax(view)):  # no n x p mask, unlike isfinite
            raise ValueError(f"{name} must be finite, it holds NaN or infinity")
    return views["x"], views["y"]


def _as_tensor(name: str, value: torch.Tensor | np.ndarray) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a numeric matrix, got {type(value).__name__}") from None
    if tensor.ndim != 2:
        raise ValueError(f"{name} must be a matrix (cells, features), got {tensor.ndim} dimension(s)")
    if tensor.layout != torch.strided or tensor.is_complex():
        raise ValueError(f"{name} must be a dense real matrix, got {tensor.layout} {tensor.dtype}")
    if tensor.shape[0] < 2 or tensor.shape[1] < 1:
        raise ValueError(f"{name} must have at least 2 cells and 1 feature, got shape {tuple(tensor.shape)}")
    return tensor
