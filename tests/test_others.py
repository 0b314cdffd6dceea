"""What others took of the machine beside a cell: planted in what the kernel and the driver say, and in a sweep."""

import dataclasses
import os
import resource
import subprocess
import sys
import time
from types import SimpleNamespace

import pynvml
import pytest
from reports import grid, planted, study_of
from test_compare import folders, made  # noqa: F401
from test_machine import driver  # noqa: F401
from test_records import load, record, with_study

from benchmarks import sweep
from benchmarks.analysis import compare, table
from benchmarks.measuring import guard, machine, others, records
from benchmarks.measuring.measurement import Limits, Measurement
from benchmarks.plan import Plan
from benchmarks.report import evidence, noise
from mmdma_core import Settings


def stat(user=0, nice=0, system=0, idle=0, iowait=0, irq=0, softirq=0, steal=0, guest=0):
    """The ticks of a core."""
    return " ".join(map(str, (user, nice, system, idle, iowait, irq, softirq, steal, guest, 0)))


def told(tmp_path, monkeypatch, after, own_s=0.0, seconds=10.0, before=None, cores=(0, 2)):
    """The share that is made of /proc/stat before and after, and of the CPU seconds of the cell and its guard."""
    file = tmp_path / "stat"

    def say(of_each):
        file.write_text("".join(f"cpu{name} {ticks}\n" for name, ticks in of_each.items()) + "intr 5 0\n")

    used = {resource.RUSAGE_SELF: [3.0, 1.0], resource.RUSAGE_CHILDREN: [7.0, 0.0]}
    clock = [100.0]
    monkeypatch.setattr(others, "_STAT", file)
    monkeypatch.setattr(others.os, "sched_getaffinity", lambda _: set(cores))
    monkeypatch.setattr(others, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    usage = lambda who: SimpleNamespace(ru_utime=used[who][0], ru_stime=used[who][1])  # noqa: E731
    monkeypatch.setattr(others.resource, "getrusage", usage)
    say({"": stat(9000), 0: stat(500, idle=70), 2: stat(90, idle=80)} if before is None else before)
    beside = others.Others()
    for which in used.values():  # half of it this process, half the cell; a quarter each in the kernel
        which[0] += 0.25 * own_s
        which[1] += 0.25 * own_s
    clock[0] += seconds
    say(after)
    return beside.cpu_share()


@pytest.mark.parametrize(
    ("more", "own_s", "share"),
    [
        ({"user": 500, "idle": 500}, 5.0, 0.0),  # 5 s of 20, all our own
        ({"user": 500, "idle": 500}, 0.0, 0.25),
        ({"user": 500, "nice": 300, "system": 200}, 5.0, 0.25),
        ({"irq": 200, "softirq": 100, "idle": 700}, 0.0, 0.15),
        ({"steal": 400, "idle": 600}, 0.0, 0.2),
        ({"user": 100, "guest": 100, "idle": 900}, 0.0, 0.05),  # a guest's time is in user, too
        ({"idle": 300, "iowait": 700}, 0.0, 0.0),
        ({"idle": 1000}, 0.5, 0.0),  # the ticks lag behind what processes are charged
    ],
)
def test_the_share_of_the_cores(tmp_path, monkeypatch, more, own_s, share):
    """Core 1 is switched off, and the affinity leaves core 3 to others; core 2 idles."""
    first = {"user": 500, "idle": 70}
    busy = {name: first.get(name, 0) + more.get(name, 0) for name in first | more}
    after = {"": stat(99000), 0: stat(**busy), 2: stat(90, idle=1080), 3: stat(5000)}
    assert told(tmp_path, monkeypatch, after, own_s) == pytest.approx(share)


def test_where_the_kernel_does_not_tell_nothing_is_known(tmp_path, monkeypatch):
    idle = {0: stat(500, idle=1070), 2: stat(90, idle=1080)}
    assert told(tmp_path, monkeypatch, idle) == 0
    assert told(tmp_path, monkeypatch, {0: stat(500, idle=1070)}) is None  # a core without a line
    assert told(tmp_path, monkeypatch, idle, before={0: "1 2 3"}) is None
    zeros = {0: stat(), 2: stat()}
    assert told(tmp_path, monkeypatch, zeros, before=zeros) is None
    few = {0: stat(510, idle=70), 2: stat(90, idle=90)}
    assert told(tmp_path, monkeypatch, few, seconds=0.1) is None  # 10 ticks
    monkeypatch.setattr(others, "_STAT", tmp_path / "absent")
    assert others.Others().cpu_share() is None


def cell_of(n=20, timeout_s=60.0):
    limits = Limits(1.0, timeout_s, None, None)
    return Measurement("primal", n, 5, "", (), Settings(), "branch", 4, "exact", 5, "cpu", 1, limits)


@pytest.mark.parametrize("ended_by", ["itself", "the guard"])
def test_what_a_cell_leaves_behind_is_its_own(tmp_path, monkeypatch, ended_by):
    """Nobody but the guard waits for what a cell has started and is ended with it."""
    done = tmp_path / "done"

    def work(cell, report):
        if os.fork() == 0:
            while time.process_time() < 0.4:
                pass
            done.touch()
            time.sleep(100)
        while ended_by == "the guard" or not done.exists():
            time.sleep(0.01)
        os._exit(3)

    if ended_by == "the guard":
        broken = lambda watch, cell, late: ("timeout", "planted") if done.exists() else None  # noqa: E731
        monkeypatch.setattr(guard, "_broken_limit", broken)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = guard.measure(cell_of(), machine.describe("cpu", 1), 60, work)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.status == ("timeout" if ended_by == "the guard" else "error")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime > 0.39


@pytest.mark.slow
@pytest.mark.alone
def test_a_busy_process_on_each_core_is_seen():
    def work(cell, report):
        while time.process_time() < 1:
            pass
        report({"prepare_s": 0.0, "epoch_s": [0.1], "status": "ok"})

    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        found = guard.measure(cell_of(), machine.describe("cpu", 1), 60, work)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert others.NOISY < found.others_cpu < 1
    assert found.others_gpu is None


@pytest.fixture
def gpus(driver, monkeypatch):  # noqa: F811
    """Two GPUs, on which 77 and 78 are the cell's; returns a clock, and the samples of each: (pid, time in s, %)."""
    clock, samples = [1000.0], {0: [], 1: []}

    def utilization(handle, since_us):
        found = [one for one in samples[handle[1]] if one[1] * 1e6 > since_us]
        if not found:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return [SimpleNamespace(pid=pid, timeStamp=int(at * 1e6), smUtil=used) for pid, at, used in found]

    def listed(handle):
        return [SimpleNamespace(pid=77 + handle[1], usedGpuMemory=5)]

    driver.setattr(pynvml, "nvmlDeviceGetProcessUtilization", utilization)
    driver.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", listed)
    monkeypatch.setattr(others, "time", SimpleNamespace(time=lambda: clock[0], perf_counter=time.perf_counter))
    return clock, samples


def watched(clock, seconds=10, devices=1, pids=(77, 78)):
    beside = others.Others(devices)
    for _ in range(seconds * 10):
        clock[0] += 0.1
        beside.look(pids)
    return beside.gpu_share()


def test_what_others_take_of_a_gpu_is_a_mean_over_time(gpus):
    clock, samples = gpus
    samples[0] = [(77, 1000 + k / 2, 90) for k in range(20)]
    assert watched(clock) == 0
    samples[0] += [(99, 1010.2 + k / 2, 40) for k in range(10)]  # in the first half of the second ten seconds
    samples[0] += [(98, 1010.3 + k, 20) for k in range(10)]  # once in each second
    samples[0] += [(97, 1012.3, 2**31)]  # an entry that the driver has not filled
    assert watched(clock) == pytest.approx(0.2 + 0.2, abs=0.05)
    samples[1] = [(99, 1020.1 + k / 2, 100) for k in range(20)] + [(77, 1020.1 + k / 2, 50) for k in range(20)]
    assert watched(clock, devices=2) == pytest.approx(1.0)  # the fuller one


def test_a_short_cell_on_a_gpu_is_seen_at_its_end(gpus):
    clock, samples = gpus
    samples[0] = [(99, 1000.15, 30)]
    beside = others.Others(1)
    clock[0] += 0.2
    beside.look({77})
    assert beside.gpu_share() == pytest.approx(0.3)


def test_a_driver_that_does_not_tell_who_computes_is_not_one_that_says_nobody_does(gpus, driver):  # noqa: F811
    clock, samples = gpus
    samples[0] = [(99, 1000 + k, 50) for k in range(100)]
    assert watched(clock, pids=(1,)) is None  # of a container: the driver knows the cell by another number
    assert watched(clock) == pytest.approx(0.5)
    for error in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION):

        def refuse(*_, error=error):
            raise pynvml.NVMLError(error)

        driver.setattr(pynvml, "nvmlDeviceGetProcessUtilization", refuse)
        assert watched(clock) is None

    def nothing(*_):  # what pynvml makes of an empty answer
        raise pynvml.NVMLError(pynvml.NVML_SUCCESS)

    driver.setattr(pynvml, "nvmlDeviceGetProcessUtilization", nothing)
    assert watched(clock) == 0
    assert others.Others().gpu_share() is None


def test_the_larger_share_counts_and_an_older_record_knows_none():
    assert record().others is None
    assert record().others_in_words == "an unknown share"
    assert record(others_cpu=0.2).others == 0.2
    both = record(others_cpu=0.2, others_gpu=0.734)
    assert (both.others, both.others_in_words) == (0.734, "73 % of the GPU")
    assert record(others_cpu=0.2, others_gpu=0.1).others_in_words == "20 % of the cores"
    row = table.to_frame([both]).iloc[0]
    assert (row["others_cpu"], row["others_gpu"], row["repeated"]) == (0.2, 0.734, False)


class Machine:
    """Plays the guard: what cells of each n give, one after the other, and how long each takes."""

    def __init__(self, study, monkeypatch, cells):
        self.study, self.cells, self.asked, self.now = study, cells, [], 0.0
        monkeypatch.setattr(guard, "measure_within", self.measured)
        monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: self.now))

    def measured(self, cell, who, left):
        self.asked.append(cell.n)
        status, share = self.cells[cell.n].pop(0)
        self.now += 1
        limits = dataclasses.asdict(cell.limits)
        return dataclasses.replace(record("dual", cell.n, 10, status, others_cpu=share), key=cell.key, limits=limits)

    def sweep(self, budget_s=100.0):
        self.asked = []
        told = list(sweep._sweep(self.study, "dual", 10, self.study.n, budget_s, False))
        held = [records.read(self.study.path("dual", n, 10)) for n in self.study.n]
        return told, [(one.status, one.others, one.repeated) for one in held]


@pytest.fixture
def machine_of(tmp_path, monkeypatch):
    small = with_study(load(tmp_path), n=(100, 200, 300), sweep_budget_s=100.0)
    return lambda cells, **fields: Machine(with_study(small, **fields), monkeypatch, cells)


def ok(*shares):
    return [("ok", share) for share in shares]


def test_a_cell_beside_others_is_measured_once_more_at_the_end_and_the_quieter_one_stays(machine_of, capsys):
    played = machine_of({100: ok(0.734, 0.05), 200: ok(0.5), 300: ok(0.6, 0.8)})
    told, held = played.sweep()
    assert played.asked == [100, 200, 300, 100, 300]
    assert held == [("ok", 0.05, True), ("ok", 0.5, False), ("ok", 0.6, True)]
    assert [one.n for one in told] == played.asked
    assert capsys.readouterr().out.splitlines() == [
        "dual n = 100 p = 10: others took 73 % of the cores, and 5 % of the cores when it was measured once more: "
        "the second stays",
        "dual n = 300 p = 10: others took 60 % of the cores, and 80 % of the cores when it was measured once more: "
        "the first stays",
    ]
    assert played.sweep() == ([], held)  # once more, and not again
    assert played.asked == []


@pytest.mark.parametrize("status", ["timeout", "oom"])
def test_after_an_end_for_which_others_are_the_reason_larger_n_go_on(machine_of, status):
    played = machine_of({100: ok(0.9, 0.2), 200: [(status, 0.9), ("ok", 0.95)], 300: ok(0.1)})
    assert played.sweep()[1] == [("ok", 0.2, True), ("ok", 0.95, True), ("ok", 0.1, False)]
    assert played.asked == [100, 200, 200, 300, 100]


def test_an_end_that_is_the_cells_own_stays(machine_of):
    played = machine_of({100: ok(0.1), 200: [("timeout", 0.9), ("timeout", 0.0)], 300: []})
    assert played.sweep()[1] == [("ok", 0.1, False), ("timeout", 0.0, True), ("skipped", None, False)]
    played = machine_of({100: ok(0.1), 200: [("timeout", 0.9), ("oom", None)], 300: []}, seed=5)
    assert played.sweep()[1][1] == ("timeout", 0.9, True)  # not known is not quiet
    played = machine_of({100: ok(0.1), 200: [("timeout", 0.5)], 300: []}, seed=6)
    assert played.sweep()[1][1] == ("timeout", 0.5, False)


def test_an_ok_cell_stays_whatever_comes_after(machine_of):
    played = machine_of({100: [("ok", 0.9), ("timeout", 0.1)], 200: ok(0.1), 300: ok(None)})
    assert played.sweep()[1] == [("ok", 0.9, True), ("ok", 0.1, False), ("ok", None, False)]


def test_what_others_have_no_part_in_is_not_measured_once_more(machine_of):
    played = machine_of({100: [("error", 0.9)], 200: [("unsupported", 0.9)], 300: [("missing_dependency", 0.9)]})
    played.sweep()
    assert played.asked == [100, 200, 300]


def test_without_time_left_the_first_stays_and_a_later_sweep_takes_it_up(machine_of, capsys):
    played = machine_of({100: ok(0.9, 0.1), 200: ok(0.9, 0.1), 300: [("timeout", 0.7), ("timeout", 0.2)]})
    _, held = played.sweep(budget_s=3.0)
    assert played.asked == [100, 200, 300]
    assert [share for _, share, _ in held] == [0.9, 0.9, 0.7]
    said = capsys.readouterr().out.splitlines()
    no_time = "the sweep has no time left to measure it once more"
    assert said == [
        f"dual n = {n} p = 10: others took {share} % of the cores, {no_time}"
        for n, share in ((300, 70), (100, 90), (200, 90))
    ]
    assert played.sweep()[1] == [("ok", 0.1, True), ("ok", 0.1, True), ("timeout", 0.2, True)]


def test_where_larger_n_are_tried_all_the_same_an_end_waits_for_the_sweeps(machine_of):
    played = machine_of(
        {100: [("timeout", 0.9), ("timeout", 0.1)], 200: ok(0.1), 300: ok(0.1)}, stop_after_failure=False
    )
    played.sweep()
    assert played.asked == [100, 200, 300, 100]


def test_the_plan_counts_a_cell_that_is_measured_twice_once(machine_of):
    played = machine_of({100: ok(0.9, 0.1), 200: ok(0.1), 300: ok(0.1)})
    planned = Plan(played.study)
    for one in played.sweep()[0]:
        planned.add(one)
    assert played.asked == [100, 200, 300, 100]
    assert planned.basis().startswith("3 measurements and")


def test_the_report_says_beside_which_cells_others_ran(tmp_path):
    cells = grid({"primal": 3.0, "dual": 2.0})
    cells[3] = planted("primal", 200, 20, epoch_s=[0.1, 0.2], others_cpu=0.64, repeated=True)
    cells[5] = planted("dual", 200, 10, epoch_s=[0.1, 0.2] * 4, others_gpu=0.02)
    cells[6] = planted("dual", 100, 20, status="timeout", others_cpu=0.3)
    section = noise.section(evidence.gather(study_of(tmp_path / "here", cells))).html.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "they took more than 10 % of the cores or of the GPU beside 2 of 3 measurements; 64 % of the cores" in section
    )
    assert "Of 5 measurements it is not known." in section
    assert "1 measurement made twice for it: the better one stays." in section
    assert "For this or their spread 2 of 7 measurements count as noisy." in section
    first, second = section.split("noisiest measurements")[-1].split("<tbody>")[-1].split("</tr>")[:2]
    assert "primal" in first
    assert "64 %" in first
    assert "71 %" not in first  # two epochs tell no spread
    assert "dual" in second


def test_the_report_on_a_quiet_machine_and_on_older_records():
    (quiet,) = noise.beside(table.to_full_frame([planted("dual", 100, 10, others_cpu=0.04)]))
    assert quiet.startswith(
        "In none of 1 measurement did others take more than 10 % of the cores or of the GPU; 4 % of the"
    )
    (older,) = noise.beside(table.to_full_frame([planted("dual", 100, 10)]))
    assert "do not say what other processes took" in older


def test_compare_names_others_as_the_reason(folders):  # noqa: F811
    slow = [0.2] * 7
    a = [made(), made("dual", others_cpu=0.0), made("linear-time")]
    b = [made(epoch_s=slow, others_gpu=0.6), made("dual", epoch_s=slow), made("linear-time", status="timeout")]
    found = compare.compare(*folders(a, b))
    assert found.warnings == [
        "what others took of the machine is not known of 2 of 3 measurements in A",
        "others took more than 10 % of the cores or of the GPU beside 1 of 3 measurements in B",
        "what others took of the machine is not known of 2 of 3 measurements in B",
    ]
    lines = compare.describe(found).splitlines()
    (primal,) = (line for line in lines if line.strip().startswith("primal "))
    assert primal.endswith("; others took 60 % of the GPU in B")
    assert not any("others" in line for line in lines if line.strip().startswith(("dual", "linear-time")))
