"""The objective of MMD-MA, each term written once, and the float64 reference that every variant is held to.

    loss = MMD2(E_x, E_y) + lambda1 (pen_x + pen_y) + lambda2 (dis_x + dis_y)

(Meng-Papaxanthos et al., equation 1 and Appendix A.) Norms are Frobenius norms, not squared. The penalties and
distortions carry the scale of the published package: 1/sqrt(p) and 1/(n sqrt(p)). A change here changes what every
variant computes: the paper decides, not a variant's speed.

The reference is written as the paper writes it, for legibility alone. Everything is formed in full, n x n x d
differences included, so it is meant for a few hundred cells.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeVar

import torch

from mmdma_core.settings import Settings, own_state

Scalar = TypeVar("Scalar", float, torch.Tensor)


class LossTerms(NamedTuple):
    """The loss and its five terms, unweighted, as floats.

    A penalty is |W^T W - I| / sqrt(p), in the dual |alpha^T K alpha - I| / sqrt(p); a distortion is
    |X X^T - E E^T| / (n sqrt(p)), E = X W or K alpha. MMD2 is a sum of means of k(a, b) = exp(-|a - b|^2 / (2 sigma))::

        MMD2 = sum over i != j of k(x_i, x_j) / (n_x (n_x - 1)) + the same of y
               - 2 sum over i, j of k(x_i, y_j) / (n_x n_y)

    where the biased one takes the means with their diagonals and is clipped at 0.

    Parameters
    ----------
    total : float
        The loss, mmd + lambda1 (pen_x + pen_y) + lambda2 (dis_x + dis_y).
    mmd : float
        MMD2 of the two embedded views.
    pen_x, pen_y : float
        Non-collapsing penalties of the two views.
    dis_x, dis_y : float
        Distortions of the two views.

    References
    ----------
    Meng-Papaxanthos et al., LSMMD-MA, equation 1.
    """

    total: float
    mmd: float
    pen_x: float
    pen_y: float
    dis_x: float
    dis_y: float


def total_loss(settings: Settings, mmd: Scalar, pen_x: Scalar, pen_y: Scalar, dis_x: Scalar, dis_y: Scalar) -> Scalar:
    """Return the weighted sum of the terms (equation 1)."""
    return mmd + settings.lambda1 * (pen_x + pen_y) + settings.lambda2 * (dis_x + dis_y)


def squared_mmd(
    sum_xx: torch.Tensor, sum_yy: torch.Tensor, sum_xy: torch.Tensor, n_x: int, n_y: int, unbiased: bool
) -> torch.Tensor:
    """Return MMD2 from sums of the Gaussian kernel.

    sum_xx = sum over i != j of k(x_i, x_j), sum_yy likewise, sum_xy = sum over all i, j of k(x_i, y_j): scalars.
    They are nearly equal once normalised, so they should come in float64.

    unbiased: sum_xx / (n_x (n_x - 1)) + sum_yy / (n_y (n_y - 1)) - 2 sum_xy / (n_x n_y)
    biased:   the three means with their diagonals (k(x_i, x_i) = 1), clipped at 0
    """
    cross = 2 * sum_xy / (n_x * n_y)
    if unbiased:
        return sum_xx / (n_x * (n_x - 1)) + sum_yy / (n_y * (n_y - 1)) - cross
    return ((sum_xx + n_x) / n_x**2 + (sum_yy + n_y) / n_y**2 - cross).clamp(min=0)


def penalty(gram: torch.Tensor, p: int) -> torch.Tensor:
    """Return the penalty |gram - I| / sqrt(p); gram (d, d) is W^T W in the primal, alpha^T K alpha in the dual."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.matrix_norm(gram - identity) / math.sqrt(p)


def distortion(norm: torch.Tensor, n: int, p: int) -> torch.Tensor:
    """Return the distortion |K - E E^T| / (n sqrt(p)) from the norm of the difference; K = X X^T (n, n), E (n, d)."""
    return norm / (n * math.sqrt(p))


FormulationName = Literal["primal", "dual"]


@own_state()
def reference_loss(
    formulation: FormulationName,
    x: torch.Tensor,
    y: torch.Tensor,
    theta_x: torch.Tensor,
    theta_y: torch.Tensor,
    settings: Settings,
) -> LossTerms:
    """Evaluate the loss and its terms in float64, written as the paper writes it, see LossTerms.

    Everything is formed in full, n x n x d differences included: for a few hundred cells.

    Parameters
    ----------
    formulation : {'primal', 'dual'}
        Of the parameters.
    x, y : torch.Tensor
        X, (n_x, p_x), and Y, (n_y, p_y), rows are cells.
    theta_x, theta_y : torch.Tensor
        W, (p, d), or alpha, (n, d), of either view.
    settings : Settings
        Hyper-parameters.

    Returns
    -------
    LossTerms
        The loss and its terms.

    References
    ----------
    Meng-Papaxanthos et al., LSMMD-MA, equation 1.

    Examples
    --------
    The loss of a run is the reference's, up to float32.

    >>> from mmdma_core import Settings, reference_loss, simulate, start
    >>> x, y, _ = simulate("branch", n=20, p=5)
    >>> run = start("primal", x, y, Settings(n_components=2))
    >>> loss = reference_loss("primal", x, y, *run.parameters, Settings(n_components=2))
    >>> abs(run.loss().total - loss.total) < 1e-4
    True
    """
    terms = _terms(formulation, *_doubles(x, y, theta_x, theta_y), settings)
    return LossTerms(*(term.item() for term in terms))


@own_state()
def reference_gradients(
    formulation: FormulationName,
    x: torch.Tensor,
    y: torch.Tensor,
    theta_x: torch.Tensor,
    theta_y: torch.Tensor,
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluate the gradient of the loss with respect to the parameters, in float64 by automatic differentiation.

    Parameters
    ----------
    formulation : {'primal', 'dual'}
        Of the parameters.
    x, y : torch.Tensor
        X, (n_x, p_x), and Y, (n_y, p_y), rows are cells.
    theta_x, theta_y : torch.Tensor
        W, (p, d), or alpha, (n, d), of either view.
    settings : Settings
        Hyper-parameters.

    Returns
    -------
    tuple of torch.Tensor
        In the shapes of theta_x and theta_y.
    """
    x, y, theta_x, theta_y = _doubles(x, y, theta_x, theta_y)
    theta_x.requires_grad_()
    theta_y.requires_grad_()
    total = _terms(formulation, x, y, theta_x, theta_y, settings)[0]
    return torch.autograd.grad(total, (theta_x, theta_y))


@own_state()
def reference_embeddings(
    formulation: FormulationName, x: torch.Tensor, y: torch.Tensor, theta_x: torch.Tensor, theta_y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return E_x (n_x, d) and E_y (n_y, d): X W in the primal, X X^T alpha in the dual."""
    x, y, theta_x, theta_y = _doubles(x, y, theta_x, theta_y)
    view = _VIEWS[formulation]
    return view(x, theta_x)[0], view(y, theta_y)[0]


def _terms(
    formulation: FormulationName,
    x: torch.Tensor,
    y: torch.Tensor,
    theta_x: torch.Tensor,
    theta_y: torch.Tensor,
    settings: Settings,
) -> tuple[torch.Tensor, ...]:
    view = _VIEWS[formulation]
    e_x, pen_x, dis_x = view(x, theta_x)
    e_y, pen_y, dis_y = view(y, theta_y)
    mmd = _squared_mmd(e_x, e_y, settings)
    total = mmd + settings.lambda1 * (pen_x + pen_y) + settings.lambda2 * (dis_x + dis_y)
    return total, mmd, pen_x, pen_y, dis_x, dis_y


def _primal_view(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, p = x.shape
    identity = torch.eye(w.shape[1], dtype=w.dtype)
    penalty = torch.linalg.matrix_norm(w.T @ w - identity) / math.sqrt(p)
    distortion = torch.linalg.matrix_norm(x @ x.T - x @ w @ w.T @ x.T) / (n * math.sqrt(p))
    return x @ w, penalty, distortion


def _dual_view(x: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, p = x.shape
    k = x @ x.T
    identity = torch.eye(alpha.shape[1], dtype=alpha.dtype)
    penalty = torch.linalg.matrix_norm(alpha.T @ k @ alpha - identity) / math.sqrt(p)
    distortion = torch.linalg.matrix_norm(k - k @ alpha @ alpha.T @ k) / (n * math.sqrt(p))
    return k @ alpha, penalty, distortion


_VIEWS = {"primal": _primal_view, "dual": _dual_view}


def _squared_mmd(e_x: torch.Tensor, e_y: torch.Tensor, settings: Settings) -> torch.Tensor:
    mean_xx, mean_yy, mean_xy = gaussian_means(e_x, e_y, settings)
    mmd = mean_xx + mean_yy - 2 * mean_xy
    return mmd if settings.unbiased else mmd.clamp(min=0)


def gaussian_means(
    e_x: torch.Tensor, e_y: torch.Tensor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the means of exp(-|a - b|^2 / (2 sigma)): within x, within y (without diagonals if unbiased), across."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        difference = a[:, None, :] - b[None, :, :]
        return torch.exp(-difference.square().sum(-1) / (2 * settings.sigma))

    def within(e: torch.Tensor) -> torch.Tensor:
        k, n = kernel(e, e), len(e)
        return (k.sum() - k.trace()) / (n * (n - 1)) if settings.unbiased else k.mean()

    return within(e_x), within(e_y), kernel(e_x, e_y).mean()


def _doubles(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [torch.as_tensor(t).detach().to("cpu", torch.float64, copy=True) for t in tensors]
