import sys

from benchmarks.limit.limit import main
from mmdma_core.files import streams

sys.exit(streams.run(main))
