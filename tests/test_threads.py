"""The threads of the passes on the CPU: they answer to their caller alone, survive a fork, and sleep until asked."""

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from embeddings import PLAIN

from mmdma_core import MMDMA, Settings, host, simulate, start
from mmdma_core.fused.threads import in_threads

ON_OWN_THREADS = ("primal-fused", "dual-fused", "primal-fourier", "dual-fourier")


X, Y, _ = simulate("branch", 300, 20)


def losses(variant):
    run = start(variant, X, Y, Settings(n_components=3))
    for _ in range(3):
        run.step()
    return run.loss()


def in_a_fork(work, *arguments):
    """What work(*arguments) returns in a fork of this process, None if that has not answered in a minute."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(work(*arguments)))
    child.start()
    try:
        return receiver.recv() if receiver.poll(60) else None
    finally:
        child.kill()
        child.join()


def test_each_part_runs_once():
    shares = np.zeros(5)

    def part(t, many, out):
        out[t] += many

    for _ in range(2):
        in_threads(part, 5, shares)
    np.testing.assert_array_equal(shares, 10)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_a_part_raises_reaches_the_caller_and_the_next_call_is_as_new(failing):
    def part(t, many, out):
        if t == failing and out is None:
            raise MemoryError(f"part {t}")
        if out is not None:
            out[t] = 1

    with pytest.raises(MemoryError, match=f"part {failing}"):
        in_threads(part, 3, None)
    done = np.zeros(3)
    in_threads(part, 3, done)
    np.testing.assert_array_equal(done, 1)


def test_threads_end_with_the_thread_that_asked():
    before = set(threading.enumerate())
    caller = threading.Thread(target=lambda: in_threads(lambda t, many: None, 4))
    caller.start()
    caller.join()
    for _ in range(100):
        if before.issuperset(threading.enumerate()):
            return
        threading.Event().wait(0.05)
    raise AssertionError(threading.enumerate())


@pytest.mark.parametrize("variant", ON_OWN_THREADS)
def test_a_fork_after_a_fit_computes_the_same(variant):
    assert tuple(in_a_fork(losses, variant)) == pytest.approx(tuple(losses(variant)), rel=1e-4)


def test_fits_in_several_threads_at_once_do_not_disturb_each_other():
    alone = losses("primal-fused")
    found = []
    callers = [threading.Thread(target=lambda: found.append(losses("primal-fused"))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [alone] * 4


def test_who_waits_takes_no_time_of_the_processor():
    """Where OpenMP is told to spin, so that a wait in it would be seen."""
    code = """
import time
from mmdma_core.fused.tall_skinny import TallSkinnyProducts
import numpy as np
TallSkinnyProducts(np.ones((300, 20)), 3, 2).rows(np.ones((3, 20)), np.ones((300, 3)))
begin = time.process_time()
time.sleep(1)
print(time.process_time() - begin)
"""
    environment = os.environ | {"OMP_WAIT_POLICY": "active"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["primal", "dual", "linear-time", "primal-keops", *ON_OWN_THREADS])
def test_a_fit_after_a_fit_in_a_fork_answers(variant):
    """With views large enough that PyTorch, NumPy and KeOps take their threads, in this process before."""

    def fit():
        x, y, _ = simulate("branch", 2000, 100)
        return MMDMA(variant, n_epochs=2, n_starts=1, random_state=0, device="cpu", **PLAIN).fit(x, y).starts_.loss[0]

    assert in_a_fork(fit) == pytest.approx(fit(), rel=1e-5)
    assert in_a_fork(fit) == pytest.approx(fit(), rel=1e-5)


def test_openmp_waits_briefly_within_a_fit_and_no_thread_is_left():
    """By default they would spin through the 3 ms after each product here."""
    code = """
import os, threading, time, torch
from mmdma_core.fused.threads import brief_waits
torch.set_num_threads(len(os.sched_getaffinity(0)))
before = threading.active_count()
with brief_waits():
    used = 0.0
    for _ in range(20):
        torch.ones(2**18).exp_()
        begin = time.process_time()
        time.sleep(0.003)
        used += time.process_time() - begin
print(used, threading.active_count() - before)
"""
    environment = {key: value for key, value in os.environ.items() if key not in host.WAITS}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    used, left = done.stdout.split()
    assert float(used) < 0.02  # a third of the time that was slept
    assert left == "0"
