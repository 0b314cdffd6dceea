"""What only a first start does in a process is in no clock: a small run of the same kind comes before."""

import dataclasses
import importlib
import math
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import scipy.sparse
import torch
from conftest import ROOT
from test_groups_of_cells import CELL, WHO

from benchmarks.measuring import guard, measurement
from benchmarks.measuring.measurement import FEW, few
from mmdma_core import registry, simulate, start, variant
from mmdma_core.fused import compose, pairs_cuda, views_cuda

pytestmark = pytest.mark.slow


def slow(**fields):
    return dataclasses.replace(CELL, **({"variant": "slow-at-first", "devices": 1, "n": 1000, "p": 20} | fields))


@pytest.fixture
def plugin():
    """The plugin, in this process as long as a test takes."""
    before = dict(registry._VARIANTS)
    module = importlib.import_module("slow_at_first")
    yield module
    registry._VARIANTS.clear()
    registry._VARIANTS.update(before)
    del sys.modules[module.__name__]


def _measured(asked):
    import slow_at_first  # noqa: F401  (registers its variants)

    return guard.measure(asked, WHO, 60)


@pytest.fixture(scope="module")
def measured():
    """The record of a cell, from a process that has never computed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda asked: pool.submit(_measured, asked).result()


@pytest.mark.parametrize("devices", [1, 2])
def test_what_the_first_start_of_a_process_takes_is_told_apart(measured, plugin, devices):
    record = measured(slow(devices=devices))
    assert record.status == "ok", record.detail
    assert record.first_start_s >= 2 * plugin.SECONDS
    assert record.prepare_s + record.warmup_s + max(record.epoch_s) < plugin.SECONDS
    assert record.runtime_s < plugin.SECONDS


def test_what_a_small_problem_raises_is_not_the_cells(measured):
    for n in (500, 501):
        record = measured(slow(variant="likes-many", n=n))
        assert (record.status, record.first_start_s is None) == ("ok", False), record.detail
    assert measured(slow(variant="likes-many", n=301)).status == "unsupported"
    assert measured(slow(variant="likes-many", n=302)).status == "error"


class Sparse:
    """Views of 700 cells: 900 features in a sparse view, and 5 in a dense one."""

    name = "sparse"

    def views(self, n, p, seed):
        x = scipy.sparse.random_array((n, p), density=0.1, rng=0, format="csr", dtype=np.float32)
        return x, np.ones((n, 5), np.float32), np.arange(n)


def test_the_small_run_is_of_the_same_kind(plugin):
    cpu = torch.device("cpu")
    for data, y_shape, layout in ((None, (316, 380), torch.strided), (Sparse(), (316, 5), torch.sparse_csr)):
        asked = slow(n=700, p=900, data=data)
        measurement._start_small(asked, measurement._views(asked, cpu), cpu)
        x, y = plugin.STARTED[-1]
        assert x == ((316, 380), layout, torch.float32)
        assert y == (y_shape, torch.strided, torch.float32)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("n", "p"),
    [*((100, p) for p in (99, 100, 101)), (1000, 999), (5000, 5000), (100_007, 10**6), (123_457, 10), (10**6, 10**4)],
)
def test_few_cells_are_as_many_modulo_16_and_fewer_or_more_than_features_as_before(n, p, device):
    small = few(n, p, device)
    assert min(n, FEW[device]) <= small[0] <= min(n, FEW[device] + 15)
    assert (n - small[0]) % 16 == 0
    assert small[1] <= p
    assert np.sign(small[0] - small[1]) == np.sign(n - p)


def test_on_cuda_what_is_compiled_depends_on_n_no_further():
    """Beyond so many cells tiles, groups of columns, graphs and the loss of an estimate are the same for all n.

    Triton compiles anew for a whole number that 16 divides, or that is 1, unless it is told not to.
    """
    last = max(
        pairs_cuda._LARGE, pairs_cuda._TIMED_POINTS, views_cuda.CAPTURED_POINTS // 2 + 1, compose.EXACT_UP_TO + 1
    )
    assert FEW["cuda"] >= last
    assert not any(pairs_cuda.FusedMMD(n, n, 10, 1.0, True)._segment % 16 for n in (1000, 4999, 123_457, 10**6))
    code = (
        "from mmdma_core.fused import pair_kernels as k\n"
        "for kernel in (k.arrange, k.compact_blocks, k.wide_blocks):\n"
        "    (blocks_x,) = (p for p in kernel.params if p.name == 'blocks_x')\n"
        "    assert blocks_x.do_not_specialize, kernel\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_a_dropped_run_of_the_published_package_leaves_no_thread():
    missing = variant("published-dual").missing(torch.device("cpu"))
    if missing:
        pytest.skip(missing)
    x, y, _ = simulate("branch", 60, 20)
    before = threading.active_count()
    for steps in (0, 2):
        run = start("published-dual", x, y)
        for _ in range(steps):
            run.step()
        assert math.isfinite(run.loss().total)
        assert threading.active_count() == before + 1
        del run
        assert threading.active_count() == before


def test_before_a_fork_on_a_gpu_nothing_opens_cuda():
    """What children on a GPU have from their parent: imports that take seconds, no CUDA, no KeOps."""
    code = (
        "import sys, torch, mmdma_core\n"
        "from benchmarks.measuring import guard\n"
        "torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1\n"
        "opened = []\n"
        "torch.cuda._lazy_init = lambda: opened.append(1)\n"
        "guard.preload(mmdma_core.variants(), 'cuda')\n"
        "assert not opened\n"
        "assert 'pykeops' not in sys.modules and 'lsmmdma' not in sys.modules and 'tensorflow' not in sys.modules\n"
        "print('torch._dynamo' in sys.modules, 'numba' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True"]
