"""The primal with the linear-time MMD2: for p << n an epoch is linear in n, without KeOps."""

from mmdma_core.families.registry import register
from mmdma_core.gaussian import sampled
from mmdma_core.models import costs, memory
from mmdma_core.objective.formulations import primal
from mmdma_core.training.run import compose

register(
    "linear-time",
    label="primal, linear-time MMD",
    reference="Gretton et al. 2012, A kernel two-sample test, Lemma 14",
    exact=False,
    estimator="unbiased",
    cost_model=costs.composed(costs.primal, costs.pairs),
    accepts=("dense", "sparse"),
    memory_model=memory.ORIGINALS["linear-time"],
)(compose(primal, sampled.linear_sums))
