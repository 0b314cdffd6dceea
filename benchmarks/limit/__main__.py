import sys

from benchmarks.limit.limit import main
from mmdma_core.files import stdio

sys.exit(stdio.run(main))
