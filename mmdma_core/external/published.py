"""The published package itself (PyPI: lsmmdma 0.1.11): its own training, one of its epochs for each step.

Its `train_and_evaluate` is a single loop, `while not stopping_criterion(i, ...)`, where that asks `i >= cfg.n_iter`.
The `n_iter` given to it hands control back at each new i, so that the loop, run in a thread of its own while ours
waits, halts before each epoch: a step is one epoch of its code, with its optimiser and its formulas.

As its command line does, the dual gets the kernels and the weights lambda / sqrt(p), for which both views need the
same p. It seeds the global generators of PyTorch, NumPy and Python, which then get back the state that they had.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmdma_core import compilers, kernels
from mmdma_core.errors import Unsupported
from mmdma_core.objective import LossTerms, total_loss
from mmdma_core.run import Pair, Run, starting_values
from mmdma_core.settings import Settings, current

# Modules that it imports and that training never uses -> the package that has them.
_FILE_ACCESS = {
    "scanpy": "scanpy",
    "tensorflow": "tensorflow",
    "tensorflow.io": "tensorflow",
    "torch.utils.tensorboard": "tensorboard",
}


_COMPILER = "torch._dynamo"  # the first torch.optim.Adam imports it, which takes a second or more
MODULES = (_COMPILER, "lsmmdma", "absl", "pykeops", "sklearn", "tenacity")  # that it imports


class _Placeholder(ModuleType):
    """A module whose every attribute is another one."""

    def __getattr__(self, name: str) -> ModuleType:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(name)


@contextmanager
def _placeholders() -> Iterator[None]:
    """Let modules for file access that are absent be there, and be gone again after."""
    absent = [name for name, package in _FILE_ACCESS.items() if importlib.util.find_spec(package) is None]
    sys.modules.update({name: _Placeholder(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def load(module: str) -> ModuleType:
    """Import the package's training, a module of it, which is kept from wiping KeOps' cache, or what it requires."""
    if not module.startswith("lsmmdma"):
        return kernels.load_keops(module)
    pykeops = kernels.load_keops("pykeops")
    module = "lsmmdma.train" if module == "lsmmdma" else module
    wipe = pykeops.clean_pykeops
    pykeops.clean_pykeops = lambda: None
    try:
        importlib.import_module(_COMPILER)  # it looks for TensorFlow, and a placeholder will not do
        with _placeholders():
            return importlib.import_module(module)
    finally:
        pykeops.clean_pykeops = wipe


class _EndlessEpochs:
    """Stands for `n_iter` in the loop's `i >= n_iter`: never reached, and at each new i the loop halts.

    halt  of the loop's _Coroutine
    """

    halt: Callable[[], None]

    def __init__(self) -> None:
        self.done = -1

    def __le__(self, epoch: int) -> bool:
        if epoch > self.done:
            self.done = epoch
            self.halt()
        return False


class _Ended(BaseException):
    """Raised in the work where it halts, so that it lets go of all that it holds."""


class _Coroutine:
    """Work in a thread that runs only while `advance` waits for it: until it calls `halt`, or raises, or ends.

    A thread and no greenlet: in a greenlet, memory that ran out was seen to end in a segmentation fault.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def advance(self) -> None:
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def halt(self) -> None:
        self._back.release()
        self._wait()

    def end(self) -> None:
        """Let the work go no further."""
        self._ended = True
        self._go.release()
        self._thread.join()

    def _wait(self) -> None:
        self._go.acquire()
        if self._ended:
            raise _Ended

    def _run(self, work: Callable[[], object]) -> None:
        try:
            self._wait()
            work()
        except _Ended:
            return
        except BaseException as error:  # whatever it is, it is raised again where the work is waited for
            self._error = error
        self._back.release()


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class PublishedRun(Run):
    """A run of the package's training loop. Float32 views."""

    def __init__(
        self,
        mode: str,
        symbolic: bool,
        x: torch.Tensor,
        y: torch.Tensor,
        settings: Settings,
        device: torch.device,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> None:
        if x.dtype != torch.float32:
            raise Unsupported("the published package computes in float32: give float32 views")
        if mode == "dual" and x.shape[1] != y.shape[1]:
            raise Unsupported("the published package's dual scales by one p: give views with as many features")
        train = load("lsmmdma")
        self.settings, self._epochs = settings, _EndlessEpochs()
        self._scale = 1 / math.sqrt(x.shape[1]) if mode == "dual" else 1.0
        self._views = views = tuple(map(train.get_kernel, (x, y))) if mode == "dual" else (x, y)
        config = train.ModelGetterConfig(
            seed=seed,
            learning_rate=settings.learning_rate,
            low_dim=settings.n_components,
            n_record=0,
            n_eval=0,
            sigmas=settings.sigma,
            lambda1=settings.lambda1 * self._scale,
            lambda2=settings.lambda2 * self._scale,
            n_iter=self._epochs,
            mode=mode,
            keops=symbolic,
            pca=0,
            init=",".join(map(str, settings.init)),
            use_unbiased_mmd=settings.unbiased,
            amsgrad=settings.amsgrad,
            window_size=0,
        )

        def work() -> None:
            with current(device):  # each thread has a current GPU of its own
                train.train_and_evaluate(config, *views, None, "", device)

        self._loop = _Coroutine(work)
        self._epochs.halt = self._loop.halt
        weakref.finalize(self, self._loop.end).atexit = False  # nothing in the thread holds this run
        with _generators_kept(device):
            self._model = self._begin()
        self.parameters = tuple(self._model.parameters())
        if parameters is not None:
            rows = [len(own) for own in self.parameters]
            for own, value in zip(self.parameters, starting_values(rows, settings, x, seed, parameters), strict=True):
                own.data.copy_(value)

    def _begin(self) -> torch.nn.Module:
        """Run its code up to the first epoch; the model that it has made."""
        made = []
        hook = register_module_parameter_registration_hook(lambda module, name, parameter: made.append(module))
        try:
            self._loop.advance()
        finally:
            hook.remove()
        return made[-1]

    @property
    def epoch(self) -> int:
        return self._epochs.done

    def step(self) -> None:
        self._loop.advance()

    def loss(self) -> LossTerms:
        with torch.no_grad():
            _, (mmd, *norms) = self._model(*self._views)
        terms = mmd, *(norm * self._scale for norm in norms)
        return LossTerms(total_loss(self.settings, *terms), *terms)

    def gradients(self) -> Pair:
        return torch.autograd.grad(self._model(*self._views)[0], self.parameters)

    def embeddings(self) -> Pair:
        with torch.no_grad():
            return tuple(view @ theta for view, theta in zip(self._views, self.parameters, strict=True))


def import_package(device: torch.device) -> None:
    """Import it before the clock starts, also where no server of processes has done so; with it KeOps."""
    if device.type == "cuda":
        compilers.prepare_cuda()
    load("lsmmdma")
