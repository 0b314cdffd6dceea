"""A plugin for tests: approximations of MMD-MA, most of which are none, and a variant of another objective."""

import torch

from mmdma_core import Primal, TorchRun, kernels, register
from mmdma_core.kernels import dense_sums


def nonsense(e_x, e_y, sigma):
    return tuple(1e-3 * n * (e_x**2).sum() for n in (len(e_x), len(e_y), 1.0))


def nothing(e_x, e_y, sigma):
    return tuple((0 * e_x).sum() for _ in range(3))


def noise(e_x, e_y, sigma):
    """Right on average, with noise that hides it."""
    return tuple(s * (1 + 3 * float(torch.randn(()))) for s in dense_sums(e_x, e_y, sigma))


def shrunk(e_x, e_y, sigma):
    return tuple(0.95 * s for s in dense_sums(e_x, e_y, sigma))


def none_of_the_views(e_x, e_y, sigma):
    return tuple(s.detach() for s in dense_sums(e_x, e_y, sigma))


def variant_of(kernel_sums):
    def start(x, y, settings, device, seed, parameters):
        return TorchRun((Primal(x), Primal(y)), kernel_sums, settings, x, seed, parameters)

    return start


VARIANTS = {
    "nonsense": (nonsense, {}),
    "nothing": (nothing, {"tolerance": 0.25, "bias": 0.25}),
    "only-noise": (noise, {}),
    "no-gradient": (none_of_the_views, {}),
    "shrunk": (shrunk, {}),
    "shrunk-and-says-so": (shrunk, {"tolerance": 0.1, "bias": 0.08}),
    "pairs": (kernels.linear_sums, {"tolerance": 0.2, "estimator": "unbiased"}),
    "energy": (nonsense, {"objective": "the energy distance"}),
}
for name, (kernel_sums, declared) in VARIANTS.items():
    register(name, label=name, reference="a test", exact=False, **declared)(variant_of(kernel_sums))
