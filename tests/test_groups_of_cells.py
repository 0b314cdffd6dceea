"""A cell as a group of processes: measured, limited, and ended as one."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import psutil
import pytest

from benchmarks.analysis.table import to_frame
from benchmarks.figures import scaling
from benchmarks.figures.scaling import scaled
from benchmarks.measuring import guard, machine
from benchmarks.measuring.measurement import Limits, Measurement
from mmdma_core import Settings

pytestmark = pytest.mark.slow

CELL = Measurement(
    variant="primal-fourier",
    n=4001,
    p=20,
    source="",
    absent=(),
    settings=Settings(n_components=3),
    shape="branch",
    seed=4,
    data_mode="fast",
    epochs=6,
    device="cpu",
    threads=2,
    limits=Limits(20.0, 300.0, 2.0, None),
    devices=2,
)
WHO = machine.describe("cpu", 2)


@pytest.fixture(scope="module")
def measured():
    """guard.measure in a process that has never computed, as a sweep's: what forks cells must have no threads.

    That of the tests may have some, of what other test files compute.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.getpid).result()  # it has begun, and no test takes it for a child that was left

        def measure(cell, timeout_s=300, work=guard.measurement.time_epochs):
            return pool.submit(guard.measure, cell, WHO, timeout_s, work).result()

        yield measure


def test_a_group_finds_the_losses_of_one_process(measured):
    alone, shared = (measured(dataclasses.replace(CELL, devices=devices)) for devices in (1, 2))
    assert (alone.status, shared.status) == ("ok", "ok"), shared.detail
    for when in ("early", "final"):
        assert shared.losses[when]["total"] == pytest.approx(alone.losses[when]["total"], rel=1e-6)
    assert len(shared.epoch_s) == 6
    assert [rank["status"] for rank in shared.ranks] == ["ok", "ok"]
    assert shared.peak_host_bytes == sum(rank["peak_host_bytes"] for rank in shared.ranks)
    assert (alone.devices, alone.ranks, shared.devices) == (1, [], 2)
    assert alone.key != shared.key


def test_what_runs_in_one_process_is_unsupported(measured):
    record = measured(dataclasses.replace(CELL, variant="primal", n=100))
    assert record.status == "unsupported"
    assert "take primal-fused or primal-fourier" in record.detail


def _one_runs_out_of_memory(cell, report):
    if os.environ["RANK"] == "1":
        raise MemoryError("no room")
    time.sleep(60)


def _one_is_killed(cell, report):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def _never_ends(cell, report):
    report({"stage": "epochs"})
    time.sleep(600)


@pytest.mark.parametrize(
    ("work", "status", "word"),
    [(_one_runs_out_of_memory, "oom", "MemoryError"), (_one_is_killed, "error", "rank 1: SIGSEGV")],
)
def test_one_rank_ends_the_cell(measured, work, status, word):
    before, begun = {child.pid for child in psutil.Process().children(recursive=True)}, time.monotonic()
    record = measured(CELL, work=work)
    assert time.monotonic() - begun < 30
    assert record.status == status
    assert word in record.detail
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_a_time_limit_leaves_no_rank(measured):
    seen, before = [], psutil.Process().children(recursive=True)

    def look():
        time.sleep(3)
        seen.extend(child for child in psutil.Process().children(recursive=True) if child not in before)

    thread = threading.Thread(target=look)
    thread.start()
    record = measured(CELL, timeout_s=6, work=_never_ends)
    thread.join()
    assert record.status == "timeout"
    assert len(seen) >= 3  # the child and its ranks
    psutil.wait_procs([child for child in seen if child.is_running()], timeout=5)
    assert not [child for child in seen if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def record_of(devices, n, epoch_s):
    record = guard.new_record(dataclasses.replace(CELL, devices=devices, n=n), "ok", "", WHO)
    record.prepare_s, record.epoch_s, record.peak_host_bytes = 1.0, [epoch_s] * 3, 2**30
    record.ranks = [{"peak_host_bytes": 2**30 // devices, "peak_torch_bytes": None}] * (devices > 1)
    return record


def test_scaling_is_told_from_records_of_several_numbers_of_devices():
    records = [record_of(1, 1000, 4.0), record_of(2, 1000, 2.5), record_of(4, 1000, 1.0), record_of(2, 2000, 5.0)]
    table = scaled(records)
    strong = table[(table["kind"] == "strong") & (table["n"] == 1000)].set_index("devices")
    assert strong["speed_up"].to_dict() == {1: 1.0, 2: 1.6, 4: 4.0}
    assert strong["memory_of_each"].to_dict() == {1: 2**30, 2: 2**29, 4: 2**28}
    weak = table[table["kind"] == "weak"].set_index("devices")
    assert weak["speed_up"].to_dict() == {1: 1.0, 2: 0.8}  # twice the cells on twice the devices, in 5 s for 4
    figure = scaling.draw(table, "here")
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "strong: n is fixed",
        "weak: n of each is fixed",
    ]


def test_no_table_mixes_numbers_of_devices(tmp_path):
    assert set(to_frame([record_of(1, 1000, 1.0)])["devices"]) == {1}


def test_advise_for_several_devices(configure, command):
    configure({"n": [100], "p": [5], "variants": ["primal-fused"]})
    one, eight = (
        command("advise", "--n", 4_000_000, "--p", 1000, "--gpu-memory-gib", 80, "--devices", devices)
        for devices in (1, 8)
    )
    assert "take primal-fused" in eight
    assert "on each of 8 devices" in eight
    assert "runs in one process" in eight
    assert one != eight
