"""Whether this host has a GPU that can measure."""

from __future__ import annotations

import multiprocessing
import os

import torch

from benchmarks.measuring import machine, visible


def why_no_gpu() -> str | None:
    """None if the driver has a GPU that this PyTorch can use, else why not. Asked without CUDA.

    Raises ValueError where CUDA_VISIBLE_DEVICES names none of the GPUs that are there.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # PyTorch asks the driver and opens no context
    if machine.gpu() is None:
        return "the driver knows no GPU here"
    if not _torch_finds_a_gpu():
        return "this PyTorch is built without CUDA or finds no GPU"
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver counts
    return None


def _torch_finds_a_gpu() -> bool:
    """Of a MIG device PyTorch asks CUDA itself, which then does not survive a fork: another process asks."""
    if not visible.is_part():
        return torch.cuda.is_available()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_asked_in_a_child)


def _asked_in_a_child() -> bool:
    return torch.cuda.is_available()
