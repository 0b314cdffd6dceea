"""A plugin: a variant whose first start and first step in a process are slow, and what it was started with."""

import time

import torch

from mmdma_core import LossTerms, Unsupported, register

SECONDS = 0.6
STARTED = []  # (shape, layout, type) of x and y of each start in this process
_STEPPED = []


class SlowAtFirst:
    def __init__(self, x, y, settings, device, seed, parameters=None, group=None):
        if not STARTED:
            time.sleep(SECONDS)
        STARTED.append([(tuple(view.shape), view.layout, view.dtype) for view in (x, y)])
        self.epoch, self.parameters, self._group = 0, (x, x), group

    def step(self):
        if not _STEPPED:
            time.sleep(SECONDS)
        _STEPPED.append(True)
        if self._group:
            torch.distributed.all_reduce(torch.ones(1), group=self._group)
        self.epoch += 1

    def loss(self):
        return LossTerms(1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


class LikesMany(SlowAtFirst):
    def __init__(self, x, *more):
        if len(x) < 500:
            raise Unsupported("no fewer than 500 cells") if len(x) % 2 else ValueError("no fewer than 500 cells")
        super().__init__(x, *more)


register("slow-at-first", label="slow", reference="a test", accepts=("dense", "sparse"), several_ranks=True)(
    SlowAtFirst
)
register("likes-many", label="many", reference="a test")(LikesMany)
