"""Updates that take a sample of the cells of each view, for fits of very many cells.

Update k of K takes b cells of each view, drawn afresh as a function of (seed, k), without replacement: the unbiased
MMD2 of the samples is on average that of all cells, and so is its gradient. The distortion stays that of all cells,
through the Gram matrix, so that p < n is asked for. The learning rate falls along a cosine, from three times the one
that is asked for to 0, and the last tenth of the updates takes all cells, so that a fit comes to rest. (A cosine of
that height ends, after as many updates, at the loss of a constant rate on all cells or below; one of the same height
far above: measured on branch data, 60,000 cells, p = 20 and 50, three seeds.)
"""

from __future__ import annotations

import math

import numpy as np

from mmdma_core.fused.parts import MMD, BatchView

_FIRST_RATE = 3.0
LEAST = 100  # cells of a sample; fewer tell little of a cloud


class Batches:
    """Which cells an update takes, with which MMD2 and learning rate.

    sizes      cells of a sample of each view
    sampled    MMD2 of two samples
    whole      MMD2 of all cells
    n_updates  K
    """

    def __init__(
        self, views: tuple[BatchView, BatchView], sizes: list[int], sampled: MMD, whole: MMD, n_updates: int
    ) -> None:
        self._views, self._sizes, self._n_updates = views, sizes, n_updates
        self._of_all = [view.held.n for view in views]
        self._of_batch, self._whole = sampled, whole

    def take(self, seed: int, update: int) -> MMD:
        """Let the views take the cells of an update, numbered from 0."""
        if update >= self._n_updates - math.ceil(self._n_updates / 10):
            return self.take_all()
        stream = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, update], np.uint64)))
        for view, size, n in zip(self._views, self._sizes, self._of_all, strict=True):
            view.take(np.sort(stream.choice(n, size, replace=False, shuffle=False)) if size < n else None)
        return self._of_batch

    def take_all(self) -> MMD:
        for view in self._views:
            view.take(None)
        return self._whole

    def rate(self, update: int) -> float:
        """The learning rate of an update, as a multiple of the one that is asked for."""
        return _FIRST_RATE * (1 + math.cos(math.pi * min(update / self._n_updates, 1.0))) / 2
