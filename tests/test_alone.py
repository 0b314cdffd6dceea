"""One measurement at a time on a device, one model in a folder, and a login node that has neither."""

import fcntl
import os
import select
import subprocess
import sys
import time

import pytest
from conftest import ROOT, own_config

from benchmarks import study
from benchmarks.config import ConfigError
from benchmarks.measuring import device as alone
from benchmarks.measuring import machine, records

CONFIG = own_config()
HOLD = """
import sys, time
from benchmarks.measuring import device as alone, machine
names = sys.argv[2].split()
machine.gpu_uuid = lambda k=0: names[k]
alone._check_device = alone._check_model = lambda *_, **__: None
machine.model = lambda device: "any"
from pathlib import Path
with alone.alone(sys.argv[1], Path(sys.argv[3]), len(names)):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds a device and says so."""
    started = []

    def start(device, uuid="GPU-a"):
        command = [sys.executable, "-c", HOLD, device, uuid, str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def gpu(monkeypatch):
    """A name for this process's GPU, apart from any that is there."""
    name = f"GPU-{os.getpid()}"
    monkeypatch.setattr(machine, "gpu_uuid", lambda k=0: f"{name}-{k}" if k else name)
    monkeypatch.setattr(machine, "model", lambda device, k=0: "Fake 9000")
    monkeypatch.setattr(alone, "why_no_gpu", lambda *_: None)
    return name


def test_two_devices_measure_at_once_and_on_one_the_second_waits_and_says_so(hold, gpu):
    first, other, second = hold("cuda", gpu), hold("cuda", f"{gpu}-other"), None
    assert first.stdout.readline() == other.stdout.readline() == "held\n"
    second = hold("cuda", gpu)
    assert second.stderr.readline() == f"another sweep is measuring on {gpu}: waiting for it to end\n"
    first.kill()  # however its holder ends
    assert second.stdout.readline() == "held\n"


def test_every_gpu_of_a_cell_is_held_and_nobody_waits_for_ever(hold, gpu):
    one, two = f"{gpu}-1", f"{gpu}-2"
    both = hold("cuda", f"{two} {one}")
    assert both.stdout.readline() == "held\n"
    others = [hold("cuda", name) for name in (one, two, f"{one} {two}", f"{two} {one}")]
    waits = [other.stderr.readline() for other in others]
    assert waits == [f"another sweep is measuring on {name}: waiting for it to end\n" for name in (one, two, one, one)]
    both.kill()
    while others:  # whoever comes first, all come in the end
        holders = select.select([other.stdout for other in others], [], [], 20)[0]
        assert holders
        for other in [other for other in others if other.stdout in holders]:
            assert other.stdout.readline() == "held\n"
            other.kill()
            other.wait()
            others.remove(other)


def test_gpus_that_differ_measure_no_cell_together(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "model", lambda device, k=0: f"Fake {9000 - k}")
    with alone.alone("cuda", tmp_path):
        pass
    with pytest.raises(alone.WrongDevice, match=r"its GPUs differ \(Fake 8999, Fake 9000\): name those of one kind"):
        alone.alone("cuda", tmp_path, 2).__enter__()


def test_a_file_system_without_locks_does_not_matter(gpu, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone.alone("cuda", tmp_path / "results"):
        pass
    begin = time.monotonic()
    with alone.alone("cuda", tmp_path / "results"):  # it was given back
        assert time.monotonic() - begin < 1


def test_a_folder_belongs_to_the_model_that_came_first(gpu, tmp_path, monkeypatch):
    with alone.alone("cuda", tmp_path):
        pass
    monkeypatch.setattr(machine, "model", lambda device, k=0: "Fake 8000")
    with pytest.raises(alone.WrongDevice, match=r"holds measurements of Fake 9000, and .* has Fake 8000: name another"):
        alone.alone("cuda", tmp_path).__enter__()


def test_a_folder_of_before_belongs_to_the_model_of_its_records(gpu, tmp_path):
    from test_records import record

    held = record("primal", 100, 10, machine={"gpu": {"name": "Fake 7000"}, "cpu": "some"})
    records.write(held, records.record_path(tmp_path, "primal", 10, 100))
    with pytest.raises(alone.WrongDevice, match="holds measurements of Fake 7000"):
        alone.alone("cuda", tmp_path).__enter__()


@pytest.mark.skipif(alone.why_no_gpu() is None, reason="this host has a GPU")
def test_a_login_node_without_a_gpu_knows_what_its_jobs_do_and_measures_nothing(tmp_path):
    config = CONFIG | {"results": str(tmp_path), "device": "cuda", "study": "smoke"}
    found = study.load(config | {"machine": "cluster", "cpu_threads": 4})
    assert (found.device, found.root, found.threads) == ("cuda", tmp_path / "cluster", 4)
    with pytest.raises(ConfigError, match="the driver knows no GPU here; allowed: auto, cpu, or a name in `machine`"):
        study.load(config)
    with pytest.raises(alone.WrongDevice, match="cannot measure: the driver knows no GPU here"):
        alone.alone("cuda", found.root).__enter__()
    assert not found.root.exists()
