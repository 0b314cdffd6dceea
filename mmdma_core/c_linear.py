"""The primal with the linear-time MMD2: for p << n an epoch is linear in n, without KeOps.

Its MMD2 is right on average over the orders of the cells, which decide the pairs; a run keeps its pairs, so that over
the epochs of one run the error stays.
"""

from mmdma_core.registry import register
from mmdma_core import sampled
from mmdma_core import costs, models
from mmdma_core.formulations import primal
from mmdma_core.run import compose

register(
    "linear-time",
    label="primal, linear-time MMD",
    reference="Gretton et al. 2012, A kernel two-sample test, Lemma 14",
    exact=False,
    tolerance=0.2,  # 0.12 for MMD2, 0.18 for the gradient were found with 22 pairs
    estimator="unbiased",
    cost_model=costs.composed(costs.primal, costs.pairs),
    accepts=("dense", "sparse"),
    memory_model=models.ORIGINALS["linear-time"],
)(compose(primal, sampled.linear_sums))
