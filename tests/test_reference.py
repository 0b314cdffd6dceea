"""The reference itself: a case worked by hand, and its gradients by finite differences."""

import math

import pytest
import torch

from mmdma_core import Settings, reference_gradients, reference_loss


def test_two_cells_and_one_feature_by_hand():
    """x = (0, 2), y = (1, 3), W_x = 1/2, W_y = 1: E_x = (0, 1), E_y = (1, 3); every term is a short sum."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    w_x, w_y = torch.tensor([[0.5]]), torch.tensor([[1.0]])
    settings = Settings(n_components=1, sigma=2.0, lambda1=0.5, lambda2=0.25)

    def k(distance):
        return math.exp(-(distance**2) / 4)

    loss = reference_loss("primal", x, y, w_x, w_y, settings)
    cross = (k(1) + k(3) + k(0) + k(2)) / 4
    assert loss.mmd == pytest.approx(k(1) + k(2) - 2 * cross)
    assert loss.pen_x == pytest.approx(0.75)
    assert loss.pen_y == pytest.approx(0)
    assert loss.dis_x == pytest.approx(4 * 0.75 / 2)
    assert loss.dis_y == pytest.approx(0)
    assert loss.total == pytest.approx(loss.mmd + 0.5 * 0.75 + 0.25 * 1.5)

    biased = reference_loss("primal", x, y, w_x, w_y, Settings(n_components=1, sigma=2.0, unbiased=False))
    assert biased.mmd == pytest.approx((1 + k(1)) / 2 + (1 + k(2)) / 2 - 2 * cross)


def test_the_dual_penalty_and_distortion_by_hand():
    """x = (1, 1), alpha = (1, 0): K is all ones, E = (1, 1), alpha^T K alpha = 1, E E^T = K."""
    x, alpha = torch.ones(2, 1), torch.tensor([[1.0], [0.0]])
    loss = reference_loss("dual", x, 2 * x, alpha, alpha, Settings(n_components=1))
    assert (loss.pen_x, loss.dis_x) == pytest.approx((0, 0))
    assert loss.pen_y == pytest.approx(3)  # K = 4: |4 - 1|
    assert loss.dis_y == pytest.approx(12)  # |4 - 16| in each of 4 entries, over n = 2


@pytest.mark.parametrize("formulation", ["primal", "dual"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_gradients_by_finite_differences(formulation, unbiased):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(6, 4, generator=generator, dtype=torch.float64) + 0.5
    settings = Settings(n_components=2, lambda1=0.7, lambda2=0.3, unbiased=unbiased)
    rows = (3, 4) if formulation == "primal" else (7, 6)
    thetas = [torch.randn(row, 2, generator=generator, dtype=torch.float64) / 3 for row in rows]
    gradients = reference_gradients(formulation, x, y, *thetas, settings)
    step = 1e-6
    for which, gradient in enumerate(gradients):
        for index in ((0, 0), (2, 1)):
            values = []
            for sign in (1, -1):
                moved = [theta.clone() for theta in thetas]
                moved[which][index] += sign * step
                values.append(reference_loss(formulation, x, y, *moved, settings).total)
            assert gradient[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-9)
