"""The study on a real Slurm on loopback, through Snakemake's executor, with GPUs that are stand-ins."""

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import slurm_cluster
import yaml
from conftest import ROOT, copy_project, own_config
from embeddings import PLAIN_OPTIONS

from benchmarks.measuring import records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(slurm_cluster.absent() is not None, reason=str(slurm_cluster.absent())),
]
NODES = {"g1": 2, "g2": 1, "g3": 1}  # two GPUs; one of another model; Slurm thinks that there is one
STUDY = {"n": [100, 200], "p": [10, 20], "variants": ["primal", "linear-time"], "epochs": 100_000}
LIMITS = {"cell_budget_s": 2, "cell_timeout_s": 60, "sweep_budget_s": 60}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm"), NODES) as environment:
        path = environment["PATH"]
        yield environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}"}


class Project:
    """A copy of the project, with a study for the cluster, and what a user types on the login node."""

    def __init__(self, folder, environment, node, **study):
        self.folder = copy_project(folder)
        tests = self.folder / "tests"
        self.environment = environment | {"PYTHONPATH": os.pathsep.join(map(str, (folder, tests, tests / "at_start")))}
        self.root = self.folder / "results" / "cluster"
        config = own_config() | {"studies": {"test": LIMITS | STUDY | {key: list(v) for key, v in study.items()}}}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))
        self.edit("machine.yaml", ("study: paper", "study: test"), ("cpu_threads: 4", "cpu_threads: 1"))
        self.edit("config.yaml", ("mem_mb: 32000", "mem_mb: 1500"), ("latency-wait: 60", "latency-wait: 5"))
        self.edit("config.yaml", ("slurm_partition: gpu", f"slurm_partition: gpu\n  slurm_extra: \"'-w {node}'\""))

    def edit(self, name, *pairs):
        path = self.folder / "profiles" / "slurm" / name
        text = path.read_text()
        for before, after in pairs:
            assert before in text
            text = text.replace(before, after)
        path.write_text(text)

    def start(self, *arguments):
        """Snakemake, which asks Slurm more often here than it would."""
        command = [sys.executable, "tests/quick_snakemake.py", "--profile", "profiles/slurm", *arguments]
        quick = ["--slurm-init-seconds-before-status-checks", "1"]
        return self.popen([*command, *quick, "--slurm-status-command", "squeue"])  # no accounting here

    def popen(self, command):
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command, status=0):
        """The text of both streams."""
        return self.ended(self.popen(command), status)

    def ended(self, process, status=0):
        try:
            said, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(process.communicate()[0]) from None
        assert status is None or (process.returncode == 0) == (status == 0), said
        return said

    def records(self):
        return [records.read(path) for path in self.root.glob("records/*/*/*.json")]


@pytest.fixture(scope="module")
def short_of_memory(cluster, tmp_path_factory):
    """A study whose jobs have too little, begun on the second node: its project and Snakemake, which waits mostly."""
    sizes = {"n": [100, 12_000, 13_000], "p": [10], "variants": ["primal"]}
    project = Project(tmp_path_factory.mktemp("memory") / "project", cluster, "g2", **sizes)
    return project, project.start("--until", "sweep")


@pytest.fixture(scope="module")
def done(cluster, tmp_path_factory, short_of_memory):
    """The study, run once on the two GPUs of the first node: its project and what Snakemake said."""
    project = Project(tmp_path_factory.mktemp("done") / "project", cluster, "g1")
    return project, project.ended(project.start())


def test_two_sweeps_run_at_once_on_two_gpus_and_none_beside_another_on_one(done):
    project, said = done
    found = project.records()
    assert [record.status for record in found] == ["ok"] * 8, said
    assert {record.machine["node"] for record in found} == {"g1"}
    assert all(record.machine["job"] for record in found)
    spans = {}  # of each job
    for path in project.root.glob("records/*/*/*.json"):
        record, end = records.read(path), path.stat().st_mtime
        begin, last = spans.get(record.machine["job"], (end, end))
        spans[record.machine["job"]] = min(begin, end - record.cell_s), max(last, end)
    overlapping = [a[0] < b[1] and b[0] < a[1] for a, b in itertools.combinations(spans.values(), 2)]
    assert len(spans) == 4
    assert any(overlapping)
    events = sorted([(begin, 1) for begin, _ in spans.values()] + [(end, -1) for _, end in spans.values()])
    assert max(itertools.accumulate(step for _, step in events)) == 2  # never more than there are GPUs


def test_figures_and_report_are_there_and_a_rerun_has_nothing_to_do(done):
    project, _ = done
    assert (project.root / "figures" / "figure_1b.png").stat().st_size > 5_000
    report = (project.root / "report.html").read_text()
    assert "Fake 9000" in report
    before = sorted((path, path.stat().st_mtime_ns) for path in project.root.rglob("*"))
    assert "Nothing to be done" in project.ended(project.start("-n"))
    assert "Nothing to be done" in project.ended(project.start())
    assert sorted((path, path.stat().st_mtime_ns) for path in project.root.rglob("*")) == before


def test_a_job_that_is_cancelled_keeps_its_cells_and_a_rerun_goes_on(cluster, tmp_path):
    project = Project(tmp_path / "project", cluster, "g2", n=range(100, 1100, 100), p=[10], variants=["primal"])
    snakemake = project.start("--until", "sweep")
    end = time.monotonic() + 60
    while not (first := list(project.root.glob("records/*/*/*.json"))) and time.monotonic() < end:
        time.sleep(0.05)
    assert first
    plan = project.run(sys.executable, "-m", "benchmarks", "plan", "--profile", "profiles/slurm", "--gpus", "8")
    assert re.search(r"running now: primal, n = \d+, p = 10, on g\d in job \d+ since", plan)
    assert re.search(r"10 measurements, [1-9] known, [1-9] to run", plan)
    project.run("scancel", "--full", "-u", "root")
    project.ended(snakemake, status=1)
    written = {path: path.stat().st_mtime_ns for path in project.root.glob("records/*/*/*.json")}
    assert 1 <= len(written) < 10
    project.ended(project.start("--until", "sweep"))
    assert [record.status for record in project.records()] == ["ok"] * 10
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_memory_limit_of_the_job_is_out_of_memory(short_of_memory):
    project, snakemake = short_of_memory
    project.ended(snakemake, status=None)  # Slurm calls a job failed in which the kernel has ended something
    ended = {record.n: (record.status, record.detail) for record in project.records()}
    assert ended[100][0] == "ok"
    assert ended[12_000][0] == "oom", ended
    assert ended[13_000] == ("skipped", "oom at n = 12000")
    before = {path: path.stat().st_mtime_ns for path in project.root.glob("records/*/*/*.json")}
    project.ended(project.start("--until", "sweep"))  # the login node has more memory, and asks for nothing again
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("device", "asked"), [("cuda", ["--gpus=1", "--mem 1500", "-t 6", "--cpus-per-task=1"]), ("cpu", ["--exclusive"])]
)
def test_what_a_job_asks_for_and_why_slurm_refuses_it_are_told(cluster, tmp_path, device, asked):
    project = Project(tmp_path / "project", cluster, "g1", n=[100], p=[10], variants=["primal"])
    project.edit("machine.yaml", ("device: cuda", f"device: {device}"))
    project.edit("config.yaml", ("slurm_partition: gpu", "slurm_partition: nonsense"))
    said = project.ended(project.start(), status=1)
    assert "invalid partition specified: nonsense" in said
    (call,) = [line for line in said.splitlines() if "sbatch --parsable" in line]
    assert [words for words in asked if words not in call] == []
    assert ("--gpus" in call) == (device == "cuda")


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("g3", "but g3 cannot measure: the driver knows no GPU here"),
        ("g2", "holds measurements of Fake 9000, and g2 has"),
    ],
)
def test_a_node_without_the_device_refuses(done, node, said):
    project, _ = done
    before = len(project.records())
    command = [sys.executable, "-m", "benchmarks", "sweep", "--profile", "profiles/slurm", "--p", "30"]
    output = project.run("srun", "-w", node, "--gpus", "1", "--mem", "900", *command, status=2)
    assert said in output
    assert output.count("error:") == 2, output  # ours, and srun's about the exit status
    assert len(project.records()) == before


def test_one_fit_on_two_nodes(cluster, tmp_path):
    """The example of docs/devices.md: the nodes are one machine here, which has the address of both."""
    views = ("--simulate", "branch", "--n", "301", "--p", "20", "--variant", "primal-fused", "--random-state", "0")
    asked = (*views, "--n-epochs", "30", "--n-starts", "1", "--quiet", *PLAIN_OPTIONS)
    environment = cluster | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    script, out = ROOT / "examples" / "two_nodes.sh", tmp_path / "nodes"
    submit = ["sbatch", "--wait", "-w", "g1,g2", "--mem", "1500", "-o", tmp_path / "said"]
    done = subprocess.run([*submit, script, *asked, "--out", out], env=environment, timeout=240)
    said = (tmp_path / "said").read_text()
    assert done.returncode == 0, said
    alone = [sys.executable, "-m", "mmdma_core", "fit", *asked, "--out", tmp_path / "alone"]
    subprocess.run(alone, env=environment, check=True, timeout=240)
    found, right = (np.load(folder / "embedding_x.npy") for folder in (out, tmp_path / "alone"))
    assert np.linalg.norm(found - right) <= 1e-5 * np.linalg.norm(right)
