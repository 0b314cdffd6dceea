"""The variants by name: `register` adds one, `start` runs one."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import distributed

from mmdma_core.errors import MissingDependency, Unsupported
from mmdma_core.inputs import Given, Kernel, View, as_device, as_views, is_sparse
from mmdma_core.models import CostModel, MemoryModel
from mmdma_core.run import Run, in_own_state
from mmdma_core.settings import Settings, is_whole, own_state, plain

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # of a folder on any file system, and of an option's value

Requirement = str | Callable[[torch.device], str | None]
BatchSize = int | Literal["auto"] | None
LEAST_BATCH = 100  # cells; fewer tell little of a cloud
_AROUND = ("mmdma_core", "contextlib", "sklearn")  # packages between the caller and a warning of `start`


@dataclass(frozen=True)
class Variant:
    """One way to compute the objective of MMD-MA.

    Parameters
    ----------
    name, label : str
        As it stands in config.yaml and in records, and in figures.
    reference : str
        Where the algorithm comes from.
    requires : tuple
        Modules that must be importable, and functions of the device that return None or the reason why not (or raise
        Unsupported, if nothing that could be installed would help).
    exact : bool
        False for an approximation of the objective, and for another objective: neither is in a map of the fastest.
    start : callable
        Prepares a run: start(x, y, settings, device, seed, parameters) -> Run, with both views checked and on the
        device. It is called in `own_state`, and so is each method of the run that computes.
    module : str
        The module that registered it.
    memory_model, cuda_memory_model : callable, optional
        (n, p, d) -> the most bytes that are allocated at one moment, see mmdma_core.models; None: not stated. With
        `several_ranks` it takes a fourth, the number of ranks, and returns what each of them needs. The second one is
        for CUDA, where that runs other code.
    formulation : {'primal', 'dual'}
        Of its parameters: W (p, d) or alpha (n, d).
    cost_model : callable, optional
        (n, p, d) -> the work of an epoch, see mmdma_core.models; None: not stated.
    estimator : {'biased', 'unbiased'}, optional
        The one MMD2 that the algorithm has, whatever `settings.unbiased` asks for; None: it has both.
    accepts : tuple of {'dense', 'sparse', 'kernel'}
        The forms of a view that it treats; 'sparse': without making it dense.
    importer : callable
        Imports a required module, where a plain import would not do.
    install : str, optional
        What to type where a required module is absent; None: pip install and its name.
    several_ranks, takes_batches : bool
        Whether its `start` takes `group`, and `batch_size` with `n_updates`, as well: see mmdma_core.start.
    tolerance, bias : float
        Of an approximation of some 50 cells: how far one estimate may be off, in root mean square over seeds and orders
        of the cells, at most MOST_TOLERANCE (MMD2 absolutely, the gradient as a part of the sum of the norms of its
        parts); and how much of that is left in the mean over these, 0 for an unbiased estimate.
    objective : str, optional
        What it minimises in place of MMD-MA's objective, in a few words; None: MMD-MA's, or an approximation of it. A
        variant of another objective is not compared with the reference, and is drawn apart.
    """

    name: str
    label: str
    reference: str
    requires: tuple[Requirement, ...]
    exact: bool
    start: Callable[..., Run]
    module: str
    memory_model: MemoryModel | None = None
    cuda_memory_model: MemoryModel | None = None
    formulation: Literal["primal", "dual"] = "primal"
    cost_model: CostModel | None = None
    estimator: Literal["biased", "unbiased"] | None = None
    accepts: tuple[Literal["dense", "sparse", "kernel"], ...] = ("dense",)
    importer: Callable[[str], object] = importlib.import_module
    install: str | None = None
    several_ranks: bool = False
    takes_batches: bool = False
    tolerance: float = 0.05
    bias: float = 0.0
    objective: str | None = None

    @property
    def remark(self) -> str:
        """Return what is said beside its name: nothing of an exact variant, else 'approximate' or what it minimises."""
        if self.objective:
            return f"another objective: {self.objective}"
        return "" if self.exact else "approximate"

    def needs_bytes(self, n: int, p: int, d: int, ranks: int = 1, device: str = "cpu") -> int | None:
        """Return what the memory model says.

        Parameters
        ----------
        n, p, d : int
            Cells of each view over all ranks, features of each view, components.
        ranks : int
            Processes that share the cells.
        device : {'cpu', 'cuda'}
            Where they run.

        Returns
        -------
        int or None
            Bytes that each process needs; None without a model.
        """
        model = self.cuda_memory_model if device == "cuda" and self.cuda_memory_model else self.memory_model
        if model is None:
            return None
        n, p, d, ranks = map(plain, (n, p, d, ranks))  # 32 bits do not hold n^2
        return model(n, p, d) if ranks == 1 else model(n, p, d, ranks)

    def taken(self, settings: Settings) -> Settings:
        """Return the settings as this variant follows them: with its own MMD2, if it has only one.

        Parameters
        ----------
        settings : Settings
            As asked for.

        Returns
        -------
        Settings
            As followed.
        """
        return settings if self.estimator is None else replace(settings, unbiased=self.estimator == "unbiased")

    def absent(self) -> tuple[str, ...]:
        """Return the required modules that cannot be imported here.

        Returns
        -------
        tuple of str
            Their names.
        """
        return tuple(r for r in self.requires if isinstance(r, str) and importlib.util.find_spec(r) is None)

    def missing(self, device: torch.device) -> str | None:
        """Return what the variant requires and this device does not have.

        Parameters
        ----------
        device : torch.device
            Where it is to run.

        Returns
        -------
        str or None
            None if all is there, else what is missing, in words.

        Raises
        ------
        Unsupported
            If nothing that could be installed would help.
        """
        absent = self.absent()
        if absent:
            install = self.install or f"pip install {' '.join(absent)}"
            return f"variant {self.name!r} needs {', '.join(absent)}: {install}"
        with own_state(device):
            reasons = (requirement(device) for requirement in self.requires if callable(requirement))
            return next(filter(None, reasons), None)


_VARIANTS: dict[str, Variant] = {}
_WORDS = ("all", "auto")  # of config.yaml and of MMDMA, where a name may stand
MOST_TOLERANCE = 0.25  # what is further off approximates nothing


def register(
    name: str,
    *,
    label: str,
    reference: str,
    requires: Sequence[Requirement] = (),
    exact: bool = True,
    **more: object,
) -> Callable[[Callable[..., Run]], Callable[..., Run]]:
    """Make a `start` function a variant, as a decorator.

    Parameters
    ----------
    name : str
        As it stands in config.yaml, in records and as the folder of these: at most 100 letters of ASCII, digits, '-',
        '_' and '.', the first neither '-' nor '.'.
    label, reference, requires, exact, **more : object
        Fields of Variant, see there.

    Returns
    -------
    callable
        The decorator, which returns the function as it is.

    Raises
    ------
    ValueError
        If the name cannot be one, or is taken, be it in capitals: some file systems take both for one folder; if what
        an approximation or another objective declares cannot be.
    """
    module = sys._getframe(1).f_globals["__name__"]

    def decorate(function: Callable[..., Run]) -> Callable[..., Run]:
        add(Variant(name, label, reference, tuple(requires), exact, in_own_state(function), module, **more))
        return function

    return decorate


def add(made: Variant) -> Variant:
    """Add a variant to the registry, which returns it as it stands there; raises ValueError as `register` does."""
    name = made.name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _WORDS:
        allowed = "up to 100 letters of ASCII, digits, '-', '_' and '.', the first neither '-' nor '.'"
        raise ValueError(f"{name!r} cannot be the name of a variant; allowed: {allowed}; not {', '.join(_WORDS)}")
    taken = next((other for other in _VARIANTS if other.lower() == name.lower()), None)
    if taken is not None:
        raise ValueError(f"a variant named {taken!r} is registered already; {name!r} could share its folder")
    _check_declared(made)
    _VARIANTS[name] = replace(made, exact=made.exact and made.objective is None)
    return _VARIANTS[name]


def remove(name: str) -> None:
    """Take a variant out of the registry, to put another one in its place."""
    del _VARIANTS[name]


def _check_declared(made: Variant) -> None:
    """Raise ValueError for a tolerance or an objective that cannot be, or that the kind of variant does not have."""
    if made.objective is not None and not (isinstance(made.objective, str) and made.objective.strip()):
        raise ValueError(f"variant {made.name!r}: objective must say in a few words what it minimises")
    said = [field for field in ("tolerance", "bias") if getattr(made, field) != getattr(Variant, field)]
    if said and (made.exact or made.objective):
        raise ValueError(f"variant {made.name!r}: {said[0]} is of an approximation of MMD-MA, which says exact=False")
    if not 0 <= made.bias <= made.tolerance <= MOST_TOLERANCE or not made.tolerance:
        raise ValueError(
            f"variant {made.name!r}: 0 <= bias <= tolerance <= {MOST_TOLERANCE} must hold and tolerance be above 0, "
            f"got bias = {made.bias}, tolerance = {made.tolerance}; what is further off has another objective"
        )


def variants() -> list[str]:
    """Return the names of all variants, in the order in which they were registered.

    Returns
    -------
    list of str
        Names for `variant` and `start`.

    Examples
    --------
    >>> from mmdma_core import variants
    >>> variants()[:4]
    ['primal', 'primal-keops', 'dual', 'dual-keops']
    """
    return list(_VARIANTS)


def variant(name: str) -> Variant:
    """Return the variant of that name.

    Parameters
    ----------
    name : str
        As registered.

    Returns
    -------
    Variant
        The variant.

    Raises
    ------
    ValueError
        With the nearest name, if there is none.
    """
    if name not in _VARIANTS:
        near = difflib.get_close_matches(name, _VARIANTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown variant {name!r}; {hint}variants: {', '.join(_VARIANTS)}")
    return _VARIANTS[name]


def start(
    name: str,
    x: Given,
    y: Given,
    settings: Settings | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    group: ProcessGroup | None = None,
    batch_size: BatchSize = None,
    n_updates: int = 0,
) -> Run:
    """Prepare a run of the variant on two views, rows are cells; nothing is trained yet.

    A view may be sparse (SciPy, or a sparse tensor): a variant that does not accept that makes it dense, with a warning
    that says how many bytes. Or both are given as a Kernel (n, n), to a variant that accepts it.

    Parameters
    ----------
    name : str
        Of the variant.
    x, y : torch.Tensor or numpy.ndarray or scipy.sparse array or Kernel
        X, (n_x, p_x), and Y, (n_y, p_y).
    settings : Settings, optional
        Hyper-parameters; those of the published study by default.
    device : str or torch.device
        'cpu', 'cuda', 'cuda:INDEX'.
    seed : int
        Decides the starting values alone, the same on CPU and CUDA.
    parameters : sequence of torch.Tensor or numpy.ndarray, optional
        Starting values in place of those that the seed draws.
    group : torch.distributed.ProcessGroup, optional
        Its ranks share one run: each calls `start` with rows of its own, rank 0 with the first ones, and all else the
        same, then does all that the others do. None: this process has all rows.
    batch_size : int or 'auto', optional
        Cells of each view, at least 100, that an update takes, drawn afresh for each: of 'primal-fourier', on dense
        views with fewer features than cells. 'auto': 20,000 where that can be and a view has more than 50,000. None:
        all cells.
    n_updates : int
        With batch_size: the updates that the run is going to take, over which the learning rate falls to 0.

    Returns
    -------
    Run
        The run, before its first epoch. Its embeddings are those of the rows given here.

    Raises
    ------
    ValueError
        For bad input, such as a GPU that is absent.
    MissingDependency
        For a variant that cannot run here.
    Unsupported
        For a problem that the variant cannot treat.

    Warns
    -----
    UserWarning
        If a sparse view is made dense, or n_components exceeds a side of a view, whose penalty cannot vanish then.

    Examples
    --------
    >>> from mmdma_core import simulate, start
    >>> x, y, _ = simulate("branch", n=100, p=20)
    >>> run = start("primal", x, y)
    >>> run.step()
    >>> run.epoch
    1
    """
    chosen, seed = variant(name), plain(seed)
    if not is_whole(seed):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    settings = chosen.taken(settings or Settings())
    check_ranks(chosen, group)
    batch_size = plain(batch_size)
    check_batch_size(batch_size)
    if isinstance(batch_size, int) and not chosen.takes_batches:
        raise no_batches()
    if batch_size is not None and n_updates < 1:
        raise ValueError(f"n_updates must be at least 1 with batch_size, got {n_updates!r}")
    device = as_device(device)
    missing = chosen.missing(device)
    if missing:
        raise MissingDependency(missing)
    with own_state(device):
        x, y = as_views(x, y, device)
        device = x.device  # of 'cuda' the current one, which it stays for this run
        x, y = (_accepted(chosen, name, view) for name, view in zip("xy", (x, y), strict=True))
    for view_name, view in (("x", x), ("y", y)):
        if settings.n_components > min(view.shape):
            _warn(
                f"n_components = {settings.n_components} exceeds the shape {tuple(view.shape)} of {view_name}: "
                "its penalty cannot vanish"
            )
    options = {"group": group} if _size(group) > 1 else {}
    if chosen.takes_batches:
        options |= {"batch_size": batch_size, "n_updates": plain(n_updates)}
    return chosen.start(x, y, settings, device, seed, parameters, **options)


def check_batch_size(size: BatchSize) -> None:
    """Raise ValueError for cells of a batch that cannot be."""
    if size is not None and size != "auto" and (not is_whole(size) or size < LEAST_BATCH):
        raise ValueError(f"batch_size must be 'auto', None or an integer of at least {LEAST_BATCH}, got {size!r}")


def no_batches() -> Unsupported:
    """Return the error of a variant, or of views, of which an update cannot take a part of the cells."""
    return Unsupported(
        "batch_size is for primal-fourier, on dense views with fewer features than cells; None takes all cells"
    )


def check_ranks(chosen: Variant, group: ProcessGroup | None) -> None:
    """Raise Unsupported for a variant that cannot share its run among the ranks of the group."""
    if _size(group) > 1 and not chosen.several_ranks:
        able = [name for name, other in _VARIANTS.items() if other.several_ranks]
        raise Unsupported(f"variant {chosen.name!r} runs in one process; take {' or '.join(able)} for {_size(group)}")


def _size(group: ProcessGroup | None) -> int:
    return 1 if group is None else distributed.get_world_size(group)


def _accepted(chosen: Variant, name: str, view: View) -> View:
    """Return the view in a form that the variant accepts."""
    if isinstance(view, Kernel) and "kernel" not in chosen.accepts:
        able = [other for other, variant in _VARIANTS.items() if "kernel" in variant.accepts]
        raise Unsupported(f"variant {chosen.name!r} takes no kernels; variants that do: {', '.join(able)}")
    if not is_sparse(view) or "sparse" in chosen.accepts:
        return view
    n, p = view.shape
    size = n * p * view.dtype.itemsize
    _warn(f"variant {chosen.name!r} makes {name} ({n} x {p}, sparse) dense: {size} bytes ({size / 2**30:.3g} GiB)")
    return view.to_dense()


def _warn(message: str) -> None:
    """Warn as of the line that called into this package; scikit-learn stands around an estimator's fit_transform."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _AROUND:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
