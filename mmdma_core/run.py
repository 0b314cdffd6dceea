"""A run of MMD-MA: one epoch at a time, with the one Adam that every PyTorch variant shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim.adam import adam

from mmdma_core.formulations import Formulation
from mmdma_core.inputs import Ranks, View
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
    """A run on our own Adam: it counts its epochs, can be left, gone on with, and begun again.

    parameters  starting values (theta_x, theta_y); without them the seed decides (Settings.draw)
    amsgrad     of its Adam, whatever the settings say
    """

    amsgrad = False
    batch_size: int | None = None  # cells of each view that an update takes; None: all
    ranks = Ranks()  # those that share the run, with the rows of its first view

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
    """Return the `start` function of the variant that has this formulation for both views and these Gaussian sums.

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
    """Return parameters of shapes (rows, d), copied or drawn with the seed, with the type and device of `like`.

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
