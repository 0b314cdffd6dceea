"""The variants by name: importing this package registers those that come with the project, the paper's first.

A file is a family, and a composition: what it computes lies in the rooms below. A new family is a new file and a name
below; `registry` holds what all share, `advice` chooses among them.
"""

from mmdma_core.families import paper  # isort: skip
from mmdma_core.families import fused, fourier  # isort: skip
from mmdma_core.families import published, original_2019, original_2020, linear_time  # isort: skip

__all__ = ["fourier", "fused", "linear_time", "original_2019", "original_2020", "paper", "published"]
