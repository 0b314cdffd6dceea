"""What every variant would do on a GPU, and on the second one, watched without one, see fake_cuda.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdma_core import host, variant, variants

# Each epoch of these waits by itself: the terms of the loss come to the host, see mmdma_core.compositions.
WAITING = ("original-2020", "published")
NAMES = [name for name in variants() if "tensorflow" not in variant(name).requires and not variant(name).absent()]
SHAPES = [(60, 20), (20, 60)]


def job(name, device="cuda:1", shape=SHAPES[0], small=True, sparse=False, fault=None):
    n, p = shape
    return dict(variant=name, device=device, n=n, p=p, small=small, sparse=sparse, fault=fault)


def jobs_of(name):
    """On both GPUs, for p < n and p >= n, below the thresholds and beyond, sparse where that is accepted."""
    found = [job(name, device, shape) for device in ("cuda:1", "cuda") for shape in SHAPES]
    if "mmdma_core.fused" in variant(name).reference or name.endswith("-fourier"):
        found += [job(name, shape=shape, small=False) for shape in SHAPES]
    if "sparse" in variant(name).accepts:
        found += [job(name, shape=shape, sparse=True) for shape in SHAPES]
    return found


FAULTS = {
    "a term on the CPU": ("primal", "mixed"),
    "a gradient on another GPU": ("primal", "mixed"),
    "a value in an epoch": ("primal", "wait"),
    "a copy in an epoch": ("primal-fourier", "wait"),
    "an import in start": ("primal", "import"),
    "a compilation in start": ("primal-fused", "compiled"),
    "a transfer in a capture": ("primal-fused", "captured"),
    "memory of the host in a capture": ("primal-fused", "captured"),
    "pinned memory in a capture": ("primal-fused", "captured"),
    "no guard": ("primal-fused", "elsewhere"),
    "a capture on another GPU": ("primal-fourier", "elsewhere"),
}
JOBS = [one for name in NAMES for one in jobs_of(name)]
JOBS += [job(name, fault=fault) for fault, (name, _) in FAULTS.items()]


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """What was noted of each job, all in one process of their own."""
    folder = host.keops_folder() or tmp_path_factory.mktemp("guard")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fake_cuda.py")), str(folder), json.dumps(JOBS)],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(map(str, JOBS), json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name, noted):
    """No mixed devices, no other GPU, no wait in an epoch, nothing forbidden in a capture; start imports nothing."""
    for one in jobs_of(name):
        found = noted[str(one)]
        if name.startswith(WAITING):
            assert ["epoch", "wait"] in [note[:2] for note in found], one
            found = [note for note in found if note[:2] != ["epoch", "wait"]]
        assert not found, one


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault, noted):
    name, kind = FAULTS[fault]
    assert kind in {note[1] for note in noted[str(job(name, fault=fault))]}
