"""Instructions of the pair kernels on CUDA, counted in what Triton makes of it for a GPU that need not be there.

tests/test_fused_cuda.py counts again and holds these numbers to 10 %.
"""

from __future__ import annotations

from dataclasses import dataclass

TRITON = "3.7"  # the version that they were counted with


@dataclass(frozen=True)
class Counted:
    """What a thread executes for an ordered pair.

    compact, wide  instructions for a pair, in a compact block and in any other
    registers      of a thread, in the kernel of compact blocks
    """

    compact: float
    wide: float
    registers: int


COUNTED = {  # (compute capability, d), with the tile that suits most devices
    (80, 10): Counted(9.8, 71.1, 255),
    (80, 62): Counted(24.6, 301.1, 255),
    (90, 10): Counted(8.9, 73.0, 242),
    (90, 62): Counted(17.3, 292.6, 255),
    (100, 10): Counted(10.1, 71.5, 214),
    (100, 62): Counted(21.7, 227.2, 255),
}
UNORDERED = 11.6  # for an unordered pair, in compact blocks, d = 10, sm_90: the prototype in unordered_cuda.py


def nearest(capability: int, d: int) -> tuple[tuple[int, int], Counted]:
    """The counts for the nearest compute capability (10 major + minor) that is not above, and the nearest d."""
    of = max([c for c, _ in COUNTED if c <= capability], default=min(COUNTED)[0])
    key = min((key for key in COUNTED if key[0] == of), key=lambda key: abs(key[1] - d))
    return key, COUNTED[key]
