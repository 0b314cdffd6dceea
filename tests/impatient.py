"""`mmdma fit` whose ranks have less patience with each other: python tests/impatient.py HANGING_S=8 fit ..."""

import sys

from mmdma_core.matching import joined
from mmdma_core.matching.command_line import main

if __name__ == "__main__":
    name, seconds = sys.argv.pop(1).split("=")
    assert hasattr(joined, name)
    setattr(joined, name, float(seconds))
    sys.exit(main())
