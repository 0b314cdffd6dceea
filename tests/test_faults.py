"""Planted faults: each ends its own cell with the right status, and the rest of the sweep is finished."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import heed_interrupts

from benchmarks.measuring import records

pytestmark = pytest.mark.slow

HERE = os.path.dirname(__file__)
# variant -> (status of the cell with the fault, words of its detail, status of the next larger n)
EXPECTED = {
    "raises-oom": ("oom", "CUDA out of memory", "skipped"),
    "raises-memory-error": ("oom", "MemoryError: no more", "skipped"),
    "allocates-without-end": ("oom", "", "skipped"),
    "one-large-allocation": ("oom", "you tried to allocate", "skipped"),
    "keops-oom": ("oom", "CUDA_ERROR_OUT_OF_MEMORY", "skipped"),
    "cuda-oom": ("oom", "CUDA error: out of memory", "skipped"),
    "cublas-oom": ("oom", "CUBLAS_STATUS_ALLOC_FAILED", "skipped"),
    "nvrtc-oom": ("oom", "NVRTC_ERROR_OUT_OF_MEMORY", "skipped"),
    "jax-oom": ("oom", "RESOURCE_EXHAUSTED", "skipped"),
    "bad-alloc": ("oom", "std::bad_alloc", "skipped"),
    "hangs": ("timeout", "time limit during first start", "skipped"),
    "segfaults": ("error", "SIGSEGV during first start", "error"),
    "raises": ("error", "RuntimeError: [KeOps] Cuda error. Something else", "error"),
    "is-killed": ("error", "SIGKILL during first start", "error"),
    "exits": ("error", "exit status 3 during first start", "error"),
    "unsupported-size": ("unsupported", "no more than 199 cells", "unsupported"),
    "nan-loss": ("error", "the loss is nan after 3 epochs", "error"),
    "needs-absent": ("missing_dependency", "pip install no_such_module", "missing_dependency"),
}


@pytest.fixture
def faulty(project, configure):
    """The project with the faulty variants as a plugin; returns the machine's results folder."""
    shutil.copy(os.path.join(HERE, "faulty.py"), project)

    def write(variants, n, **keys):
        study = {"n": n, "p": [10], "variants": variants, "cell_timeout_s": 3}
        return configure(study, plugins=["faulty"], host_memory_gib=0.3, **keys)

    return write


def read(root, variant, n):
    return records.read(records.record_path(root, variant, 10, n))


def test_each_fault_gets_its_status_and_the_sweep_goes_on(faulty, command):
    root = faulty([*EXPECTED, "primal"], [100, 200, 300])
    output = command("sweep")
    for variant, (status, words, beyond) in EXPECTED.items():
        first, second, third = (read(root, variant, n) for n in (100, 200, 300))
        sound = variant not in ("needs-absent", "nan-loss")
        assert first.status == ("ok" if sound else status), variant
        assert (second.status, third.status) == (status, beyond), variant
        assert words in second.detail, variant
        assert 'File "/' not in second.detail, variant
        if beyond == "skipped":
            assert third.detail == f"{status} at n = 200"
    assert read(root, "primal", 300).status == "ok"
    crash = read(root, "segfaults", 200).detail.splitlines()
    assert "Extension modules" not in crash[-1]
    assert crash[-1] == "Fatal Python error: Segmentation fault"
    assert 'File "faulty.py"' in "".join(crash[-4:])  # who called, the last call last
    assert output.count("\n") >= 3 * (len(EXPECTED) + 1)
    assert not any(p.info["cmdline"] == ["sleep", "1234"] for p in psutil.process_iter(["cmdline"]))
    counted = command("table")
    assert "error: segfaults, n = 200, p = 10: SIGSEGV" in counted
    command("figures")


def test_without_stop_after_failure_larger_n_are_tried(faulty, command):
    root = faulty(["raises-oom"], [200, 300], stop_after_failure=False)
    command("sweep")
    assert [read(root, "raises-oom", n).status for n in (200, 300)] == ["oom", "oom"]


def test_the_sweep_budget_ends_a_cell_and_skips_the_rest(faulty, command):
    root = faulty(["hangs"], [200, 300])
    command("sweep", "--budget-s", "1")
    assert read(root, "hangs", 200).status == "skipped"
    assert "budget" in read(root, "hangs", 200).detail
    assert read(root, "hangs", 300).detail == "no time left in the sweep's budget"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_sweep_loses_nothing_and_resumes(faulty, command, project, number):
    sizes = [100, 110, 120, 200, 210]
    root = faulty(["slow"], sizes)
    sweep = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "sweep"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        preexec_fn=heed_interrupts,
    )
    path = records.record_path(root, "slow", 10, 120)
    wait_until(path.exists)
    wait_until(lambda: psutil.Process(sweep.pid).children())
    children = psutil.Process(sweep.pid).children(recursive=True)
    sweep.send_signal(number)
    assert sweep.wait(timeout=20) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert not list(root.rglob("*.part"))
    before = {n: records.record_path(root, "slow", 10, n).stat().st_mtime_ns for n in (100, 110, 120)}
    assert not records.record_path(root, "slow", 10, 210).exists()
    command("sweep")
    assert before == {n: records.record_path(root, "slow", 10, n).stat().st_mtime_ns for n in before}
    assert all(read(root, "slow", n).status == "ok" for n in sizes)


@pytest.mark.alone  # a cell beside which others take much is measured once more
def test_two_sweeps_never_measure_at_once(faulty, project):
    root = faulty(["slow"], [200, 210])
    start = [sys.executable, "-m", "benchmarks", "sweep", "--n"]
    environment = os.environ | {"PYTHONPATH": str(project)}
    sweeps = [
        subprocess.Popen([*start, n], cwd=project, env=environment, stderr=subprocess.PIPE, text=True)
        for n in ("200", "210")
    ]
    messages = [sweep.communicate(timeout=60)[1] for sweep in sweeps]
    assert sum("another sweep is measuring" in message for message in messages) == 1
    spans = []
    for n in (200, 210):
        path = records.record_path(root, "slow", 10, n)
        spans.append((path.stat().st_mtime - read(root, "slow", n).cell_s, path.stat().st_mtime))
    first, second = sorted(spans)
    assert first[1] <= second[0] + 0.05


def test_an_unreadable_record_is_set_aside_and_measured_again(faulty, command):
    root = faulty(["primal"], [100])
    path = records.record_path(root, "primal", 10, 100)
    path.parent.mkdir(parents=True)
    path.write_text('{"variant": "primal", "n": 10')
    assert "set aside as" in command("sweep")
    assert records.read(path).status == "ok"
    assert path.with_suffix(".unreadable").read_text() == '{"variant": "primal", "n": 10'


def test_what_changes_the_question_is_measured_again(faulty, command):
    root = faulty(["primal"], [100])
    path = records.record_path(root, "primal", 10, 100)
    command("sweep")
    first = path.stat().st_mtime_ns
    command("sweep")
    assert path.stat().st_mtime_ns == first
    command("sweep", "--set", "settings={sigma: 2.0}")
    assert path.stat().st_mtime_ns > first


def test_an_unwritable_results_folder_is_one_line(faulty, command, project):
    faulty(["primal"], [100], results="taken")
    (project / "taken").write_text("a file where a folder should be")
    output = command("sweep", status=1)
    assert output.strip().splitlines()[-1].startswith("error: taken")
    assert "Traceback" not in output


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_no_part(faulty, project):
    """Files of this process may have 100 bytes, so that the first record does not fit."""
    root = faulty(["primal"], [100])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "sweep"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    file = records.record_path(root.relative_to(project), "primal", 10, 100)
    assert done.stderr.strip().splitlines()[-1] == f"error: {file}: File too large"
    assert "Traceback" not in done.stderr
    assert not [path for path in root.rglob("*") if path.is_file() and path.name != "model.txt"]


def test_errors_are_tried_again_only_when_asked(faulty, command):
    root = faulty(["raises"], [200])
    path = records.record_path(root, "raises", 10, 200)
    command("sweep")
    first = path.stat().st_mtime_ns
    command("sweep")
    assert path.stat().st_mtime_ns == first
    command("sweep", "--retry")
    assert path.stat().st_mtime_ns > first


def test_a_lifted_limit_measures_what_it_had_skipped(faulty, command):
    root = faulty(["raises-oom"], [200, 300])
    command("sweep")
    assert read(root, "raises-oom", 300).implied_by == 200
    command("sweep", "--set", "stop_after_failure=false")
    assert read(root, "raises-oom", 300).status == "oom"


def test_a_record_holds_what_was_asked_and_measured(faulty, command):
    root = faulty(["primal"], [100])
    command("sweep")
    content = json.loads(records.record_path(root, "primal", 10, 100).read_text())
    assert (content["variant"], content["n"], content["p"], content["d"], content["epochs"]) == (
        "primal",
        100,
        10,
        10,
        5,
    )
    assert content["data_mode"] == "exact"
    assert len(content["epoch_s"]) == content["epochs_measured"] == 5
    assert content["extrapolated"] is False
    assert content["runtime_s"] == pytest.approx(content["prepare_s"] + sum(content["epoch_s"]))
    assert content["losses"]["early"]["epoch"] == 3
    assert content["losses"]["final"]["epoch"] == 6
    assert content["peak_host_bytes"] > 0
    assert content["peak_device_bytes"] is None
    assert content["machine"]["cpu_threads"] == len(os.sched_getaffinity(0))
    assert content["machine"]["versions"]["torch"]


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
