"""The first original implementation (Liu et al. 2019), written afresh: TensorFlow 1 graph mode, dual, biased MMD2.

The kernels are constants of the graph, squared distances come from tensors of differences (n, d, n), three per epoch,
and the distortions from full n x n differences. It weighs |alpha^T K alpha - I| by l1 = lambda1 / sqrt(p) and
|K - K alpha alpha^T K| by l2 = lambda2 / (n sqrt(p)) here, which gives the loss of this project.

Two of its walls are not memory. TensorFlow refuses graphs of more than 2 GiB: version 1 at n > 16384, both kernels
together; 2.21 at n > 23170, where one kernel is over. On a GPU its broadcasts go wrong beyond 2^31 elements (see
tensorflow/tensorflow#124949), on a CPU they do not.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mmdma_core.errors import Unsupported
from mmdma_core.objective import LossTerms, total_loss
from mmdma_core.run import Pair, Run, starting_values
from mmdma_core.settings import Settings


def load(module: str) -> ModuleType:
    """Import TensorFlow without its greetings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return importlib.import_module(module)


def works_on(device: torch.device) -> str | None:
    """Return None if TensorFlow computes on the device, else the reason why it does not."""
    if device.type == "cuda" and not load("tensorflow").config.list_physical_devices("GPU"):
        return "TensorFlow finds no GPU: pip install 'tensorflow[and-cuda]'"
    return None


class GraphRun(Run):
    """A run of a graph in its session. Float32 views."""

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        settings: Settings,
        device: torch.device,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> None:
        if x.dtype != torch.float32:
            raise Unsupported("original-2019 computes in float32: give float32 views")
        if settings.amsgrad:
            raise Unsupported("original-2019 has no amsgrad")
        largest = max(len(x), len(y)) ** 2 * settings.n_components
        if device.type == "cuda" and largest > 2**31:
            raise Unsupported(f"TensorFlow's broadcasts on a GPU end at 2^31 elements, n x d x n = {largest:.3g}")
        tf = load("tensorflow").compat.v1
        self.settings, self.epoch = settings, 0
        values = starting_values([len(x), len(y)], settings, x, seed, parameters)
        graph = tf.Graph()
        self._session = tf.Session(graph=graph, config=_config(tf))
        try:
            with graph.as_default(), graph.device(f"/{'GPU' if device.type == 'cuda' else 'CPU'}:0"):
                self._build(tf, (x, y), [value.cpu().numpy() for value in values])
                self._run(tf.global_variables_initializer())
            _ask_for_memory(len(x), len(y), settings.n_components, device)
        except ValueError as error:
            if "2GB" not in str(error):
                raise
            raise Unsupported(f"kernels of n = {len(x)} and {len(y)} as constants of a graph: {error}") from error

    def _build(self, tf: ModuleType, views: Pair, values: list[np.ndarray]) -> None:
        kernels = [tf.constant((view @ view.T).cpu().numpy()) for view in views]
        self._thetas = [tf.Variable(value) for value in values]
        self._embeddings = [tf.matmul(kernel, theta) for kernel, theta in zip(kernels, self._thetas, strict=True)]
        penalties, distortions = [], []
        for view, kernel, theta, e in zip(views, kernels, self._thetas, self._embeddings, strict=True):
            n, p = view.shape
            gram = tf.matmul(theta, e, transpose_a=True)
            penalties.append(tf.norm(gram - tf.eye(theta.shape[1])) / math.sqrt(p))
            distortions.append(tf.norm(kernel - tf.matmul(e, e, transpose_b=True)) / (n * math.sqrt(p)))
        self._terms = [_squared_mmd(tf, *self._embeddings, self.settings.sigma), *penalties, *distortions]
        loss = total_loss(self.settings, *self._terms)
        self._gradients = tf.gradients(loss, self._thetas)
        self._train = tf.train.AdamOptimizer(self.settings.learning_rate).minimize(loss)

    @property
    def parameters(self) -> Pair:
        return self._fetch(self._thetas)

    def step(self) -> None:
        self._run(self._train)
        self.epoch += 1

    def loss(self) -> LossTerms:
        terms = [float(term) for term in self._run(self._terms)]
        return LossTerms(total_loss(self.settings, *terms), *terms)

    def gradients(self) -> Pair:
        return self._fetch(self._gradients)

    def embeddings(self) -> Pair:
        return self._fetch(self._embeddings)

    def _fetch(self, what: list) -> Pair:
        return tuple(torch.from_numpy(array) for array in self._run(what))

    def _run(self, what: Any) -> Any:
        with _full_products():
            return self._session.run(what)


@contextmanager
def _full_products() -> Iterator[None]:
    """Products of float32 in float32: TensorFlow allows TF32 on a GPU unless it is told otherwise."""
    config = load("tensorflow").config.experimental
    allowed = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(allowed)


def _ask_for_memory(n_x: int, n_y: int, d: int, device: torch.device) -> None:
    """Raise what PyTorch raises if the host would not give what an epoch needs, see mmdma_core.models.broadcast.

    TensorFlow has been seen to crash where the system refuses it memory, which would read as an error of the variant.
    """
    if device.type == "cpu":
        torch.empty(d * (n_x**2 + n_y**2 + 4 * n_x * n_y))


def _squared_mmd(tf: ModuleType, e_x: Any, e_y: Any, sigma: float) -> Any:
    """Biased: the three means, each from a tensor of differences (n, d, m)."""

    def mean(a: Any, b: Any) -> Any:
        differences = tf.expand_dims(a, 2) - tf.expand_dims(tf.transpose(b), 0)
        return tf.reduce_mean(tf.exp(tf.reduce_sum(tf.square(differences), 1) * (-1 / (2 * sigma))))

    return tf.maximum(mean(e_x, e_x) + mean(e_y, e_y) - 2 * mean(e_x, e_y), 0)


def _config(tf: ModuleType) -> Any:
    """The threads that PyTorch has; on a GPU memory as it is needed, and no operation moved to the CPU unnoticed."""
    threads = torch.get_num_threads()
    config = tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
    config.gpu_options.allow_growth = True
    return config
