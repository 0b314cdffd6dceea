"""Memory and cores within the limits of groups, with planted file systems; and once in a group that is made."""

import os
import subprocess
import sys
import types

import psutil
import pytest
from conftest import ROOT, new_group

from benchmarks.measuring import memory, records
from mmdma_core import MMDMA, MissingDependency, host, simulate

FREE = 64 * 2**30  # on the machine
V2 = "31 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "30 24 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "32 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 30 0:32 / /sys/fs/cgroup/memory rw shared:9 master:3 - cgroup cgroup rw,memory\n"
)
V1_OWN = "9:name=systemd:/x\n4:memory:/a/b\n1:cpu,cpuacct:/a/b\n"
HYBRID = V1 + "36 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.fixture(autouse=True)
def a_large_machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=FREE, total=2 * FREE))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMP_THREAD"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def plant(tmp_path):
    """A file system with the mounts, the process' own groups, and files below /sys/fs/cgroup; returns its root."""

    def write(mounts, own, **files):
        told = {"proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/vda rw\n" + mounts, "proc/self/cgroup": own}
        for name, content in (told | {f"sys/fs/cgroup/{name}": content for name, content in files.items()}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
        return tmp_path

    return write


def v2(group, limit, used=0, cache=0, high="max"):
    content = {"max": limit, "high": high, "current": used, "stat": f"anon 7\ninactive_file {cache}\nactive_file 5\n"}
    return {f"{group}memory.{name}": f"{value}\n" for name, value in content.items()}


def v1(group, limit, used=0, cache=0, whole=2**63 - 4096):
    stat = f"inactive_file 1\nhierarchical_memory_limit {whole}\ntotal_inactive_file {cache}\n"
    return {
        f"memory/{group}memory.{name}": f"{value}\n"
        for name, value in {"limit_in_bytes": limit, "usage_in_bytes": used, "stat": stat}.items()
    }


@pytest.mark.parametrize(
    ("mounts", "own", "files", "free"),
    [
        (V2, "0::/a/b\n", {}, FREE),
        ("", "", {}, FREE),
        (V2, "0::/a/b\n", v2("a/b/", 1000, 300), 700),
        (V2, "0::/a/b\n", v2("a/b/", 1000, 300, cache=200), 900),
        (V2, "0::/a/b\n", v2("a/b/", 1000, 300, high=600), 300),
        (V2, "0::/a/b\n", v2("a/b/", "max", 300) | v2("a/", 5000, 1000), 4000),
        (V2, "0::/a/b\n", v2("a/b/", 1000, 300) | v2("a/", 5000, 4900), 100),
        (V2, "0::/a/b\n", v2("a/b/", 1000, 1200), 0),
        (V2, "0::/\n", v2("", 1000, 300), 700),  # in a name space of its own
        (V2, "0::/../c\n", v2("", 1000, 300), 700),
        (V2, "0::/gone (deleted)\n", v2("", 1000, 300), 700),
        (V2.replace(" / /sys", " /docker/abc /sys"), "0::/docker/abc/d\n", v2("d/", "max") | v2("", 1000), 1000),
        (V2.replace(" / /sys", " /docker/abc /sys"), "0::/docker/abcd\n", v2("d/", 10) | v2("", 1000), 1000),
        (V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/a\\040b"), "0::/c\n", v2("a b/c/", 1000), 1000),
        (V1, V1_OWN, v1("a/b/", 2**63 - 4096, 500), FREE),
        (V1, V1_OWN, v1("a/b/", 1000, 300, cache=200), 900),
        (V1, V1_OWN, v1("a/b/", 1000, 300) | v1("a/", 5000, 4900), 100),
        (V1, V1_OWN, v1("a/b/", 1000) | v1("a/", 50) | {"memory/a/memory.use_hierarchy": 0}, 1000),
        (V1, V1_OWN, v1("a/b/", 2**63 - 4096, 300, whole=800), 500),
        (V1.replace(" / /sys/fs/cgroup/mem", " /a/b /sys/fs/cgroup/mem"), V1_OWN, v1("", 1000), 1000),
        (HYBRID, V1_OWN + "0::/x\n", v1("a/b/", 1000), 1000),
        (HYBRID, "4:cpuset:/\n0::/x\n", v2("unified/x/", 1000), 1000),
        (V2, "0::/a/b\n", {"a/b/memory.max": "nonsense\n", "a/memory.max": ""}, FREE),
    ],
)
def test_the_least_that_any_group_leaves_is_free(plant, mounts, own, files, free):
    assert host.free_bytes(plant(mounts, own, **files)) == free


@pytest.mark.parametrize(
    ("mounts", "own", "files", "environment", "cores"),
    [
        (V2, "0::/a/b\n", {}, {}, 16),
        (V2, "0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, {}, 16),
        (V2, "0::/a/b\n", {"a/b/cpu.max": "400000 100000\n"}, {}, 4),
        (V2, "0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, {}, 1),
        (V2, "0::/a/b\n", {"a/b/cpu.max": "20000 100000\n"}, {}, 1),
        (V2, "0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "60000 20000\n"}, {}, 3),
        (V1, V1_OWN, {"cpu,cpuacct/a/cpu.cfs_quota_us": -1, "cpu,cpuacct/a/cpu.cfs_period_us": 100000}, {}, 16),
        (V1, V1_OWN, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": 250000, "cpu,cpuacct/a/b/cpu.cfs_period_us": 100000}, {}, 2),
        ("", "", {}, {"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8"}, 4),
        ("", "", {}, {"SLURM_CPUS_ON_NODE": "8"}, 8),
        ("", "", {}, {"SLURM_JOB_CPUS_PER_NODE": "12(x2),4"}, 12),
        ("", "", {}, {"SLURM_CPUS_PER_TASK": "64"}, 16),
        ("", "", {}, {"SLURM_CPUS_PER_TASK": "many", "OMP_THREAD_LIMIT": "0"}, 16),
        ("", "", {}, {"OMP_THREAD_LIMIT": "2", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}, 2),
    ],
)
def test_cores_by_affinity_job_and_quota(plant, monkeypatch, mounts, own, files, environment, cores):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert host.cores(plant(mounts, own, **files)) == cores


@pytest.mark.parametrize(
    ("mounts", "own", "counter", "content"),
    [
        (V1, V1_OWN, "memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        (V1, V1_OWN, "memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        (V2, "0::/a/b\n", "a/b/memory.events", "low 0\nhigh 9\nmax 9\noom 9\noom_kill {}\noom_group_kill 9\n"),
        (V2, "0::/a/b\n", "a/memory.events", "low 0\nhigh 9\nmax 9\noom 9\noom_kill {}\noom_group_kill 9\n"),
        (V2, "0::/\n", "../../../proc/vmstat", "nr_free 7\noom_kill {}\n"),
    ],
)
def test_kills_are_counted_by_the_groups_or_the_machine(plant, mounts, own, counter, content):
    root = plant(mounts, own, **{counter: content.format(3)})
    before = host.kills(root)
    assert list(before.values()) == [3]
    assert not host.killed_since(before, root)
    plant(mounts, own, **{counter: content.format(4)})
    assert host.killed_since(before, root)


def test_without_any_count_nothing_was_killed(plant):
    root = plant("", "")
    assert not host.killed_since(host.kills(root), root)


def test_limits_predictions_and_fits_rest_on_what_the_groups_leave(monkeypatch):
    monkeypatch.setattr(host, "free_bytes", lambda: 10 * 2**20)
    assert memory.within_reach("host", None) == 8 * 2**20
    assert memory.within_reach("host", 1.0) == 10 * 2**20
    assert memory.within_reach("host", 2**-10) == 2**20
    x, y, _ = simulate("branch", 300, 20)
    monkeypatch.setattr(host, "free_bytes", lambda: 2**16)
    with pytest.raises(MissingDependency, match=r"primal-fused: needs [\d.]+ [KM]iB of 64 KiB"):
        MMDMA(device="cpu", n_epochs=1).fit(x, y)


def test_the_number_of_threads_is_found_before_pytorch_is_loaded():
    code = "import sys; from benchmarks import __main__; __main__._set_environment('auto'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()
    assert "pynvml" in done.stdout.split()


@pytest.mark.group
@pytest.mark.slow
def test_a_cell_that_its_group_ends_is_out_of_memory(project, configure, monkeypatch):
    """Below a limit that the study does not know: the kernel kills the cell, and larger n are skipped."""
    study = {"n": [100, 200, 300], "p": [10], "variants": ["allocates-without-end"]}
    root = configure(study, plugins=["tests.faulty"], host_memory_gib=64)
    with new_group(2**30) as group:
        sweep = subprocess.run(
            [sys.executable, "-m", "benchmarks", "sweep"],
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(project)},
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
            capture_output=True,
            text=True,
        )
    assert sweep.returncode == 0, sweep.stderr
    first, second, third = (records.read(records.record_path(root, *study["variants"], 10, n)) for n in study["n"])
    assert [first.status, second.status, third.status] == ["ok", "oom", "skipped"]
    assert second.detail == "killed by the kernel for want of memory during first start"
    assert 2**28 < second.ran_out_of["host"] < 2**30
