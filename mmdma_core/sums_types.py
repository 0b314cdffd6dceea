"""Sums of the Gaussian kernel over pairs of points, one file for each way to compute them; add a way as a file.

Each file offers `sums(e_x, e_y, sigma) -> (sum_xx, sum_yy, sum_xy)`, `sampled` estimates of them: for e_x (n_x, d)
and e_y (n_y, d), the sums of exp(-|a - b|^2 / (2 sigma)) over pairs of different points of x, of y, and over all pairs
of a point of x with one of y, as float64 scalars that PyTorch can differentiate. Within a view the diagonal is left
out.
"""

from collections.abc import Callable

import torch

ThreeSums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Sums = Callable[[torch.Tensor, torch.Tensor, float], ThreeSums]
