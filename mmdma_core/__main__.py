"""`python -m mmdma_core`: the command `mmdma`."""

import sys

from mmdma_core.matching.command_line import main

if __name__ == "__main__":
    sys.exit(main())
