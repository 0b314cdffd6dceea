"""The variants that come with the project; importing this package registers them, the paper's first."""

from mmdma_core.families import paper  # isort: skip
from mmdma_core.families import fused  # isort: skip
from mmdma_core.families import published, original_2019, original_2020, linear_time  # isort: skip

__all__ = ["fused", "linear_time", "original_2019", "original_2020", "paper", "published"]
