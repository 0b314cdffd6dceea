"""A signal that comes while a cell is forked ends the measuring process all the same, and its child."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT

MEASURE = """
    import os, signal, sys
    from benchmarks import __main__ as command
    from benchmarks.measuring import guard
    from benchmarks import config, study

    here = study.load(config.read(overrides=["study=smoke", "device=cpu", "machine=here"]))
    signal.signal(int(sys.argv[1]), command._interrupt)
    os.register_at_fork(before=lambda: os.kill(os.getpid(), int(sys.argv[1])))
    try:
        guard.measure(here.measurement("primal", 100, 10), {}, 60)
    except KeyboardInterrupt:
        children = guard.multiprocessing.active_children()
        print("interrupted", len(children))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_a_fork_is_not_lost(number):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(int(number))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "interrupted 0\n", done.stderr
    assert "Exception ignored" not in done.stderr
