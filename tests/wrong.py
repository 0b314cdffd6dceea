"""Variants that gpu-check has to find out: a plugin for its test."""

import ctypes

from mmdma_core import Primal, TorchRun, register
from mmdma_core.kernels import dense_sums


class WrongGradient(TorchRun):
    """Its gradient is a thousandth too long; its loss is right."""

    def gradients(self):
        return tuple(1.001 * gradient for gradient in super().gradients())


@register("wrong-gradient", label="wrong-gradient", reference="a test")
def wrong_gradient(x, y, settings, device, seed, parameters):
    return WrongGradient((Primal(x), Primal(y)), dense_sums, settings, x, seed, parameters)


@register("crashes", label="crashes", reference="a test")
def crashes(x, y, settings, device, seed, parameters):
    ctypes.string_at(0)
