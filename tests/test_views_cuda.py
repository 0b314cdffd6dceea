"""The views on CUDA, on CPU tensors: what float32 products leave of the accuracy for n <= p, and that nothing waits."""

import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdma_core import Settings, simulate, start
from mmdma_core.fused import compose, views_cuda
from mmdma_core.run import Adam

D = 10
SETTINGS = Settings(n_components=D, lambda1=0.0, lambda2=1.0)
# Relative. Distortion and gradient near the optimum are what is left of terms 10^4 times as large.
TOLERANCES = {"E": 1e-6, "T": 1e-8, "distortion": 1e-5, "gradient": 1e-5}
SIZES = [(60, 60), (60, 400), (400, 400)]
LARGE = [pytest.param(*size, marks=pytest.mark.slow) for size in [(2000, 2000), (1000, 10_000), (5000, 5000)]]


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The fused variants run their CUDA code on CPU tensors."""
    monkeypatch.setattr(compose, "on_gpu", lambda device: True)


class PlainView(views_cuda.CudaView):
    """T from float32 products, as they are."""

    def forward(self, w):
        self._w, self.e = w.double(), self.x @ w
        self._t = (self.x.T @ self.e).double()


def leading(x):
    """The first right singular vectors of X, (p, d) in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.svd_lowrank(x.double(), q=D + 10, niter=8)[2][:, :D]


@functools.lru_cache(maxsize=1)
def problem(n, p):
    """X (n, p) of the branch data, X X^T in float64, and the first right singular vectors of X."""
    x = simulate("branch", n, p)[0]
    return x, x.double() @ x.double().T, leading(x)


def near_the_optimum(vectors, distance):
    """W (p, d): the first right singular vectors of X, each moved at random by so much of its length; None: a start."""
    generator = torch.Generator().manual_seed(1)
    moved = torch.randn(vectors.shape, generator=generator, dtype=torch.float64) / math.sqrt(len(vectors))
    if distance is None:
        return 0.1 * torch.rand(vectors.shape, generator=generator)
    return (vectors + distance * moved).float()


def errors(view, w, kernel=None):
    """Of E, T, the distortion and its gradient against float64, relative to their norms; kernel: X X^T, if known."""
    x, doubles = view.x.double(), w.double()
    n, p = x.shape
    e = x @ doubles
    t = x.T @ e
    difference = torch.addmm(x @ x.T if kernel is None else kernel, e, e.T, alpha=-1)
    gradient = x.T @ (difference @ e) * (-2 / (n * math.sqrt(p) * difference.norm()))
    view.d_e.zero_()
    view.forward(w)
    _, distortion = view.backward()
    right = difference.norm() / (n * math.sqrt(p))
    pairs = {
        "E": (view.e, e),
        "T": (view._t, t),
        "distortion": (distortion, right),
        "gradient": (view.gradient, gradient),
    }
    return {what: float((found - right).norm() / right.norm()) for what, (found, right) in pairs.items()}


def beyond(found):
    return {what: error for what, error in found.items() if not error <= TOLERANCES[what]}


@pytest.mark.parametrize("spread", [1.0, 32.0])  # a power of two scales float32 exactly
@pytest.mark.parametrize(("n", "p"), SIZES + LARGE)
def test_float32_products_leave_the_accuracy_of_float64(n, p, spread):
    x, kernel, vectors = problem(n, p)
    view, kernel = views_cuda.CudaView(spread * x, SETTINGS), spread**2 * kernel
    for distance in (0.0, 1e-4, 1e-3, 1e-2, 0.1, None):
        assert not beyond(errors(view, near_the_optimum(vectors, distance), kernel)), distance


@pytest.mark.parametrize(("n", "p"), SIZES)
def test_after_training(n, p):
    """Adam on the distortion alone comes near the optimum, where the terms have cancelled."""
    x = simulate("branch", n, p)[0]
    view, w = views_cuda.CudaView(x, SETTINGS), near_the_optimum(leading(x), 0.3)
    first = None
    adam = Adam([w], 1e-3)
    for _ in range(300):
        view.d_e.zero_()
        view.forward(w)
        _, distortion = view.backward()
        first = distortion if first is None else first
        adam.step([view.gradient])
    assert distortion < 0.1 * first
    found = errors(view, w)
    # What is left of the gradient is X^T of a product with X that is large where the gradient is small.
    assert found.pop("gradient") < 1e-4
    assert not beyond(found)


@pytest.mark.parametrize("distance", [0.0, 1e-3, 1e-2])
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_plain_float32_is_beyond_these_tolerances(n, p, distance):
    view = PlainView(simulate("branch", n, p)[0], SETTINGS)
    assert {"T", "distortion", "gradient"} <= set(beyond(errors(view, near_the_optimum(leading(view.x), distance))))


def test_a_rank_below_d():
    """No direction is left for what the subspace has beyond that."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(50, 2, generator=generator) @ torch.randn(2, 70, generator=generator)
    for x in (plane, 1000 + 0.01 * plane, torch.ones(20, 20)):
        view = views_cuda.CudaView(x, SETTINGS)
        assert not beyond(errors(view, near_the_optimum(leading(x), None)))


class Watched(TorchDispatchMode):
    """Names of the operations called, the bytes that they read of X, and the most bytes that one of them makes."""

    def __init__(self, x=None):
        super().__init__()
        self.names, self.read, self.most, self._x = set(), 0, 0, x

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.names.add(operation._schema.name)
        if not operation.is_view:
            self.most = max([self.most, *(one.nbytes for one in tensors(out))])
            self.read += sum(one.nbytes for one in tensors(args) if self._x is not None and self._shares(one))
        return out

    def _shares(self, one):
        return one.untyped_storage().data_ptr() == self._x.untyped_storage().data_ptr()


def tensors(tree):
    return [one for one in tree_leaves(tree) if isinstance(one, torch.Tensor)]


@pytest.mark.parametrize(("kind", "times"), [("primal", 4), ("dual", 6)])
def test_an_epoch_makes_nothing_of_the_size_of_x(kind, times):
    """And reads X as often as the module's docstring says."""
    n, p = 600, 800
    view = views_cuda.VIEWS[kind](simulate("branch", n, p)[0], Settings(n_components=3))
    theta = 0.1 * torch.rand(view.rows, 3, generator=torch.Generator().manual_seed(0))
    with Watched(view.x) as watched:
        view.d_e.zero_()
        view.forward(theta)
        view.backward()
    assert watched.most < 4 * n * p / 10
    assert watched.read == times * 4 * n * p


WAIT = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select", "aten::equal"}


@pytest.mark.parametrize(("n", "p"), [(60, 20), (20, 60)])
@pytest.mark.parametrize("formulation", ["primal", "dual"])
def test_an_epoch_asks_for_no_value(as_on_cuda, formulation, n, p):
    """Views, Fourier features and Adam: no operation whose result decides what comes next."""
    x, y, _ = simulate("branch", n, p)
    run = compose.compose(formulation, compose.fourier_mmd)(x, y, Settings(), torch.device("cpu"))
    with Watched() as watched:
        run._update(run.mmd)
    assert "aten::_fused_adam_" in watched.names
    assert not watched.names & WAIT


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "p"), [(700, 30), (60, 400)])
@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_epochs_on_the_gpu_wait_for_nothing(n, p, captured, tf32, monkeypatch):
    """And end where the same epochs on the CPU do, whether or not TF32 is allowed."""
    monkeypatch.setattr(views_cuda, "CAPTURED_POINTS", 40_000 if captured else 0)
    x, y, _ = simulate("branch", n, p)
    settings = Settings(learning_rate=1e-3)
    run, on_cpu = (start("primal-fourier", x, y, settings, device) for device in ("cuda", "cpu"))
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        run.step()
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(20):
            run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_float32_matmul_precision("highest")
    for _ in range(21):
        on_cpu.step()
    assert run.loss() == pytest.approx(on_cpu.loss(), rel=1e-4)


@pytest.mark.gpu
def test_taking_a_sample_waits_for_nothing():
    x, y, _ = simulate("branch", 3000, 30)
    run = start("primal-fourier", x, y, Settings(), "cuda", batch_size=500, n_updates=100)
    run.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
