"""Adam (Kingma and Ba 2015), in place, on PyTorch's fused kernel.

The functional form is used because torch.optim.Adam imports the whole compiler stack when the first one is made,
which takes as long as importing PyTorch itself, in every measuring process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.adam import adam


class Adam:
    """Updates `parameters` in place, with torch.optim.Adam's defaults beta = (0.9, 0.999), eps = 1e-8.

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
        """All that it remembers, the tensors themselves: moments and numbers of steps."""
        return [*self._first_moments, *self._second_moments, *self._largest, *self._steps]

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor]) -> None:
        """One update from the gradient of each parameter."""
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
