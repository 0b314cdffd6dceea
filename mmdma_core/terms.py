"""The objective of MMD-MA, each term written once (Meng-Papaxanthos et al., equation 1 and Appendix A).

    loss = MMD2(E_x, E_y) + lambda1 (pen_x + pen_y) + lambda2 (dis_x + dis_y)

Norms are Frobenius norms, not squared. The penalties and distortions carry the scale of the published package:
1/sqrt(p) and 1/(n sqrt(p)).
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch

from mmdma_core.settings import Settings

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
    pen_x : float
        Non-collapsing penalty of the first view.
    pen_y : float
        Non-collapsing penalty of the second view.
    dis_x : float
        Distortion of the first view.
    dis_y : float
        Distortion of the second view.

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
    """The weighted sum of the terms (equation 1)."""
    return mmd + settings.lambda1 * (pen_x + pen_y) + settings.lambda2 * (dis_x + dis_y)


def squared_mmd(
    sum_xx: torch.Tensor, sum_yy: torch.Tensor, sum_xy: torch.Tensor, n_x: int, n_y: int, unbiased: bool
) -> torch.Tensor:
    """MMD2 from sums of the Gaussian kernel.

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
    """Non-collapsing penalty |gram - I| / sqrt(p); gram (d, d) is W^T W in the primal, alpha^T K alpha in the dual."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.matrix_norm(gram - identity) / math.sqrt(p)


def distortion(norm: torch.Tensor, n: int, p: int) -> torch.Tensor:
    """Distortion |K - E E^T| / (n sqrt(p)) from the norm of the difference, K = X X^T (n, n) and E (n, d)."""
    return norm / (n * math.sqrt(p))
