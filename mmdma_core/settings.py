"""The hyper-parameters of the objective, and how starting values are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from mmdma_core.host import own_state

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
    lambda1 : float
        Weight of the two non-collapsing penalties, at least 0.
    lambda2 : float
        Weight of the two distortions, at least 0.
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

    @own_state()
    def draw(self, rows_x: int, rows_y: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Starting values of both views' parameters, float32 on the CPU.

        The first view is drawn first, from PyTorch's CPU generator: the seed alone decides the values, whatever device
        they go to, and they are those of the published package for the same seed.

        Parameters
        ----------
        rows_x : int
            Rows of the first view's parameters: p in the primal, n in the dual.
        rows_y : int
            Rows of the second view's parameters.
        seed : int
            Of the generator.

        Returns
        -------
        tuple of torch.Tensor
            (rows_x, d) and (rows_y, d).
        """
        generator = torch.Generator().manual_seed(plain(seed))
        function = _INITIALISERS[self.init[0]][0]
        return tuple(
            function(torch.empty(rows, self.n_components), *self.init[1:], generator=generator)
            for rows in (rows_x, rows_y)
        )


def plain(value: Any) -> Any:
    """A scalar of NumPy or PyTorch, also an array without dimensions, as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_whole(value: object) -> bool:
    """Whether it is an integer of Python, which True and False are not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
