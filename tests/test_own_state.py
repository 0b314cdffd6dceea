"""What a program has set in PyTorch changes no number of any variant, and is afterwards as that program had it."""

import os
import random
import threading
import warnings
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.measuring import measurement
from mmdma_core import (
    MMDMA,
    Settings,
    metrics,
    reference_gradients,
    reference_loss,
    registry,
    settings,
    simulate,
    start,
    variants,
)
from mmdma_core import variant as known
from mmdma_core.external import original_2019
from mmdma_core.fused import compose, views_cuda
from mmdma_core.run import AdamRun
from mmdma_core.settings import own_state as in_own_state

CPU = torch.device("cpu")
SETTINGS = Settings(n_components=2, learning_rate=1e-3)
NAMES = [name for name in variants() if not known(name).missing(CPU)]
MATMUL = torch.backends.cuda.matmul
newer = pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="PyTorch before 2.9")


@contextmanager
def value_of(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


@contextmanager
def default_device(value):
    """Set back to none, which is not the same as back to the CPU: PyTorch would pass all calls through a mode."""
    torch.set_default_device(value)
    try:
        yield
    finally:
        torch.set_default_device(None)


default_dtype = partial(value_of, torch.get_default_dtype, torch.set_default_dtype)
deterministic = partial(value_of, torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode)
threads = partial(value_of, torch.get_num_threads, torch.set_num_threads)
precision = partial(value_of, torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
denormals = partial(value_of, lambda: False, torch.set_flush_denormal)


def attribute(owner, name, value):
    return value_of(partial(getattr, owner, name), partial(setattr, owner, name), value)


SET = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast of float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default device": lambda: default_device("meta"),
    "device around": lambda: torch.device("meta"),
    "deterministic": lambda: deterministic("error"),
    "deterministic, warned of": lambda: deterministic("warn"),
    "denormals": lambda: denormals(True),
    "medium": lambda: precision("medium"),
    "all at once": lambda: all_of(
        default_dtype(torch.bfloat16), torch.inference_mode(), torch.autocast("cpu"), torch.device("meta")
    ),
}


@contextmanager
def all_of(*contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def seen():
    """What this thread has set."""
    found = [torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()]
    found += [torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]
    found += [torch.get_deterministic_debug_mode(), torch.get_num_threads(), settings._LEAST_NORMAL / 2 == 0]
    return found + products()


def products():
    """How float32 products are rounded, by each of the settings; None where one cannot be read beside the others."""
    backends = torch.backends
    readers = [partial(getattr, owner, "fp32_precision", None) for owner in (backends, backends.cudnn, *settings._EACH)]
    readers += [partial(getattr, owner, "allow_tf32") for owner in (MATMUL, backends.cudnn)]
    readers += [torch.get_float32_matmul_precision, *(partial(getattr, MATMUL, name) for name in settings._HALF)]
    found = []
    for read in readers:
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


def numbers(name, views=None):
    """Losses, gradients, embeddings and parameters of some epochs, from two seeds where a run can begin again."""
    run = start(name, *(views or data()), SETTINGS)
    found = []
    for seed in (1, 2) if isinstance(run, AdamRun) else (None,):
        if seed is not None:
            run.restart(seed)
        for _ in range(2):
            run.step()
        if seed is not None:
            state = run.state()
            run.step()
            run.restore(state)
        found += [*run.loss()]
        found += [t.detach().numpy().copy() for t in (*run.gradients(), *run.embeddings(), *run.parameters)]
    return found


def data():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(60, 8)).astype("f4") for _ in "xy")


def same(found, expected):
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


@pytest.fixture(scope="module")
def expected():
    return {name: numbers(name) for name in NAMES}


@pytest.mark.parametrize("setting", SET)
def test_every_variant_gives_the_same_numbers_to_the_last_bit(setting, expected):
    with SET[setting]():
        before = seen()
        for name in NAMES:
            assert same(numbers(name), expected[name]), name
            assert seen() == before, name


def test_the_threads_stay_the_callers(expected):
    with threads(1):
        for name in NAMES:
            for one, other in zip(numbers(name), expected[name], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-5, err_msg=name)
            assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", NAMES)
def test_views_may_be_tensors_that_autograd_follows_or_of_inference_mode(name, expected):
    followed = [torch.from_numpy(view).requires_grad_() for view in data()]
    with torch.inference_mode():
        of_inference = [torch.from_numpy(view).clone() for view in data()]
    for views in (followed, of_inference):
        assert same(numbers(name, views), expected[name])


def whole_fit():
    x, y, match = simulate("branch", 50, 12, noise="fast")
    model = MMDMA("primal", n_components=2, n_epochs=4, n_starts=2, sigma="median", random_state=0, device="cpu")
    e_x, e_y = model.fit_transform(x, y)
    judged = metrics.evaluate(e_x, e_y, match, match, match)
    drawn = [t.numpy() for t in Settings(init="xavier_normal").draw(5, 6, 1)]
    thetas = [torch.from_numpy(theta.copy()) for theta in (model.weights_x_, model.weights_y_)]
    right = [*reference_loss("primal", x, y, *thetas, SETTINGS)]
    right += [t.numpy() for t in reference_gradients("primal", x, y, *thetas, SETTINGS)]
    return [x.numpy(), e_x, e_y, model.transform(y.numpy(), "y"), *judged.values.values(), *drawn, *right]


def in_batches():
    """With the code for CUDA, which holds tensors of its own."""
    x, y, _ = simulate("branch", 300, 5)
    with attribute(compose, "on_gpu", lambda device: True):
        run = start("primal-fourier", x, y, SETTINGS, batch_size=100, n_updates=20)
    for _ in range(5):
        run.step()
    return [t.numpy() for t in run.embeddings()]


@pytest.fixture(scope="module")
def around():
    return {what: what() for what in (whole_fit, in_batches)}


@pytest.mark.parametrize("what", [whole_fit, in_batches])
@pytest.mark.parametrize("setting", SET)
def test_the_rest_gives_the_same_numbers(setting, what, around):
    with SET[setting]():
        before = seen()
        assert same(what(), around[what])
        assert seen() == before


def test_a_failure_leaves_everything_as_it_was():
    with SET["all at once"]():
        before = seen()
        for wrong in (np.ones((3, 2)) * np.nan, np.ones(3)):
            with pytest.raises(ValueError, match="x must"):
                start("primal", wrong, wrong)
            assert seen() == before


def test_generators_of_random_numbers_keep_their_state():
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(7)
    drawn = [torch.rand(1).item(), np.random.rand(), random.random()]
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(7)
    for name in NAMES:
        start(name, *data(), SETTINGS).step()
    assert [torch.rand(1).item(), np.random.rand(), random.random()] == drawn


# Plugins, with classes of runs that are nothing of ours


class Plain:
    def __init__(self):
        self.epoch, self.seen = 0, {}

    def step(self):
        self.seen["step"] = seen()

    def loss(self):
        self.seen["loss"] = seen()


class Slots:
    __slots__ = ("epoch", "seen")
    __init__, step, loss = Plain.__init__, Plain.step, Plain.loss


@dataclass(frozen=True)
class Frozen:
    seen: dict

    step, loss = Plain.step, Plain.loss


def of_functions():
    """What a run does are functions that the instance holds."""
    told = {}
    methods = {name: lambda name=name: told.update({name: seen()}) for name in ("step", "loss")}
    return SimpleNamespace(seen=told, **methods)


class Own(Plain):
    """One of its methods is replaced on the instance, as by torch.compile."""

    def __init__(self):
        super().__init__()
        self.step = partial(Plain.step, self)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_VARIANTS", dict(registry._VARIANTS))
    return lambda start: registry.register("of-a-test", label="", reference="")(start)


@pytest.mark.parametrize("make", [Plain, Slots, lambda: Frozen({}), of_functions, Own])
def test_a_plugin_computes_as_if_nothing_were_set(make, registered):
    as_usual = in_own_state(CPU)(seen)()
    at_start = []

    @registered
    def begin(x, y, settings, device, seed=0, parameters=None):
        at_start.append(seen())
        return make()

    with SET["all at once"](), precision("high"):
        before = seen()
        assert before != as_usual
        run = start("of-a-test", *data(), SETTINGS)
        run.step()
        run.loss()
        assert seen() == before
    assert at_start == [as_usual]
    assert run.seen == {"step": as_usual, "loss": as_usual}


def test_a_run_goes_when_nothing_names_it():
    """What it holds is gone with it, without a search for cycles."""
    for name in ("primal", "primal-fused"):
        run = start(name, *data(), SETTINGS)
        gone = weakref.ref(run)
        del run
        assert gone() is None


# On a GPU


class Guard:
    """In the place of torch.cuda.device: which one is current."""

    current = 0

    def __init__(self, device):
        self._device = torch.device(device).index

    def __enter__(self):
        self._before, Guard.current = Guard.current, self._device

    def __exit__(self, *error):
        Guard.current = self._before


METHODS = ("step", "loss", "gradients", "embeddings", "state", "restore", "restart")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_method_is_called_on_the_runs_gpu(index, monkeypatch, registered):
    monkeypatch.setattr(torch.cuda, "device", Guard)
    told = {}
    methods = {name: lambda self, name=name: told.update({name: Guard.current}) for name in METHODS}
    registered(lambda *given: told.update(start=Guard.current) or type("OnGpu", (), methods)())
    run = known("of-a-test").start(*data(), SETTINGS, torch.device("cuda", index))
    for name in METHODS:
        getattr(run, name)()
    assert told == dict.fromkeys(("start", *METHODS), index)
    assert Guard.current == 0


def test_a_graph_is_captured_on_a_stream_of_its_gpu(monkeypatch):
    """PyTorch's own stream for captures lies on the GPU that captured first."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("a new one", device))
    zero, one = (torch.device("cuda", index) for index in (0, 1))
    stream = views_cuda._stream_for_capture
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
    assert stream(zero) is stream(one) is None
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", SimpleNamespace(device=one))
    assert stream(one) is None
    assert stream(zero) == ("a new one", zero)


# TF32 and other ways to round products

ALLOW = {
    "high": lambda: precision("high"),
    "medium": lambda: precision("medium"),
    "allow_tf32": lambda: attribute(MATMUL, "allow_tf32", True),  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
}
ALLOW_SINCE = {
    "all backends": lambda: attribute(torch.backends, "fp32_precision", "tf32"),
    "cuda": lambda: attribute(MATMUL, "fp32_precision", "tf32"),
    "cudnn, all": lambda: attribute(torch.backends.cudnn, "fp32_precision", "tf32"),
    "bf16 on the CPU": lambda: attribute(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


@pytest.mark.parametrize("allow", [*ALLOW, *(pytest.param(name, marks=newer) for name in ALLOW_SINCE)])
def test_products_are_rounded_to_float32_alone(allow):
    with warnings.catch_warnings(), (ALLOW | ALLOW_SINCE)[allow]():
        warnings.simplefilter("error")
        before = products()
        with in_own_state():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not MATMUL.allow_tf32
            assert not any(getattr(MATMUL, name) for name in settings._HALF)
            for owner in settings._EACH:
                assert owner.fp32_precision == "ieee"
            with in_own_state():
                assert not MATMUL.allow_tf32
            assert not MATMUL.allow_tf32
        assert products() == before


@newer
def test_what_followed_a_setting_still_follows_it():
    """A setting that was not made for one kind of product is not made for it here."""
    with all_of(*(attribute(owner, "fp32_precision", "none") for owner in settings._EACH)):
        for value in ("none", "ieee", "tf32"):
            with in_own_state():
                pass
            with attribute(torch.backends, "fp32_precision", value):
                assert {owner.fp32_precision for owner in settings._EACH} == {value}
                with in_own_state():
                    pass
                assert {owner.fp32_precision for owner in settings._EACH} == {value}


def test_the_older_settings_alone_suffice_where_there_are_no_newer_ones(monkeypatch):
    monkeypatch.setattr(settings, "_EACH", [])
    with precision("high"):
        with in_own_state():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not MATMUL.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32


def test_nvidias_own_switch_is_off(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with in_own_state():
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"


def test_tensorflow_allows_no_tf32_in_a_session(monkeypatch):
    allowed = [True]
    experimental = SimpleNamespace(
        tensor_float_32_execution_enabled=lambda: allowed[-1], enable_tensor_float_32_execution=allowed.append
    )
    fake = SimpleNamespace(config=SimpleNamespace(experimental=experimental))
    monkeypatch.setattr(original_2019, "load", lambda module: fake)
    run = object.__new__(original_2019.GraphRun)
    run._session = SimpleNamespace(run=lambda what: [allowed[-1]])
    run._terms = None
    assert run._run(None) == [False]
    assert allowed[-1] is True


def test_the_last_of_several_threads_puts_back_what_all_share():
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with in_own_state():
            inside.set()
            leave.wait(30)
            dtypes.append(torch.get_default_dtype())

    dtypes = []
    with default_dtype(torch.float64):
        other = threading.Thread(target=stay)
        with in_own_state():
            other.start()
            assert inside.wait(30)
        dtypes.append(torch.get_default_dtype())
        leave.set()
        other.join()
        dtypes.append(torch.get_default_dtype())
    assert dtypes == [torch.float32, torch.float32, torch.float64]


@pytest.mark.parametrize(("kept", "bits"), [(23, 24), (10, 11), (7, 8)])
def test_a_record_says_what_products_kept(kept, bits, monkeypatch):
    product = torch.Tensor.__matmul__

    def rounded(a, b):
        dropped = 23 - kept
        upwards = (a.view(torch.int32) + (1 << dropped >> 1)) >> dropped << dropped
        return product(upwards.view(torch.float32), b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    with SET["all at once"]():
        assert measurement._float32_bits(CPU) == bits
