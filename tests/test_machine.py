"""What the driver is asked and what is made of its answers, with a driver that is played; and on a real GPU."""

import array
import fcntl
import os
import signal
import subprocess
import termios
import time
import types

import psutil
import pynvml
import pytest
import torch

from benchmarks.measuring import guard, machine, measurement, memory, records
from benchmarks.measuring.measurement import Limits, Measurement
from mmdma_core import Settings


@pytest.fixture
def driver(monkeypatch):
    """A driver with two GPUs and one process; NVML's handles are (kind, value)."""

    def processes(handle):
        return [types.SimpleNamespace(pid=77, usedGpuMemory=5_000)]

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: ("index", index),
        "nvmlDeviceGetHandleByUUID": lambda uuid: ("uuid", uuid),
        "nvmlDeviceGetName": lambda handle: "NVIDIA Test 9000",
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=100_000, used=9_000),
        "nvmlSystemGetDriverVersion": lambda: "1.2",
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1_000 + kind,
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 2_000,
        "nvmlDeviceGetComputeRunningProcesses": processes,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for cached in (machine.gpu, machine.gpu_uuid, machine._gpus):
        cached.cache_clear()
    yield monkeypatch
    for cached in (machine.gpu, machine.gpu_uuid, machine._gpus):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("visible", "handle"),
    [(None, ("index", 0)), ("1,0", ("index", 1)), ("GPU-ab", ("uuid", "GPU-ab")), ("", None), ("-1", None)],
)
def test_the_first_visible_gpu_is_asked(driver, visible, handle):
    if visible is not None:
        driver.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert (machine._gpus() or [None])[0] == handle
    assert (machine.gpu() is None) == (handle is None)


def test_names_and_records_say_who_measured(driver):
    assert machine.default_name("cuda") == "nvidia-test-9000"
    assert "nvidia" not in machine.default_name("cpu")
    assert machine.describe("cuda", 2)["gpu"]["driver"] == "1.2"
    assert machine.describe("cpu", 2)["gpu"] is None


def test_a_query_that_the_driver_does_not_know_is_none(driver):
    def refuse(*arguments):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses"):
        driver.setattr(pynvml, name, refuse)
    probe = memory.DeviceProbe()
    assert probe.peak({77}, "warm-up") is None
    assert machine.gpu()["memory_bytes"] is None


def test_the_probe_takes_the_process_and_starts_anew_after_the_data(driver):
    held = {"now": 100}
    driver.setattr(memory, "device_process_bytes", lambda pids, device: held["now"])
    probe = memory.DeviceProbe()
    assert probe.peak({77}, "data") == 100
    held["now"] = 40
    assert probe.peak({77}, "data") == 100
    assert probe.peak({77}, "warm-up") == 40  # 'prepare' went by between two looks
    held["now"] = 60
    assert probe.peak({77}, "epochs") == 60
    held["now"] = 50
    assert probe.peak({77}, "epochs") == 60
    assert probe.sm_clock_mhz == 1_000 + pynvml.NVML_CLOCK_SM


def test_the_probe_of_a_process_that_the_driver_does_not_list(driver):
    used = {"now": 9_000}
    driver.setattr(memory, "device_used_bytes", lambda device: used["now"])
    probe = memory.DeviceProbe()
    used["now"] = 12_000
    assert probe.peak({1}, "epochs") == 3_000


def test_of_several_gpus_the_fullest_counts_and_each_rank_is_looked_for_on_its_own(driver):
    held = {("index", 0): {77: 100, 99: 7_000}, ("index", 1): {78: 300, 99: 9_000}}  # 99 is somebody else's

    def processes(handle):
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in held[handle].items()]

    driver.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", processes)
    probe = memory.DeviceProbe(devices=2)
    assert probe.peak({76, 77, 78}, "epochs") == 300
    held["index", 0][77] = 400
    assert probe.peak({76, 77, 78}, "epochs") == 400
    used = {("index", 0): 1_000, ("index", 1): 1_000}
    info = lambda handle: types.SimpleNamespace(total=100_000, used=used[handle])  # noqa: E731
    driver.setattr(pynvml, "nvmlDeviceGetMemoryInfo", info)
    probe = memory.DeviceProbe(devices=2)
    used["index", 1] = 6_000
    assert probe.peak({1, 2}, "epochs") == 5_000  # of a container
    assert memory.within_reach("device", None, devices=2) == 94_000
    assert memory.within_reach("device", None) == 99_000


def test_what_a_driver_does_not_tell_of_a_process_is_no_0(driver):
    """As under WSL2."""
    process = types.SimpleNamespace(pid=77, usedGpuMemory=None)
    driver.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [process])
    assert machine.device_process_bytes({77}) is None


@pytest.mark.gpu
def test_a_cell_on_the_gpu_is_measured_and_capped(configure, command):
    study = {"n": [1000, 20_000], "p": [10], "variants": ["primal"], "cell_budget_s": 2}
    root = configure(study, device="cuda", gpu_memory_gib=4)
    command("sweep")
    small, large = (records.read(records.record_path(root, "primal", 10, n)) for n in (1000, 20_000))
    assert (small.status, small.device) == ("ok", "cuda")
    assert small.peak_device_bytes >= small.peak_torch_bytes > 0
    assert small.machine["gpu"]["sm_clock_mhz"] > 0
    assert large.status == "oom"  # six n x n matrices alone are 9 GiB


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def put_source(folder):
    file = folder / "benchmarks" / "measuring" / "machine.py"
    file.parent.mkdir(parents=True)
    file.touch()


def repository(folder, source=False):
    """A repository with one commit, of a file or of the study's source; and that commit."""
    folder.mkdir()
    put_source(folder) if source else (folder / "text").touch()
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return git(folder, "rev-parse", "--short=12", "HEAD")


@pytest.fixture
def commit_of(monkeypatch):
    def found(folder):
        monkeypatch.setattr(machine, "__file__", str(folder / "benchmarks" / "measuring" / "machine.py"))
        return machine.commit.__wrapped__()

    return found


def test_the_commit_is_that_of_this_checkout(tmp_path, commit_of, monkeypatch):
    own, other = tmp_path / "own", tmp_path / "other"
    first = repository(own, source=True)
    repository(other)
    assert commit_of(own) == first
    git(own, "worktree", "add", "-q", tmp_path / "tree")
    assert commit_of(tmp_path / "tree") == first
    git(other, "submodule", "add", own, "study")
    assert commit_of(other / "study") == first
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as within a hook of the other
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert commit_of(own) == first
    monkeypatch.undo()
    (own / "benchmarks" / "measuring" / "machine.py").write_text("changed")
    (own / "notes").touch()
    assert commit_of(own) == f"{first}-dirty"


@pytest.mark.parametrize("place", ["study", ".venv/lib/python3/site-packages", "."])
@pytest.mark.parametrize("tracked", [False, True])
def test_a_copy_in_another_repository_has_no_commit(tmp_path, commit_of, place, tracked):
    thesis = tmp_path / "a: thesis"
    repository(thesis)
    put_source(thesis / place)
    if tracked and place != ".":
        git(thesis, "add", ".")
        git(thesis, "commit", "-qm", "second")
    assert commit_of(thesis / place) is None
    put_source(tmp_path / "alone")
    assert commit_of(tmp_path / "alone") is None


def _two_ranks(cell, report, work):
    """In place of a group on CUDA: each rank waits, and says where it is."""
    report({"stage": "epochs"})
    unread = array.array("i", [1])
    while unread[0]:  # the guard knows the stage before there is a rank that holds memory
        fcntl.ioctl(report.__self__, termios.FIONREAD, unread)
    ranks = [os.fork() for _ in range(cell.devices)]
    if 0 in ranks:
        time.sleep(60)
    report({"ranks": [{"pid": pid} for pid in ranks]})
    time.sleep(1)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    report({"prepare_s": 0.0, "epoch_s": [0.1], "status": "ok"})


@pytest.mark.parametrize(("limit", "status"), [(None, "ok"), (3.0, "ok"), (1.5, "oom")])
def test_the_guard_looks_at_every_rank_on_its_gpu(driver, limit, status):
    """The second rank holds 2 GiB, the first half of one; all of them are this process's grandchildren."""

    def processes(handle):
        ranks = sorted(
            rank.pid for child in psutil.Process().children() for rank in child.children() if rank.pid != child.pid
        )
        held = [(pid, (0.5, 2)[k]) for k, pid in enumerate(ranks) if handle == ("index", k)]
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=int(gib * memory.GIB)) for pid, gib in held]

    driver.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", processes)
    driver.setattr(pynvml, "nvmlDeviceGetUUID", str)
    driver.setattr(guard.ranks, "in_ranks", _two_ranks)
    limits = Limits(1.0, 30.0, None, limit)
    asked = Measurement("primal", 9, 2, "", (), Settings(), "branch", 0, "fast", 1, "cuda", 1, limits, devices=2)
    record = guard.measure(asked, machine.describe("cuda", 1), 30)
    assert record.status == status, record.detail
    assert record.peak_device_bytes == 2 * memory.GIB
    assert status == "ok" or "device memory over the limit of 1.5 GiB during epochs" in record.detail


@pytest.mark.parametrize(("gib", "held_gib", "part"), [(4, 0.5, 0.35), (4, 30, 0.3), (20, 0.5, 1.0), (None, 0.5, None)])
def test_a_cell_on_a_gpu_gets_its_part_of_the_memory_less_the_context(gib, held_gib, part, monkeypatch):
    """Of 10 GiB; the context is what is held, a GiB at most, for the rest is another process's."""
    given, emptied = [], []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: ((10 - held_gib) * 2**30, 10 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cache"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: emptied.append("peak"))
    asked = types.SimpleNamespace(device="cuda", limits=types.SimpleNamespace(gpu_gib=gib))
    measurement._limit_memory(asked)
    measurement._reset_peaks(torch.device("cuda"))
    assert given == ([] if part is None else [pytest.approx(part)])
    assert emptied == ["cache", "peak"]
