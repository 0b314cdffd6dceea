"""A run of MMD-MA: one epoch at a time by Adam, and its training with history, early stopping and checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim.adam import adam
from tqdm.auto import tqdm

from mmdma_core.files.atomic import atomically
from mmdma_core.files.formats import DAMAGED, reading
from mmdma_core.formulations import Formulation
from mmdma_core.inputs import Rows, View
from mmdma_core.kernels import Sums
from mmdma_core.objective import LossTerms, squared_mmd, total_loss
from mmdma_core.settings import Settings, own_state

Pair = tuple[torch.Tensor, torch.Tensor]


class Run(Protocol):
    """What a variant's `start` returns: the harness times `step` and needs nothing else to be measured.

    Attributes
    ----------
    epoch : int
        Epochs done so far.
    parameters : tuple of torch.Tensor
        (theta_x, theta_y), the current values: W (p, d) in the primal, alpha (n, d) in the dual.
    """

    epoch: int
    parameters: Pair

    def step(self) -> None:
        """Run one epoch: the loss on all cells, its gradient, one update of the parameters."""

    def loss(self) -> LossTerms:
        """Evaluate the loss and its terms at the current parameters.

        Returns
        -------
        LossTerms
            The loss and its terms.
        """

    def gradients(self) -> Pair:
        """Evaluate the gradient of the loss at the current parameters.

        Returns
        -------
        tuple of torch.Tensor
            In the shapes of the parameters.
        """

    def embeddings(self) -> Pair:
        """Embed both views with the current parameters.

        Returns
        -------
        tuple of torch.Tensor
            (E_x, E_y) of shapes (n_x, d) and (n_y, d).
        """


class Adam:
    """Adam (Kingma and Ba 2015) on PyTorch's fused kernel, in place, with the defaults of torch.optim.Adam.

    The functional form is taken because torch.optim.Adam imports PyTorch's compiler when the first one is made, which
    takes as long as importing PyTorch itself, in every measuring process.

    amsgrad  divide by the largest second moment so far (Reddi et al. 2018)
    """

    def __init__(self, parameters: Sequence[torch.Tensor], learning_rate: float, amsgrad: bool = False) -> None:
        self._parameters = list(parameters)
        self.learning_rate = learning_rate
        self._first_moments = [torch.zeros_like(p) for p in self._parameters]
        self._second_moments = [torch.zeros_like(p) for p in self._parameters]
        self._largest = [torch.zeros_like(p) for p in self._parameters] if amsgrad else []
        self._steps = [torch.zeros((), device=p.device) for p in self._parameters]

    def state(self) -> list[torch.Tensor]:
        """Return what it remembers, the tensors themselves: moments and numbers of steps."""
        return [*self._first_moments, *self._second_moments, *self._largest, *self._steps]

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor]) -> None:
        """Update the parameters once, from the gradient of each."""
        adam(
            self._parameters,
            list(gradients),
            self._first_moments,
            self._second_moments,
            self._largest,
            self._steps,
            fused=True,
            amsgrad=bool(self._largest),
            beta1=0.9,
            beta2=0.999,
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


class AdamRun(Run):
    """What runs on our own Adam share: they count their epochs, can be left, gone on with, and begun again.

    parameters  starting values (theta_x, theta_y); without them the seed decides (Settings.draw)
    amsgrad     of its Adam, whatever the settings say
    """

    amsgrad = False
    batch_size: int | None = None  # cells of each view that an update takes; None: all
    held = Rows(0)  # of a run that shares its rows over ranks: those of the first view that are here

    def __init__(
        self,
        rows: Sequence[int],
        settings: Settings,
        like: torch.Tensor,
        seed: int,
        parameters: Sequence[torch.Tensor | np.ndarray] | None,
    ) -> None:
        self.settings, self.epoch = settings, 0
        self.parameters = starting_values(rows, settings, like, seed, parameters)
        self._adam = Adam(self.parameters, settings.learning_rate, self.amsgrad or settings.amsgrad)

    def state(self) -> dict[str, int | list[torch.Tensor]]:
        """Copy all that the next epochs depend on, beside the data and the settings: what a checkpoint holds.

        Returns
        -------
        dict
            The "epoch", an int, and the "tensors", a list on the CPU: the parameters and what Adam keeps.
        """
        return {"epoch": self.epoch, "tensors": [tensor.detach().cpu().clone() for tensor in self._tensors()]}

    @torch.no_grad()
    def restore(self, state: dict[str, int | list[torch.Tensor]]) -> None:
        """Go on from a state of a run of the same variant, shapes and settings, to the same numbers.

        Parameters
        ----------
        state : dict
            What `state` returned.
        """
        for own, saved in zip(self._tensors(), state["tensors"], strict=True):
            own.copy_(saved)
        self.epoch = state["epoch"]

    @torch.no_grad()
    def restart(self, seed: int) -> None:
        """Begin again from the starting values of another seed; what was formed from the data stays.

        Parameters
        ----------
        seed : int
            Decides the starting values (Settings.draw).
        """
        for own, drawn in zip(self.parameters, self.settings.draw(*map(len, self.parameters), seed), strict=True):
            own.copy_(drawn)
        for tensor in self._adam.state():
            tensor.zero_()
        self.epoch = 0

    def _tensors(self) -> list[torch.Tensor]:
        return [*self.parameters, *self._adam.state()]


class TorchRun(AdamRun):
    """A run composed of a formulation for each view and a way to sum the Gaussian kernel; full-batch Adam.

    Parameters
    ----------
    views : tuple of Formulation
        The two views in their formulation.
    sums : callable
        Gaussian kernel sums, see mmdma_core.kernels.
    settings : Settings
        Hyper-parameters.
    like : torch.Tensor
        The parameters take its type and device.
    seed : int
        Decides the starting values where none are given (Settings.draw).
    parameters : sequence of torch.Tensor or numpy.ndarray, optional
        Starting values (theta_x, theta_y).

    Raises
    ------
    ValueError
        If a starting value has the wrong shape.
    """

    def __init__(
        self,
        views: tuple[Formulation, Formulation],
        sums: Sums,
        settings: Settings,
        like: torch.Tensor,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> None:
        super().__init__([view.rows for view in views], settings, like, seed, parameters)
        self.views, self.sums = views, sums
        for parameter in self.parameters:
            parameter.requires_grad_()

    def step(self) -> None:
        self._adam.step(self.gradients())
        self.epoch += 1

    def loss(self) -> LossTerms:
        with torch.no_grad():
            terms = [term.item() for term in self._terms()]
        return LossTerms(total_loss(self.settings, *terms), *terms)

    def gradients(self) -> Pair:
        return torch.autograd.grad(total_loss(self.settings, *self._terms()), self.parameters)

    def embeddings(self) -> Pair:
        with torch.no_grad():
            return self._embed()

    def _embed(self) -> Pair:
        return tuple(view.embed(theta) for view, theta in zip(self.views, self.parameters, strict=True))

    def _terms(self) -> tuple[torch.Tensor, ...]:
        """MMD2, the two penalties and the two distortions, differentiable."""
        embeddings = self._embed()
        n_x, n_y = map(len, embeddings)
        mmd = squared_mmd(*self.sums(*embeddings, self.settings.sigma), n_x, n_y, self.settings.unbiased)
        each = list(zip(self.views, self.parameters, embeddings, strict=True))
        penalties = [view.penalty(theta, e) for view, theta, e in each]
        distortions = [view.distortion(theta, e) for view, theta, e in each]
        return mmd, *penalties, *distortions


def compose(
    formulation: Callable[[View], Formulation], sums: Sums, run: type[TorchRun] = TorchRun
) -> Callable[..., TorchRun]:
    """The `start` function of the variant that has this formulation for both views and these Gaussian sums.

    Parameters
    ----------
    formulation : callable
        Makes a Formulation of a view.
    sums : callable
        Gaussian kernel sums, see mmdma_core.kernels.
    run : type
        TorchRun, or a class of its own made from it.

    Returns
    -------
    callable
        What `register` takes: start(x, y, settings, device, seed, parameters) -> TorchRun.
    """

    def start(
        x: View,
        y: View,
        settings: Settings,
        device: torch.device,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> TorchRun:
        return run((formulation(x), formulation(y)), sums, settings, x, seed, parameters)

    return start


def starting_values(
    rows: Sequence[int],
    settings: Settings,
    like: torch.Tensor,
    seed: int,
    parameters: Sequence[torch.Tensor | np.ndarray] | None,
) -> Pair:
    """Parameters of shapes (rows, d), copied from `parameters` or drawn with the seed, with `like`'s type and device.

    Raises ValueError if one has the wrong shape.
    """
    values = settings.draw(*rows, seed) if parameters is None else parameters
    made = []
    for value, row in zip(values, rows, strict=True):
        tensor = torch.as_tensor(value).detach().to(device=like.device, dtype=like.dtype, copy=True)
        if tensor.shape != (row, settings.n_components):
            raise ValueError(f"parameters must have shape {(row, settings.n_components)}, got {tuple(tensor.shape)}")
        made.append(tensor)
    return tuple(made)


_COMPUTE = ("step", "loss", "gradients", "embeddings", "state", "restore", "restart")  # methods of a Run, of an AdamRun


class _InOwnState:
    """A run as it is, but that its methods that compute do so in `own_state` on its device."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.__dict__.update(_run=run, _device=device)

    @property
    def __class__(self) -> type:
        return type(self._run)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._run, name)
        return own_state(self._device)(value) if name in _COMPUTE else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._run, name, value)


def in_own_state(start: Callable[..., Run]) -> Callable[..., Run]:
    """Return a variant's `start` that computes in `own_state` on the device, and so do the methods of its runs."""

    def prepare(x: View, y: View, settings: Settings, device: torch.device, *more: Any, **options: Any) -> Run:
        with own_state(device):
            return _InOwnState(start(x, y, settings, device, *more, **options), device)

    return prepare


Callback = Callable[[Run, LossTerms], object]  # called whenever the loss is recorded but for the start


@dataclass
class History:
    """What training recorded.

    epochs, losses  the loss and its terms at some epochs, the first and the last among them
    stopped         why training ended before its last epoch: 'converged', 'interrupted', or None
    best            the parameters of the lowest recorded loss, copies; theta_x and theta_y
    """

    epochs: list[int] = field(default_factory=list)
    losses: list[LossTerms] = field(default_factory=list)
    stopped: str | None = None
    best: tuple[torch.Tensor, ...] = ()

    def record(self, run: Run) -> LossTerms:
        """Take the loss of the run now. Raises FloatingPointError if it is no number."""
        terms = run.loss()
        if not math.isfinite(terms.total):
            raise FloatingPointError(
                f"the loss is {terms.total} after {run.epoch} epochs ({terms}): lower learning_rate, or scale the data"
            )
        if not self.losses or terms.total < min(loss.total for loss in self.losses):
            self.best = tuple(parameter.detach().clone() for parameter in run.parameters)
        self.epochs.append(run.epoch)
        self.losses.append(terms)
        return terms


@dataclass(frozen=True)
class Stopping:
    """Early stopping as in the published package: by the mean loss of two windows that follow each other.

    Training ends when |m1 - m2| < tolerance max(|m1|, 1), with m1 and m2 the means of the recorded losses of the
    last but one and the last `window` epochs. window = 0: never.
    """

    window: int = 0
    tolerance: float = 1e-3

    def holds(self, history: History) -> bool:
        now = history.epochs[-1]
        if self.window == 0 or now < 2 * self.window:
            return False
        totals = [(now - epoch, loss.total) for epoch, loss in zip(history.epochs, history.losses, strict=True)]
        after = [total for age, total in totals if age < self.window]
        before = [total for age, total in totals if self.window <= age < 2 * self.window]
        if not before:  # a checkpoint may have been written with wider gaps
            return False
        after, before = fmean(after), fmean(before)
        return abs(before - after) < self.tolerance * max(abs(before), 1.0)


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a run's state and history, so that training goes on to the same numbers.

    question  what the state is for (data, settings, variant): a checkpoint of another question is refused

    Of ranks that share a run the first one writes and reads it, so that another number of them can go on.
    """

    path: Path
    question: str

    def write(self, run: AdamRun, history: History) -> None:
        if run.held.rank > 0:
            return
        state = run.state()
        told = {"question": self.question, "epoch": state["epoch"], "epochs": history.epochs}
        arrays = {f"state{k}": tensor.numpy() for k, tensor in enumerate(state["tensors"])}
        arrays |= {f"best{k}": tensor.cpu().numpy() for k, tensor in enumerate(history.best)}
        with atomically(self.path) as part, part.open("wb") as file:
            np.savez(file, told=json.dumps(told), losses=np.array(history.losses), **arrays)

    def resume(self, run: AdamRun) -> History:
        """The history so far, with the run at its state; a new one if there is no file.

        Raises ValueError for a file that is no checkpoint, or that was written for another question.
        """
        history = History()
        content = run.held.of_first(self._read() if run.held.rank == 0 else None)
        if content is None:
            return history
        epoch, epochs, arrays = content
        tensors = [torch.from_numpy(arrays[f"state{k}"]) for k in range(len(run.state()["tensors"]))]
        run.restore({"epoch": epoch, "tensors": tensors})
        history.epochs = epochs
        history.losses = [LossTerms(*map(float, row)) for row in arrays["losses"]]
        best = (torch.from_numpy(arrays[f"best{k}"]) for k in range(len(run.parameters)))
        history.best = tuple(value.to(own.device) for value, own in zip(best, run.parameters, strict=True))
        return history

    def _read(self) -> tuple[int, list[int], dict[str, np.ndarray]] | None:
        """Epoch, recorded epochs, and all arrays; None without a file."""
        if not self.path.exists():
            return None
        with reading(self.path, "a checkpoint", *DAMAGED), np.load(self.path, allow_pickle=False) as file:
            told = json.loads(str(file["told"]))
            question, epoch, epochs = told["question"], told["epoch"], told["epochs"]
            arrays = {name: file[name] for name in file.files if name != "told"}
        if question != self.question:
            raise ValueError(f"{self.path} was written for other data, settings or seeds; remove it or name another")
        return epoch, epochs, arrays


def train(
    run: Run,
    n_epochs: int,
    *,
    loss_every: int = 10,
    stopping: Stopping = Stopping(),
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    description: str = "MMD-MA",
) -> History:
    """Train the run up to its epoch `n_epochs`, and record the loss every `loss_every` epochs, first and last included.

    progress    a bar with the loss (tqdm)
    checkpoint  gone on from if its file exists, and written whenever the loss is recorded

    Ctrl-C ends training: the history says so and holds the best parameters; it passes through before the first loss,
    and where ranks share the run, which it reaches at different epochs.
    Raises FloatingPointError if the loss is no number.
    """
    history = checkpoint.resume(run) if checkpoint else History()
    with tqdm(total=n_epochs, initial=run.epoch, desc=description, unit="epoch", disable=not progress) as bar:
        try:
            if not history.epochs:
                history.record(run)
            while run.epoch < n_epochs and not stopping.holds(history):
                until = min(n_epochs, (run.epoch // loss_every + 1) * loss_every)
                while run.epoch < until:
                    run.step()
                    bar.update()
                terms = history.record(run)
                bar.set_postfix(loss=f"{terms.total:.4g}")
                if checkpoint:
                    checkpoint.write(run, history)
                for callback in callbacks:
                    callback(run, terms)
        except KeyboardInterrupt:
            if not history.epochs or getattr(run, "held", Rows(0)).size > 1:  # nothing to keep that all ranks agree on
                raise
            history.stopped = "interrupted"
    if history.stopped is None and run.epoch < n_epochs:
        history.stopped = "converged"
    return history
