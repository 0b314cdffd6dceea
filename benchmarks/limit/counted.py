"""Instructions of the pair kernels on CUDA, counted in what Triton makes of it for a GPU that need not be there.

tests/test_fused_cuda.py counts again and holds these numbers to 10 %, FLOAT64 as it is.
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
    (80, 10): Counted(9.9, 77.8, 255),
    (80, 62): Counted(24.4, 307.8, 255),
    (89, 10): Counted(9.9, 72.7, 254),
    (89, 62): Counted(24.4, 308.1, 255),
    (90, 10): Counted(9.0, 73.6, 250),
    (90, 62): Counted(17.3, 293.5, 255),
    (100, 10): Counted(10.3, 71.9, 236),
    (100, 62): Counted(22.3, 228.2, 255),
    (120, 10): Counted(9.8, 77.3, 255),
    (120, 62): Counted(25.5, 301.1, 255),
}
FLOAT64 = 6  # instructions in float64 of a thread of a program, for the sums of k of both clouds; none for a pair
UNORDERED = 11.6  # for an unordered pair, in compact blocks, d = 10, sm_90: the prototype in unordered_cuda.py


def nearest(capability: int, d: int) -> tuple[tuple[int, int], Counted]:
    """The counts for the nearest compute capability (10 major + minor) that is not above, and the nearest d."""
    of = max([c for c, _ in COUNTED if c <= capability], default=min(COUNTED)[0])
    key = min((key for key in COUNTED if key[0] == of), key=lambda key: abs(key[1] - d))
    return key, COUNTED[key]
