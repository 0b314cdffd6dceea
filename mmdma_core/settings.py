"""The hyper-parameters of the objective, how starting values are drawn, and PyTorch's settings while a run computes.

`own_state` sets PyTorch as every variant takes it, whatever the program around has set; afterwards all is as that had
it. Numbers depend on the default type and device, grad mode, inference mode, autocast, how float32 products are rounded
(TF32, bf16), denormal numbers, algorithms that are deterministic but others. On a GPU also on the current one:
PyTorch's own operations go to that of their tensors, but Triton's kernels and graphs to the current one. The number of
threads stays the caller's, but for a fork of a process that has computed, which keeps to one.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from threadpoolctl import threadpool_limits

# Initialiser -> (torch function, the arguments it takes after the tensor), as in the published package.
_INITIALISERS = {
    "uniform": (torch.nn.init.uniform_, ("low", "high")),
    "normal": (torch.nn.init.normal_, ("mean", "std")),
    "xavier_uniform": (torch.nn.init.xavier_uniform_, ("gain",)),
    "xavier_normal": (torch.nn.init.xavier_normal_, ("gain",)),
}


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of MMD-MA; the defaults are those of the published scaling study.

    Parameters
    ----------
    n_components : int
        The dimension d of the embeddings, at least 1.
    sigma : float
        Variance-like width of the Gaussian kernel k(a, b) = exp(-|a - b|^2 / (2 sigma)), above 0.
    lambda1, lambda2 : float
        Weights of the two non-collapsing penalties, and of the two distortions, at least 0.
    learning_rate : float
        Step of Adam, at least 0.
    unbiased : bool
        The unbiased MMD2, without the diagonals, or the biased one, with them and clipped at 0.
    init : tuple
        How the parameters are drawn: (name, *arguments), name one of uniform (low, high), normal (mean, std),
        xavier_uniform (gain), xavier_normal (gain); arguments may be left out.
    amsgrad : bool
        Adam divides by the largest second moment so far (Reddi et al. 2018).
    n_frequencies : int
        Frequencies D in each epoch of an MMD2 from Fourier features, at least 1; others ignore it.

    Raises
    ------
    ValueError
        For a value that is not allowed; the message names the argument and what is.

    References
    ----------
    Meng-Papaxanthos et al., LSMMD-MA, equation 1 and the settings of its scaling study.

    Examples
    --------
    >>> from mmdma_core import Settings
    >>> Settings(n_components=5).lambda1
    0.0001
    """

    n_components: int = 10
    sigma: float = 1.0
    lambda1: float = 1e-4
    lambda2: float = 1e-4
    learning_rate: float = 1e-5
    unbiased: bool = True
    init: tuple = ("uniform", 0.0, 0.1)
    amsgrad: bool = False
    n_frequencies: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        for name in ("n_components", "n_frequencies"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not _is_number(self.sigma) or self.sigma <= 0:
            raise ValueError(f"sigma must be a positive number, got {self.sigma!r}")
        for name in ("lambda1", "lambda2", "learning_rate"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        for name in ("unbiased", "amsgrad"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        self._check_init()

    def _check_init(self) -> None:
        init = (self.init,) if isinstance(self.init, str) else self.init
        if not isinstance(init, (tuple, list)) or not init or init[0] not in tuple(_INITIALISERS):
            raise ValueError(f"init must start with one of {', '.join(_INITIALISERS)}, got {self.init!r}")
        init = tuple(map(plain, init))
        object.__setattr__(self, "init", init)
        arguments = _INITIALISERS[init[0]][1]
        if len(init) - 1 > len(arguments) or not all(map(_is_number, init[1:])):
            raise ValueError(f"init {init[0]!r} takes at most the numbers ({', '.join(arguments)}), got {init[1:]!r}")
        if init[0] == "uniform" and len(init) == 3 and init[1] > init[2]:
            raise ValueError(f"init 'uniform' needs low <= high, got {init[1:]!r}")
        if init[0] == "normal" and len(init) == 3 and init[2] < 0:
            raise ValueError(f"init 'normal' needs std >= 0, got {init[2]!r}")

    def draw(self, rows_x: int, rows_y: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw starting values of both views' parameters, float32 on the CPU.

        The first view is drawn first, from PyTorch's CPU generator: the seed alone decides the values, whatever device
        they go to, and they are those of the published package for the same seed.

        Parameters
        ----------
        rows_x, rows_y : int
            Rows of either view's parameters: p in the primal, n in the dual.
        seed : int
            Of the generator.

        Returns
        -------
        tuple of torch.Tensor
            (rows_x, d) and (rows_y, d).
        """
        generator = torch.Generator().manual_seed(plain(seed))
        function = _INITIALISERS[self.init[0]][0]
        with own_state():
            return tuple(
                function(torch.empty(rows, self.n_components), *self.init[1:], generator=generator)
                for rows in (rows_x, rows_y)
            )


def plain(value: Any) -> Any:
    """Return a scalar of NumPy or PyTorch, also of an array without dimensions, as Python's; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_whole(value: object) -> bool:
    """Return whether it is an integer of Python, which True and False are not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_CPU = torch.device("cpu")
_LEAST_NORMAL = sys.float_info.min
_MATMUL = torch.backends.cuda.matmul
# How float32 products are rounded. Since PyTorch 2.9 there is a setting for all backends, one for a backend and one for
# each of these, taken where the next one says 'none'; torch.set_float32_matmul_precision is older, and still there.
_EACH = (
    [_MATMUL, torch.backends.mkldnn.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    if hasattr(_MATMUL, "fp32_precision")
    else []
)

_HALF = [  # how sums of products of half precision are rounded, as far as this PyTorch can tell
    name
    for name in (
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    )
    if hasattr(_MATMUL, name)
]

_lock = threading.Lock()
_has_computed = False  # here, or in a process that this is a fork of
_inside = 0  # threads and calls that are in `own_state` now
_of_caller = ExitStack()  # what they have changed for the whole process; the last one to leave puts it back


@contextmanager
def own_state(device: torch.device | None = None) -> Iterator[None]:
    """Compute as if nothing had been set in PyTorch; on a GPU with an index, as the current one. Also a decorator."""
    _enter_process()
    try:
        with ExitStack() as stack:
            _own_thread(stack)
            stack.enter_context(current(device))
            yield
    finally:
        _leave_process()


def current(device: torch.device | None) -> AbstractContextManager[Any]:
    """Return a context in which the device is the current one of this thread, if it is a GPU with an index."""
    is_numbered = device is not None and device.type == "cuda" and device.index is not None
    return torch.cuda.device(device) if is_numbered else nullcontext()


def _own_thread(stack: ExitStack) -> None:
    """Set what each thread has of its own."""
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    if torch.get_default_device() != _CPU:
        stack.enter_context(_CPU)
    _set(stack, torch.is_grad_enabled(), True, torch.set_grad_enabled)
    for kind in ("cpu", "cuda"):
        _set(stack, torch.is_autocast_enabled(kind), False, lambda on, kind=kind: torch.set_autocast_enabled(kind, on))
    _set(stack, _LEAST_NORMAL / 2 == 0, False, torch.set_flush_denormal)


def _own_process(stack: ExitStack) -> None:
    """Set what all threads share."""
    _set(stack, torch.get_default_dtype(), torch.float32, torch.set_default_dtype)
    _set(stack, torch.get_deterministic_debug_mode(), 0, torch.set_deterministic_debug_mode)
    # NVIDIA's libraries read it when they are first used: anything but 0 leaves TF32 to them.
    override = "NVIDIA_TF32_OVERRIDE"
    _set(stack, os.environ.get(override, "0"), "0", partial(os.environ.__setitem__, override))
    _own_products(stack)
    for name in _HALF:
        _set_attribute(stack, _MATMUL, name, False)


def _set(stack: ExitStack, before: Any, own: Any, write: Callable[[Any], object]) -> None:
    if before != own:
        stack.callback(write, before)
        write(own)


def _set_attribute(stack: ExitStack, owner: Any, name: str, own: Any) -> None:
    _set(stack, getattr(owner, name), own, partial(setattr, owner, name))


def _own_products(stack: ExitStack) -> None:
    """Let float32 products have all their bits, whichever of PyTorch's settings allowed fewer."""
    if _EACH:
        for owner in (torch.backends, torch.backends.cudnn):
            _set_attribute(stack, owner, "fp32_precision", "none")
        before = [(owner, owner.fp32_precision) for owner in _EACH]
        stack.callback(_write_each, before)
        stack.callback(setattr, torch.backends, "fp32_precision", "none")
        torch.backends.fp32_precision = "ieee"  # of all that are not set for themselves
        _write_each([(owner, "ieee") for owner in _EACH])
    else:
        _set_attribute(stack, torch.backends.cudnn, "allow_tf32", False)
    # Writing the older setting writes newer ones, and it cannot be read where they contradict it: hence this order.
    _set(stack, torch.get_float32_matmul_precision(), "highest", torch.set_float32_matmul_precision)


def _write_each(wanted: list[tuple[Any, str]]) -> None:
    for owner, value in wanted:
        if owner.fp32_precision != value:
            owner.fp32_precision = value


def _enter_process() -> None:
    global _inside, _has_computed
    with _lock:
        _has_computed = True
        _inside += 1
        if _inside == 1:
            _own_process(_of_caller)


def _leave_process() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _of_caller.close()


def _after_fork() -> None:
    """OpenMP would wait for ever for the threads that it had in the process that was forked: it is left with one."""
    global _lock
    _lock = threading.Lock()
    if _has_computed:
        torch.set_num_threads(1)
        threadpool_limits(1)  # KeOps has an OpenMP of its own


os.register_at_fork(after_in_child=_after_fork)
